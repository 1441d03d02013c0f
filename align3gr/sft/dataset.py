"""Rows for supervised fine-tuning: one sequence a user, with the loss on every item that has a history."""

from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset

from align3gr.scid.prompts import PromptBuilder

IGNORE = -100


def windows(length: int, max_history: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a history into windows of at most `max_history + 1` items, so that each item is learnt exactly once.

    Yields `(start, end, first)`: the window is `[start, end)`, its items from `first` on carry the loss. The first
    item of a history has nothing to be predicted from and never does. Later windows overlap by half, so that an item
    is predicted from at least half of what a prompt may hold.
    """
    width = max_history + 1
    step = max(1, width // 2)
    start, first = 0, 1
    while first < length:
        end = min(start + width, length)
        yield start, end, first
        start, first = max(0, min(start + step, length - width)), end


def every_item_rows(
    prompts: PromptBuilder,
    train_sequences: Sequence[np.ndarray],
    user_codes: np.ndarray | None,
    item_codes: np.ndarray,
) -> Dataset:
    """Rows `{input_ids, labels}` of the every-item objective.

    At each item the model sees what the prompt of that moment holds (nothing stands between history and answer), so
    one forward teaches what one sample for each prefix would, with at most `max_history` items of history.

    Args:
        prompts: the prompt of this model.
        train_sequences: item indices of each user's train split, oldest first.
        user_codes: `(users, levels)`, or None for prompts without users.
        item_codes: `(items, levels)`.
    """
    item_ids = prompts.vocabulary.item_ids(item_codes)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for user, sequence in enumerate(train_sequences):
        header = prompts.header(None if user_codes is None else user_codes[user])
        for start, end, first in windows(len(sequence), prompts.max_history):
            seen = item_ids[sequence[start:first]].reshape(-1).tolist()
            learnt = item_ids[sequence[first:end]].reshape(-1).tolist()
            rows["input_ids"].append(header + seen + learnt)
            rows["labels"].append([IGNORE] * (len(header) + len(seen)) + learnt)
    return Dataset.from_dict(rows)
