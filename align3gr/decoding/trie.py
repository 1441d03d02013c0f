"""The catalogue as a prefix tree over SCIDs, held as flat tensors on the model's device.

Decisions:

* **CSR, not nested dicts or dense tables.** The distinct prefixes of a length are numbered in lexicographic code
  order, so a node's children are one contiguous range, any number of levels and any codebook size cost 4 bytes a node
  plus 2 a code, and a step for a whole batch of beams is three gathers.
* **Node order is code order.** Whoever keeps beams sorted by node id gets ties broken by code order for free.
* **Items hang under leaves as one more level**, so catalogues in which several items share a SCID need no special
  case. Their places in that level are numbered through, so the items under any node are one range of places.
* **Item indices are stable.** A tree with more or fewer items is a new tree; new items get the next indices, removed
  ones leave holes, so tables in the order of the indices stay right.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from align3gr.decoding.code_rows import check_codes, code_dtype, codes_fingerprint, lexicographic_order
from align3gr.errors import InputError

_FORMAT = "align3gr.scid_trie.v2"


class SCIDTrie:
    """Prefix tree of all item SCIDs. Build it with [`SCIDTrie.from_codes`] or [`SCIDTrie.load`].

    A node of depth `d` is a distinct prefix of `d` codes; its id is its rank in lexicographic order among the prefixes
    of that depth. Depth 0 has the root alone, depth `levels` the leaves. The children of a leaf are the items that
    carry its SCID, by item index.

    Args:
        offsets: for each depth the position of each node's first child, and one more for the end.
        node_codes: for each depth from 1 on the last code of each node.
        items: item indices, leaf by leaf.

    Attributes:
        levels: number of codes in a SCID.
        codebook_sizes: number of codes of each level.
        num_items: number of items.
        index_bound: one above the largest item index ever given; larger than `num_items` where items were removed.
        num_nodes: number of nodes of depth 1, 2, ..., `levels`.
        max_children: most children of a node of depth 0, 1, ..., `levels`, the last entry most items of one SCID.
    """

    def __init__(
        self,
        offsets: list[Tensor],
        node_codes: list[Tensor],
        items: Tensor,
        codebook_sizes: tuple[int, ...],
        index_bound: int | None = None,
    ) -> None:
        self._offsets = offsets  # depth d: (nodes of depth d + 1,), children of node i are offsets[i]:offsets[i + 1]
        self._node_codes = node_codes  # depth d + 1: (nodes,), the last code of each prefix
        self._items = items  # (items,), grouped by leaf
        self._place_of: Tensor | None = None  # the inverse of _items, made when it is asked for
        self.codebook_sizes = codebook_sizes
        self.levels = len(codebook_sizes)
        self.num_items = items.numel()
        self.index_bound = self.num_items if index_bound is None else index_bound
        self.num_nodes = tuple(codes.numel() for codes in node_codes)
        self.max_children = tuple(int(offset.diff().max()) for offset in offsets)

    @classmethod
    def from_codes(cls, codes: Tensor | np.ndarray, codebook_sizes: tuple[int, ...] | list[int]) -> "SCIDTrie":
        """Build the tree; row `i` of the codes is the SCID of item `i`.

        Args:
            codes: integers.
                Shape: `(items, levels)`.
            codebook_sizes: number of codes of each level.

        Raises:
            InputError: no items, another number of levels than `codebook_sizes`, or a code outside its codebook.
        """
        codes = torch.as_tensor(codes)
        sizes = tuple(int(size) for size in codebook_sizes)
        check_codes(codes, sizes)
        order = lexicographic_order(codes, sizes)
        return cls._from_sorted(codes[order], order, sizes, len(order))

    @classmethod
    def _from_sorted(cls, codes: Tensor, items: Tensor, sizes: tuple[int, ...], index_bound: int) -> "SCIDTrie":
        """The tree of `codes` `(items, levels)` in lexicographic order and the item index of each row."""
        count, levels = codes.shape
        # starts[d]: first row of each node of depth d in the sorted codes.
        starts = [torch.zeros(1, dtype=torch.long, device=codes.device)]
        is_new = torch.ones(count, dtype=torch.bool, device=codes.device)
        is_new[1:] = False
        for level in range(levels):
            is_new[1:] |= codes[1:, level] != codes[:-1, level]
            starts.append(is_new.nonzero().squeeze(-1))
        starts.append(torch.arange(count, device=codes.device))

        index_dtype = torch.int32 if index_bound < 2**31 else torch.int64
        end = torch.tensor([count], device=codes.device)
        offsets = [
            torch.searchsorted(starts[depth + 1], torch.cat([starts[depth], end])).to(index_dtype)
            for depth in range(levels + 1)
        ]
        node_codes = [codes[starts[level + 1], level].to(code_dtype(sizes)) for level in range(levels)]
        return cls(offsets, node_codes, items.to(index_dtype), sizes, index_bound)

    def with_items(self, codes: Tensor | np.ndarray) -> "SCIDTrie":
        """The tree with further items; row `i` of the codes becomes item `index_bound + i`, all others keep theirs.

        Args:
            codes: integers.
                Shape: `(new items, levels)`.

        Raises:
            InputError: as for [`SCIDTrie.from_codes`].
        """
        codes = torch.as_tensor(codes).to(self.device)
        check_codes(codes, self.codebook_sizes)
        bound = self.index_bound + len(codes)
        together = torch.cat([self._sorted_codes(), codes.to(code_dtype(self.codebook_sizes))])
        items = torch.cat([self._items.long(), torch.arange(self.index_bound, bound, device=self.device)])
        order = lexicographic_order(together, self.codebook_sizes)  # stable: within a SCID still by item index
        return SCIDTrie._from_sorted(together[order], items[order], self.codebook_sizes, bound)

    def without(self, items: Sequence[int] | Tensor | np.ndarray) -> "SCIDTrie":
        """The tree without some items. No other item's index changes, and none is given again.

        Args:
            items: item indices.

        Raises:
            InputError: an index is not in the tree, or no item would be left.
        """
        gone = torch.as_tensor(items, device=self.device).long().reshape(-1)
        places = self.places(gone)
        if (places < 0).any():
            raise InputError(f"items: {int(gone[places < 0][0])} is no item of the trie, so it cannot be removed")
        keep = torch.ones(self.num_items, dtype=torch.bool, device=self.device)
        keep[places] = False
        if not keep.any():
            raise InputError("items: all items would be removed; a catalogue needs at least one")
        return SCIDTrie._from_sorted(
            self._sorted_codes()[keep], self._items[keep], self.codebook_sizes, self.index_bound
        )

    def _sorted_codes(self) -> Tensor:
        """The SCID of the item at each place. Shape: `(num_items, levels)`, in the dtype of the node codes."""
        nodes = torch.arange(self.num_nodes[-1], device=self.device).repeat_interleave(self._offsets[-1].diff().long())
        columns = []
        for level in reversed(range(self.levels)):
            columns.append(self._node_codes[level][nodes])
            if level:  # of every node at once: quicker than `parents`
                sizes = self._offsets[level].diff().long()
                nodes = torch.arange(len(sizes), device=self.device).repeat_interleave(sizes)[nodes]
        return torch.stack(columns[::-1], dim=-1)

    def item_codes(self) -> Tensor:
        """Codes by item index, -1 where an index has no item any more. Shape: `(index_bound, levels)`, int64."""
        codes = torch.full((self.index_bound, self.levels), -1, device=self.device)
        codes[self._items.long()] = self._sorted_codes().long()
        return codes

    def places(self, items: Tensor) -> Tensor:
        """Where items stand in the order of the leaves, -1 for indices without an item. Same shape, int64."""
        if self._place_of is None:
            place_of = torch.full((self.index_bound,), -1, dtype=self._items.dtype, device=self.device)
            place_of[self._items.long()] = torch.arange(self.num_items, dtype=self._items.dtype, device=self.device)
            self._place_of = place_of
        known = (items >= 0) & (items < self.index_bound)
        return self._place_of[items.clamp(0, self.index_bound - 1)].long().masked_fill(~known, -1)

    def place_range(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """First place and end of the items under nodes of depth `depth`; an empty range for node -1.

        Shape: both like `nodes`, int64.
        """
        first = nodes.clamp_min(0)
        end = first + 1
        for offsets in self._offsets[depth:]:
            first, end = offsets[first].long(), offsets[end].long()
        return first, torch.where(nodes >= 0, end, first)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._items.device

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def children(self, depth: int, nodes: Tensor) -> Tensor:
        """Children of nodes, padded to the largest number of children at that depth.

        Args:
            depth: depth of `nodes`; `levels` gives the places of the items under leaves (see [`SCIDTrie.items`]).
            nodes: node ids of that depth, -1 for none.
                Shape: `(batch, beams)`.

        Returns:
            Node ids of depth `depth + 1`, ascending for each node, -1 for none.
            Shape: `(batch, beams, max_children[depth])`, int64.
        """
        offsets = self._offsets[depth]
        parents = nodes.clamp_min(0)
        first = offsets[parents].long().unsqueeze(-1)
        # Node -1 reads the range of node 0; ending it at 0 leaves none of it.
        end = torch.where(nodes >= 0, offsets[parents + 1].long(), 0).unsqueeze(-1)
        child = first + torch.arange(self.max_children[depth], device=nodes.device)
        return torch.where(child < end, child, -1)

    def parents(self, depth: int, nodes: Tensor) -> Tensor:
        """Parents of nodes of depth `depth` >= 1, which are nodes of depth `depth - 1`. Same shape, int64."""
        offsets = self._offsets[depth - 1]
        return torch.searchsorted(offsets, nodes.to(offsets.dtype).contiguous(), right=True) - 1

    def codes(self, depth: int, nodes: Tensor) -> Tensor:
        """Last code of the prefixes `nodes` of depth `depth` >= 1; 0 where the node is -1. Same shape, int64."""
        return self._node_codes[depth - 1][nodes.clamp_min(0)].long().masked_fill(nodes < 0, 0)

    def items(self, leaves: Tensor) -> Tensor:
        """Items that carry the SCIDs of `leaves`, in the order of item indices, -1 for none.

        Shape: `(batch, n)` -> `(batch, n, max_children[levels])`, int64.
        """
        places = self.children(self.levels, leaves)
        return self._items[places.clamp_min(0)].long().masked_fill(places < 0, -1)

    def paths(self, depth: int) -> Tensor:
        """All distinct prefixes of `depth` >= 1 codes in node order. Shape: `(num_nodes[depth - 1], depth)`, int64."""
        columns = []
        nodes = torch.arange(self.num_nodes[depth - 1], device=self.device)
        for level in reversed(range(depth)):
            columns.append(self.codes(level + 1, nodes))
            nodes = self.parents(level + 1, nodes)
        return torch.stack(columns[::-1], dim=-1)

    def to(self, device: torch.device | str) -> "SCIDTrie":
        """The same tree on another device."""
        moved = [tensor.to(device) for tensor in self._tensors().values()]
        cut = self.levels + 1
        return SCIDTrie(moved[:cut], moved[cut:-1], moved[-1], self.codebook_sizes, self.index_bound)

    def save(self, path: str | Path, fingerprint: str | None = None) -> None:
        """Write the tree as one safetensors file.

        Args:
            path: the file.
            fingerprint: [`codes_fingerprint`] of the table that the tree was made from; computed where it is None.
        """
        about = {
            "format": _FORMAT,
            "codebook_sizes": self.codebook_sizes,
            "index_bound": self.index_bound,
            "fingerprint": fingerprint or codes_fingerprint(self.item_codes().cpu().numpy(), self.codebook_sizes),
        }
        # One entry: safetensors writes several in no fixed order, and equal trees must give equal files.
        metadata = {"trie": json.dumps(about)}
        save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu", fingerprint: str | None = None) -> "SCIDTrie":
        """Read a tree that [`SCIDTrie.save`] wrote.

        Args:
            path: the file.
            device: where to put the tensors.
            fingerprint: [`codes_fingerprint`] of the codes that the tree must hold; not checked where it is None.

        Raises:
            InputError: the file is missing, not such a file, or holds other codes than `fingerprint` says.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                about: dict[str, Any] = json.loads((file.metadata() or {}).get("trie", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except Exception as error:  # safetensors raises its own, OSError and FileNotFoundError alike
            raise InputError(f"{path}: cannot be read as a trie ({error}); write it with SCIDTrie.save") from error
        if about.get("format") != _FORMAT:
            raise InputError(f"{path}: format is {about.get('format')!r}, expected {_FORMAT!r}; no SCIDTrie file")
        if fingerprint is not None and about["fingerprint"] != fingerprint:
            raise InputError(f"{path}: was made from another table of codes; build it again with SCIDTrie.from_codes")
        sizes = tuple(about["codebook_sizes"])
        offsets = [tensors[f"offsets.{depth}"] for depth in range(len(sizes) + 1)]
        node_codes = [tensors[f"codes.{depth + 1}"] for depth in range(len(sizes))]
        return cls(offsets, node_codes, tensors["items"], sizes, about["index_bound"])

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"offsets.{depth}": offset for depth, offset in enumerate(self._offsets)}
        named |= {f"codes.{depth + 1}": codes for depth, codes in enumerate(self._node_codes)}
        return named | {"items": self._items}

    def __repr__(self) -> str:
        return f"SCIDTrie(items={self.num_items}, nodes={self.num_nodes}, codebook_sizes={self.codebook_sizes})"
