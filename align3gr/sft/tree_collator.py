"""Batches of rows with branches: the 4D mask and the positions that keep branches apart."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from align3gr.errors import InputError
from align3gr.sft.dataset import BRANCH_SEEN, BRANCH_STARTS, IGNORE
from align3gr.tree_attention import tree_attention, tree_mask


@dataclass
class TreeCollator:
    """Data collator for the rows of [`tree_rows`], mixed with plain rows `{input_ids, labels}` of other tasks.

    A plain row is a trunk without branches. Rows are padded on the right; a batch without any branch gets the usual
    mask of two dimensions, any other `attention_mask` (batch, 1, length, length) and `position_ids`. The trainer needs
    `remove_unused_columns=False`, so that the branches reach the collator.

    Args:
        pad_token_id: what fills short rows.
        attention: of the model, "sdpa" or "eager".
        dtype: of the model's weights.
        pad_to_multiple_of: rounds the length of a batch up.
    """

    pad_token_id: int
    attention: str = "sdpa"
    dtype: torch.dtype = torch.float32
    pad_to_multiple_of: int | None = None

    @classmethod
    def for_model(
        cls, model: PreTrainedModel, pad_token_id: int, longest: int, pad_to_multiple_of: int | None = None
    ) -> "TreeCollator":
        """The collator of this model.

        Args:
            longest: tokens of the longest prompt with its answer.

        Raises:
            InputError: the model's attention cannot follow a tree mask (FlashAttention, flex), or slides over fewer
                tokens than a prompt has.
        """
        attention = tree_attention(model, longest, "take the objective prefix")
        return cls(pad_token_id, attention, next(model.parameters()).dtype, pad_to_multiple_of)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: `input_ids`, `labels` (batch, length), the mask, and `position_ids` where a row has branches."""
        if not any(BRANCH_STARTS in feature for feature in features):
            raise InputError(
                f"train_dataset: the rows have no column {BRANCH_STARTS}, got {sorted(features[0])}; set "
                "remove_unused_columns: false, or leave out this collator where no row has branches"
            )
        lengths = [len(feature["input_ids"]) for feature in features]
        multiple = self.pad_to_multiple_of or 1
        shape = len(features), -(-max(lengths) // multiple) * multiple
        input_ids, labels = np.full(shape, self.pad_token_id), np.full(shape, IGNORE)
        for row, (feature, length) in enumerate(zip(features, lengths, strict=True)):
            input_ids[row, :length], labels[row, :length] = feature["input_ids"], feature["labels"]
        batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if not any(feature.get(BRANCH_STARTS) for feature in features):
            present = np.arange(shape[1]) < np.asarray(lengths)[:, None]
            return batch | {"attention_mask": torch.from_numpy(present.astype(np.int64))}
        starts, seen = _trunk_and_branches(features, lengths, shape)
        visible = _visible(torch.from_numpy(starts), torch.from_numpy(seen))
        batch["attention_mask"] = tree_mask(visible, self.attention, self.dtype)
        batch["position_ids"] = torch.from_numpy(np.arange(shape[1]) - starts + seen)
        return batch


def _trunk_and_branches(
    features: list[dict[str, Any]], lengths: list[int], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """For each token (batch, length) where its branch starts, and how many tokens of the trunk the branch sees.

    A token of the trunk is a branch of its own, which sees all tokens in front of it. So is padding, which sees none.
    """
    starts = np.tile(np.arange(shape[1]), (shape[0], 1))
    seen = starts.copy()
    for row, (feature, length) in enumerate(zip(features, lengths, strict=True)):
        seen[row, length:] = 0
        begins = feature.get(BRANCH_STARTS)
        if begins:
            sizes = np.diff([*begins, length])
            starts[row, begins[0] : length] = np.repeat(begins, sizes)
            seen[row, begins[0] : length] = np.repeat(feature[BRANCH_SEEN], sizes)
    return starts, seen


def _visible(starts: Tensor, seen: Tensor) -> Tensor:
    """True where a token sees another, (batch, 1, length, length)."""
    column = torch.arange(starts.shape[1])
    visible = (column >= starts[:, :, None]) & (column <= column[:, None])  # its branch up to itself
    visible |= column < seen[:, :, None]  # and its part of the trunk
    return visible[:, None]
