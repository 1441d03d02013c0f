"""Rows of preference data: from text to token ids, checked at the door, and batched."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align3gr.dpo.shared_prefix import sequence_batch, tree_batch
from align3gr.errors import InputError

# Columns that DPOTrainer adds when it computes the reference once (private to it; a test names them).
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass
class SoftmaxDPOCollator:
    """Batches rows of `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of completions) for `SoftmaxDPOTrainer`.

    The completions of a row are the chosen one, in slot 0, then the rejected. Rows may have different numbers of
    rejected; the batch is as wide as its widest row. Columns of reference log-probabilities are passed on.

    Args:
        prefix_sharing: As in `SoftmaxDPOConfig`.
        pad_to_multiple_of: Pads the row length up to a multiple of this.
    """

    prefix_sharing: str = "shared"
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        prompts = [example["prompt_ids"] for example in examples]
        completions = [[example["chosen_ids"], *example["rejected_ids"]] for example in examples]
        if self.prefix_sharing == "naive":
            batch = sequence_batch(prompts, completions, self.pad_to_multiple_of)
        else:
            merge = self.prefix_sharing == "merged"
            batch = tree_batch(prompts, completions, merge, self.pad_to_multiple_of)
        if REFERENCE_COLUMNS[0] in examples[0]:
            rejected = batch["label_ids"].shape[1] - 1
            batch["ref_chosen_logps"] = torch.tensor([example["ref_chosen_logps"] for example in examples])
            batch["ref_rejected_logps"] = torch.tensor(
                [example["ref_rejected_logps"][:rejected] for example in examples]
            )
        return batch


def tokenize_row(row: dict[str, Any], index: int, tokenizer: Any, source: str) -> dict[str, Any]:
    """Token ids of a text row; the completions are what `prompt + completion` has after the prompt's tokens."""
    rejected = [row["rejected"]] if isinstance(row["rejected"], str) else row["rejected"]
    texts = [row["prompt"], row["chosen"], *rejected]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{source} dataset, row {index}: prompt, chosen and rejected must be text, not messages; apply the chat "
            "template first, or pass token ids"
        )
    prompt_ids = tokenizer(row["prompt"])["input_ids"]
    completions = []
    for text in texts[1:]:
        ids = tokenizer(row["prompt"] + text)["input_ids"]
        if ids[: len(prompt_ids)] != prompt_ids:
            raise InputError(
                f"{source} dataset, row {index}: tokens merge across the end of the prompt before {text[:40]!r}; end "
                "the prompt on a token boundary, or pass token ids"
            )
        completions.append(ids[len(prompt_ids) :])
    return {"prompt_ids": prompt_ids, "chosen_ids": completions[0], "rejected_ids": completions[1:]}


def check_streamed_row(row: dict[str, Any], index: int, **check: Any) -> dict[str, Any]:
    """`check_row` for a stream, whose `map` does not take a function without a result."""
    check_row(row, index, **check)
    return {}


def check_row(row: dict[str, Any], index: int, num_rejected: int, max_length: int | None, source: str) -> None:
    """Refuse a row that has no preference in it or that would not fit."""
    where = f"{source} dataset, row {index}"
    prompt, rejected = row["prompt_ids"], row["rejected_ids"]
    if not 1 <= len(rejected) <= num_rejected:
        raise InputError(
            f"{where}: rejected_ids has {len(rejected)} completions; expected 1 to num_rejected={num_rejected}"
        )
    if not prompt or not row["chosen_ids"] or not all(rejected):
        raise InputError(f"{where}: an empty prompt or completion; drop the row or give it at least one token")
    if row["chosen_ids"] in rejected:
        raise InputError(f"{where}: the chosen completion is also among rejected_ids; drop it there")
    longest = len(prompt) + max(len(ids) for ids in [row["chosen_ids"], *rejected])
    if max_length is not None and longest > max_length:
        raise InputError(
            f"{where}: {longest} tokens exceed max_length={max_length}; shorten the prompt or raise max_length"
        )
