"""Rows of preference data as token ids: checked at the door, and batched."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from torch import Tensor

from align3gr.dpo.preference_text import PreferenceTokenizer, leaves_room
from align3gr.dpo.shared_prefix import sequence_batch, tree_batch
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

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


def prepare_rows(dataset: Any, tokenizer: Any, args: Any, source: str) -> Dataset | IterableDataset:
    """Rows as checked token ids: `prompt_ids`, `chosen_ids` and `rejected_ids`, a list of completions.

    Args:
        dataset: Rows of token ids, text or messages (see `PreferenceTokenizer`); `rejected` may be one completion.
        tokenizer: For text and messages.
        args: A `SoftmaxDPOConfig`. Text and messages are cut to `max_length` as in `trl.DPOTrainer`, and dropped where
            the prompt alone fills it; token ids that exceed it are refused, for half an identifier names nothing.
        source: Name of the dataset in messages.

    Raises:
        InputError: Columns are missing, or a row is not usable; names the row.
    """
    columns: dict[str, Any] = next(iter(dataset), {})
    with_ids = "prompt_ids" in columns
    expected = {"prompt_ids", "chosen_ids", "rejected_ids"} if with_ids else {"chosen", "rejected"}
    if missing := expected - set(columns):
        raise InputError(
            f"{source} dataset: columns {sorted(missing)} are missing; expected prompt_ids, chosen_ids and "
            "rejected_ids (token ids), or prompt, chosen and rejected (text or messages)"
        )
    if stale := set(REFERENCE_COLUMNS) & set(columns):
        raise InputError(f"{source} dataset: {sorted(stale)} are from an earlier trainer; remove these columns")
    parallel: dict[str, Any] = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
    with PartialState().main_process_first():  # the others find its cache
        if not with_ids:
            tokenize = PreferenceTokenizer(tokenizer, source, args.append_eos, args.max_length)
            dataset = dataset.map(tokenize, with_indices=True, **parallel)
            if args.max_length is not None:
                dataset = _without_overlong(dataset, args.max_length, source, parallel)
        elif columns["rejected_ids"] and isinstance(columns["rejected_ids"][0], int):
            dataset = dataset.map(_list_single_rejected, **parallel)
        limits = {"num_rejected": args.num_rejected, "max_length": args.max_length, "source": source}
        check = _check_row if isinstance(dataset, Dataset) else _check_streamed_row
        return dataset.map(check, fn_kwargs=limits, with_indices=True, **parallel)


def _without_overlong(dataset: Any, max_length: int, source: str, parallel: dict[str, Any]) -> Any:
    kept = dataset.filter(leaves_room, fn_kwargs={"max_length": max_length}, **parallel)
    if isinstance(dataset, Dataset) and len(kept) < len(dataset):
        if not len(kept):
            raise InputError(f"{source} dataset: every prompt alone fills max_length={max_length}; raise it")
        dropped = len(dataset) - len(kept)
        logger.warning("%s dataset: %d prompts alone fill max_length=%d; dropped", source, dropped, max_length)
    return kept


def _list_single_rejected(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's form with one rejected completion, as a list of one."""
    return {"rejected_ids": [row["rejected_ids"]]}


def _check_streamed_row(row: dict[str, Any], index: int, **check: Any) -> dict[str, Any]:
    """`_check_row` for a stream, whose `map` does not take a function without a result."""
    _check_row(row, index, **check)
    return {}


def _check_row(row: dict[str, Any], index: int, num_rejected: int, max_length: int | None, source: str) -> None:
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
