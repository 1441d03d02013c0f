"""Four objectives of sequential item prediction, as rows `{input_ids, labels}` from the train sequences.

- `prefix`, the paper's: one sample a position, `header + latest items + suffix + item`.
- `tree`: the same loss and gradients from fewer tokens. The samples of a user share the beginning of their history: a
  row holds it once, as a trunk, and each sample is a branch `suffix + item` that sees the trunk up to its position.
- `every_item`: one sequence with the loss on every item, for templates that put nothing between history and answer.
  The fewest tokens; behind `max_history` an item is predicted from part of what a prompt holds.
- `prefix_lm`, for encoder-decoders (Raffel et al. 2020): sequences are cut at random, the encoder reads what is in
  front of a cut, the decoder learns the items up to the next one. An encoder reads each history anew, so this is how
  it learns several items from one reading.

A user's SCID stands in the header. Where it depends on the position (it must not be made from the item to come), the
positions behind one SCID are a stretch, and nothing is shared across stretches.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from datasets import Dataset

from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder
from align3gr.sft.dataset import BRANCH_SEEN, BRANCH_STARTS, IGNORE, dataset_of, plain_row

# More would save more headers, and pay for it with attention that is computed and masked.
LONG_HISTORIES_A_ROW = 2
# Items that an encoder-decoder learns from one reading of a history: more are padding in most rows.
ITEMS_AN_ANSWER = 5


class PositionCodes(Protocol):
    """Users' SCIDs by the position of the item that is to be predicted."""

    def segments(self, user: int, length: int) -> Iterable[tuple[int, int, np.ndarray]]:
        """Ranges `[first, end)` of positions from 1 to `length`, each with the codes `(levels,)` in front of it."""


class _Stretch(NamedTuple):
    """Positions `[first, end)` of a sequence, to be predicted behind one header."""

    header: np.ndarray
    items: np.ndarray  # token ids (positions, levels) of the whole sequence
    first: int
    end: int


def windows(length: int, max_history: int, first: int = 1) -> Iterator[tuple[int, int, int]]:
    """Cuts a history into windows of at most `max_history + 1` items, so that each item is learnt exactly once.

    Yields `(start, end, first)`: the window is `[start, end)`, its items from `first` on carry the loss. Items in
    front of the argument `first` are only seen; the first item of a history has nothing to be predicted from and never
    carries a loss. Later windows overlap by half, so that an item is predicted from at least half of what a prompt may
    hold.

    Args:
        length: of the history.
        max_history: most items that a prompt shows.
        first: the first item that carries a loss.
    """
    width = max_history + 1
    overlap = width - max(1, width // 2)
    while first < length:
        start = max(0, min(first - overlap, length - width))
        end = min(start + width, length)
        yield start, end, first
        first = end


def every_item_rows(
    prompts: PromptBuilder,
    train_sequences: Sequence[np.ndarray],
    user_codes: np.ndarray | PositionCodes | None,
    item_codes: np.ndarray,
) -> Dataset:
    """Rows `{input_ids, labels}` of the every-item objective.

    At each item the model sees what the prompt of that moment holds (nothing stands between history and answer), so
    one forward teaches what one sample for each prefix would, with at most `max_history` items of history.

    Args:
        prompts: the prompt of this model.
        train_sequences: item indices of each user's train split, oldest first.
        user_codes: `(users, levels)`, codes by position, or None for prompts without users.
        item_codes: `(items, levels)`.

    Raises:
        InputError: the template puts text between history and answer.
    """
    if prompts.suffix:
        raise InputError(
            f"template: got {prompts.settings['template']!r}, but the objective every_item needs a template that ends "
            "in {history}; take one, or the objective tree or prefix"
        )

    def rows() -> Iterator[tuple[np.ndarray, ...]]:
        for header, items, first, end in _stretches(prompts, train_sequences, user_codes, item_codes):
            for start, stop, begin in windows(end, prompts.max_history, first):
                yield plain_row(header, items[start:begin], items[begin:stop])

    return dataset_of(rows(), ["input_ids", "labels"])


def prefix_rows(
    prompts: PromptBuilder,
    train_sequences: Sequence[np.ndarray],
    user_codes: np.ndarray | PositionCodes | None,
    item_codes: np.ndarray,
) -> Dataset:
    """Rows `{input_ids, labels}` with one sample for each item that has a history: its prompt and its SCID.

    The arguments are those of [`every_item_rows`].
    """

    def rows() -> Iterator[tuple[np.ndarray, ...]]:
        for header, items, first, end in _stretches(prompts, train_sequences, user_codes, item_codes):
            for position in range(first, end):
                history = items[max(0, position - prompts.max_history) : position]
                yield plain_row(header, history, prompts.suffix, items[position])

    return dataset_of(rows(), ["input_ids", "labels"])


def prefix_lm_rows(
    prompts: PromptBuilder,
    train_sequences: Sequence[np.ndarray],
    user_codes: np.ndarray | PositionCodes | None,
    item_codes: np.ndarray,
    rng: np.random.Generator,
) -> Dataset:
    """Rows `{input_ids, labels}` with prompts that up to `ITEMS_AN_ANSWER` SCIDs follow: the items that came next.

    Each item that has a history is learnt once. Where the sequence is cut is drawn, so that each item follows its
    prompt directly, as in use, in about one of `ITEMS_AN_ANSWER` passes.

    Args:
        prompts, train_sequences, user_codes, item_codes: as of [`every_item_rows`].
        rng: draws the cuts.
    """

    def rows() -> Iterator[tuple[np.ndarray, ...]]:
        for header, items, first, end in _stretches(prompts, train_sequences, user_codes, item_codes):
            cuts = range(first - int(rng.integers(ITEMS_AN_ANSWER)), end, ITEMS_AN_ANSWER)
            for start, stop in ((max(cut, first), min(cut + ITEMS_AN_ANSWER, end)) for cut in cuts):
                history = items[max(0, start - prompts.max_history) : start]
                yield plain_row(header, history, prompts.suffix, items[start:stop])

    return dataset_of(rows(), ["input_ids", "labels"])


def tree_rows(
    prompts: PromptBuilder,
    train_sequences: Sequence[np.ndarray],
    user_codes: np.ndarray | PositionCodes | None,
    item_codes: np.ndarray,
) -> Dataset:
    """Rows `{input_ids, labels, branch_starts, branch_seen}` with the loss and the gradients of [`prefix_rows`].

    A row is a trunk, `header + items`, and behind it branches one after the other, `suffix + item`, which
    [`TreeCollator`] keeps apart: the branch that begins at `branch_starts[i]` sees itself and the first
    `branch_seen[i]` tokens of the trunk. As everywhere, `labels[i]` is predicted at `i - 1`; the last token of an item
    predicts nothing, so it is no token of its branch, and its label stands at the start of the next one.

    A history that is longer than a prompt has lost its beginning, so none of its tokens has the hidden state that it
    has in the trunk. Such samples share their header alone: each is a branch `items + suffix + item`, a few of them a
    row. Where the template puts nothing between history and answer, the trunk itself predicts the items that have a
    short history.

    The arguments are those of [`every_item_rows`].
    """

    def rows() -> Iterator[tuple[np.ndarray, ...]]:
        for header, items, first, end in _stretches(prompts, train_sequences, user_codes, item_codes):
            shared = max(first, min(end, prompts.max_history + 1))
            if first < shared and not prompts.suffix:
                yield *plain_row(header, items[:first], items[first:shared]), *_NO_BRANCHES
            elif first < shared:
                trunk = np.concatenate([header, items[: shared - 1].ravel()])
                seen = len(header) + items.shape[1] * np.arange(first, shared)
                yield _tree_row(trunk, seen, [prompts.suffix] * len(seen), items[first:shared])
            for start in range(shared, end, LONG_HISTORIES_A_ROW):
                stop = min(start + LONG_HISTORIES_A_ROW, end)
                histories = [items[at - prompts.max_history : at].ravel().tolist() for at in range(start, stop)]
                branches = [history + prompts.suffix for history in histories]
                yield _tree_row(header, np.full(stop - start, len(header)), branches, items[start:stop])

    return dataset_of(rows(), ["input_ids", "labels", BRANCH_STARTS, BRANCH_SEEN])


_NO_BRANCHES = (np.empty(0, np.int64), np.empty(0, np.int64))


def _stretches(
    prompts: PromptBuilder,
    train_sequences: Sequence[np.ndarray],
    user_codes: np.ndarray | PositionCodes | None,
    item_codes: np.ndarray,
) -> Iterator[_Stretch]:
    item_ids = prompts.vocabulary.item_ids(item_codes)
    for user, sequence in enumerate(train_sequences):
        if user_codes is None or isinstance(user_codes, np.ndarray):
            codes = None if user_codes is None else user_codes[user]
            segments: Iterable[tuple[int, int, np.ndarray | None]] = [(1, len(sequence), codes)]
        else:
            segments = user_codes.segments(user, len(sequence))
        for first, end, codes in segments:
            if first < end:
                yield _Stretch(np.asarray(prompts.header(codes), np.int64), item_ids[sequence], first, end)


def _tree_row(
    trunk: np.ndarray, seen: np.ndarray, branches: list[list[int]], targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Input ids, labels, branch starts and `seen`.

    Args:
        trunk: token ids.
        seen: tokens of the trunk that each branch sees.
        branches: token ids in front of each target, equally many.
        targets: token ids of the items `(branches, levels)`.
    """
    without_last = np.hstack([np.asarray(branches, np.int64), targets[:, :-1]])
    input_ids = np.concatenate([trunk, without_last.ravel(), targets[-1, -1:]])  # so that the last label has a place
    starts = len(trunk) + without_last.shape[1] * np.arange(len(targets))
    labels = np.full(len(input_ids), IGNORE, np.int64)
    labels[starts[:, None] + len(branches[0]) + np.arange(targets.shape[1])] = targets
    return input_ids, labels, starts, seen
