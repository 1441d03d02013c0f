"""Batches for the token level: pairs of a user and an item of the train split, and rows to quantise."""

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch.utils.data import Dataset

from align3gr.scid.features import FeatureTable


class PairDataset(Dataset):
    """Interacting (user, item) pairs of the train split. Shape: `pairs` `(pairs, 2)` int64."""

    def __init__(self, pairs: np.ndarray) -> None:
        self.pairs = torch.from_numpy(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pairs[index]

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        # The whole batch at once; a list of rows would be stacked again by the collator.
        return self.pairs[torch.as_tensor(indices)]


class PairCollator:
    """A batch of pairs with the features of both sides and the false negatives of Eq. (1), and rows to quantise.

    Args:
        users, items: features; no users where the model has no user side.
        interactions: `(users, items)` train interactions.
        align: whether Eq. (1) is wanted.
        quantize: whether the quantisation terms are.
        log_q: whether to add the items' log-probabilities of being drawn.
        seed: of the rows.
    """

    def __init__(
        self,
        users: FeatureTable | None,
        items: FeatureTable,
        interactions: sp.csr_matrix,
        align: bool,
        quantize: bool,
        log_q: bool = False,
        seed: int = 0,
    ) -> None:
        self.users, self.items, self.align, self.quantize = users, items, align, quantize
        self.interactions = interactions
        self.generator = torch.Generator().manual_seed(seed)
        share = np.maximum(np.asarray((interactions > 0).sum(0)).ravel(), 1) / max(interactions.nnz, 1)
        self.log_q = torch.from_numpy(np.log(share)).float() if log_q else None

    def __call__(self, pairs: torch.Tensor) -> dict:
        batch: dict[str, Any] = {}
        if self.align and self.users is not None:
            user_rows, item_rows = pairs[:, 0], pairs[:, 1]
            known = self.interactions[user_rows.numpy()][:, item_rows.numpy()].toarray() > 0
            batch["users"], batch["items"] = self.users.rows(user_rows), self.items.rows(item_rows)
            batch["false_negatives"] = torch.from_numpy(known)
            if self.log_q is not None:
                batch["log_q"] = self.log_q[item_rows]
        if self.quantize:
            # Uniform rows, not those of the pairs: rare items need codes that are as good as those of popular ones.
            if self.users is not None:
                batch["quantize_users"] = self.users.rows(self._draw(len(self.users), len(pairs)))
            batch["item_rows"] = self._draw(len(self.items), len(pairs))
            batch["quantize_items"] = self.items.rows(batch["item_rows"])
        return batch

    def _draw(self, rows: int, number: int) -> torch.Tensor:
        return torch.randint(rows, (number,), generator=self.generator)
