"""Which items a request may show, as a mask over the prefixes of the catalogue's trie.

The items under a node are one range of places (see [`SCIDTrie.place_range`]). With a request's items as sorted places,
two binary searches count how many of them stand under a node, at any depth. So a prefix that leads to forbidden items
alone is never followed, and memory goes with the sets, not with the catalogue.
"""

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

# One set of item indices for all rows of a batch, or one for each.
ItemSets = Sequence[int] | Set[int] | np.ndarray | Sequence[Sequence[int] | Set[int] | np.ndarray]


class ItemFilter:
    """The items that each row of a batch may show: the allowed ones without the denied ones.

    Args:
        trie: the catalogue, on the device of the search.
        batch: number of rows.
        allowed: item indices, one set for all rows or one a row; None allows every item. An empty set allows none.
        denied: item indices in the same form; None denies none.

    Indices that are no item of the trie are passed over, so rows may be padded with -1.

    Raises:
        InputError: there is one set a row, but for another number of rows.
    """

    def __init__(
        self, trie: SCIDTrie, batch: int, allowed: ItemSets | None = None, denied: ItemSets | None = None
    ) -> None:
        self._trie = trie
        self._batch = batch
        self._allowed = None if allowed is None else self._keys(allowed, "allowed")
        self._denied = None if denied is None else self._keys(denied, "denied")
        # Counts can be subtracted only where every denied item is also an allowed one of its row.
        if self._allowed is not None and self._denied is not None:
            (keep, keep_by_row), (deny, deny_by_row) = self._allowed, self._denied
            if deny_by_row and not keep_by_row:
                self._denied = deny[torch.isin(deny % trie.num_items, keep)], True
            else:
                forbidden = torch.isin(keep if deny_by_row else keep % trie.num_items, deny)
                self._allowed, self._denied = (keep[~forbidden], keep_by_row), None

    def alive(self, depth: int, nodes: Tensor) -> Tensor:
        """Whether at least one item that the row may show stands under a node; False for node -1.

        Shape: `nodes` `(batch, ...)` of depth `depth` -> bool of the same shape.
        """
        return self._count(*self._trie.place_range(depth, nodes)) > 0

    def allows(self, items: Tensor) -> Tensor:
        """Whether the row may show an item; False for -1. Shape: `(batch, ...)` -> bool of the same shape."""
        places = self._trie.places(items)
        first = places.clamp_min(0)
        return self._count(first, torch.where(places >= 0, first + 1, first)) > 0

    def _count(self, first: Tensor, end: Tensor) -> Tensor:
        """How many items between two places the row may show."""
        count = end - first if self._allowed is None else self._between(self._allowed, first, end)
        return count if self._denied is None else count - self._between(self._denied, first, end)

    def _between(self, keys: tuple[Tensor, bool], first: Tensor, end: Tensor) -> Tensor:
        places, by_row = keys
        if by_row:
            row = torch.arange(self._batch, device=first.device).view(-1, *[1] * (first.ndim - 1))
            first, end = first + row * self._trie.num_items, end + row * self._trie.num_items
        return torch.searchsorted(places, end.contiguous()) - torch.searchsorted(places, first.contiguous())

    def _keys(self, sets: ItemSets, name: str) -> tuple[Tensor, bool]:
        """Sorted places without repeats, shifted by the row where there is one set a row, and whether there is."""
        by_row = is_by_row(sets)
        rows: list[Any] = list(sets) if by_row else [sets]
        if by_row and len(rows) != self._batch:
            raise InputError(
                f"{name}: got {len(rows)} sets for a batch of {self._batch}; give one a row, or one for all"
            )
        arrays = [_indices(row) for row in rows]
        flat = torch.from_numpy(np.concatenate(arrays)).to(self._trie.device)
        row = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(array) for array in arrays])).to(flat.device)
        places = self._trie.places(flat)
        return (places + row * self._trie.num_items)[places >= 0].unique(), by_row


def is_by_row(sets: Any) -> bool:
    """Whether item sets are one a row; a flat sequence (also an empty one) is one set for all."""
    if isinstance(sets, np.ndarray | Tensor) and sets.dtype != object:
        return sets.ndim > 1
    if isinstance(sets, Set):
        return False
    return len(sets) > 0 and not isinstance(sets[0], int | np.integer | str)


def _indices(row: Any) -> np.ndarray:
    if isinstance(row, Tensor):
        row = row.cpu().numpy()
    return np.asarray(list(row) if isinstance(row, Set) else row, dtype=np.int64).reshape(-1)
