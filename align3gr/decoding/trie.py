"""The catalogue as a prefix tree over SCIDs, held as flat tensors on the model's device.

Decisions:

* **CSR, not nested dicts or dense tables.** The distinct prefixes of a length are numbered in lexicographic code
  order, so a node's children are one contiguous range, any number of levels and any codebook size cost 4 bytes a node
  plus 2 a code, and a step for a whole batch of beams is three gathers.
* **Node order is code order.** Whoever keeps beams sorted by node id gets ties broken by code order for free.
* **Items hang under leaves as one more level**, so catalogues in which several items share a SCID need no special
  case.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from align3gr.errors import InputError

_FORMAT = "align3gr.scid_trie.v1"


class SCIDTrie:
    """Prefix tree of all item SCIDs. Build it with [`SCIDTrie.from_codes`] or [`SCIDTrie.load`].

    A node of depth `d` is a distinct prefix of `d` codes; its id is its rank in lexicographic order among the prefixes
    of that depth. Depth 0 has the root alone, depth `levels` the leaves. The children of a leaf are the items that
    carry its SCID, by item index.

    Attributes:
        levels: number of codes in a SCID.
        codebook_sizes: number of codes of each level.
        num_items: number of items (rows of the codes).
        num_nodes: number of nodes of depth 1, 2, ..., `levels`.
        max_children: largest number of children of a node of depth 0, 1, ..., `levels`; the last entry is the largest
            number of items that share one SCID.
    """

    def __init__(
        self, offsets: list[Tensor], node_codes: list[Tensor], items: Tensor, codebook_sizes: tuple[int, ...]
    ) -> None:
        self._offsets = offsets  # depth d: (nodes of depth d + 1,), children of node i are offsets[i]:offsets[i + 1]
        self._node_codes = node_codes  # depth d + 1: (nodes,), the last code of each prefix
        self._items = items  # (items,), grouped by leaf
        self.codebook_sizes = codebook_sizes
        self.levels = len(codebook_sizes)
        self.num_items = items.numel()
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
        _check_codes(codes, sizes)
        codes = codes.long()
        items, levels = codes.shape
        # Stable sorts from the last level to the first: lexicographic, and by item index within a SCID.
        order = torch.arange(items, device=codes.device)
        for level in reversed(range(levels)):
            order = order[codes[order, level].argsort(stable=True)]
        codes = codes[order]  # (items, levels)

        # starts[d]: first row of each node of depth d in the sorted codes.
        starts = [torch.zeros(1, dtype=torch.long, device=codes.device)]
        is_new = torch.ones(items, dtype=torch.bool, device=codes.device)
        is_new[1:] = False
        for level in range(levels):
            is_new[1:] |= codes[1:, level] != codes[:-1, level]
            starts.append(is_new.nonzero().squeeze(-1))
        starts.append(torch.arange(items, device=codes.device))

        index_dtype = torch.int32 if items < 2**31 else torch.int64
        code_dtype = torch.int16 if max(sizes) <= 2**15 else torch.int32
        end = torch.tensor([items], device=codes.device)
        offsets = [
            torch.searchsorted(starts[depth + 1], torch.cat([starts[depth], end])).to(index_dtype)
            for depth in range(levels + 1)
        ]
        node_codes = [codes[starts[level + 1], level].to(code_dtype) for level in range(levels)]
        return cls(offsets, node_codes, order.to(index_dtype), sizes)

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
            nodes = torch.searchsorted(self._offsets[level].long(), nodes, right=True) - 1
        return torch.stack(columns[::-1], dim=-1)

    def to(self, device: torch.device | str) -> "SCIDTrie":
        """The same tree on another device."""
        moved = [tensor.to(device) for tensor in self._tensors().values()]
        cut = self.levels + 1
        return SCIDTrie(moved[:cut], moved[cut:-1], moved[-1], self.codebook_sizes)

    def save(self, path: str | Path) -> None:
        """Write the tree as one safetensors file."""
        metadata = {"format": _FORMAT, "codebook_sizes": json.dumps(self.codebook_sizes)}
        save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "SCIDTrie":
        """Read a tree that [`SCIDTrie.save`] wrote.

        Raises:
            InputError: the file is missing or not such a file.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata: dict[str, Any] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except Exception as error:  # safetensors raises its own, OSError and FileNotFoundError alike
            raise InputError(f"{path}: cannot be read as a trie ({error}); write it with SCIDTrie.save") from error
        if metadata.get("format") != _FORMAT:
            raise InputError(f"{path}: format is {metadata.get('format')!r}, expected {_FORMAT!r}; no SCIDTrie file")
        sizes = tuple(json.loads(metadata["codebook_sizes"]))
        offsets = [tensors[f"offsets.{depth}"] for depth in range(len(sizes) + 1)]
        return cls(offsets, [tensors[f"codes.{depth + 1}"] for depth in range(len(sizes))], tensors["items"], sizes)

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"offsets.{depth}": offset for depth, offset in enumerate(self._offsets)}
        named |= {f"codes.{depth + 1}": codes for depth, codes in enumerate(self._node_codes)}
        return named | {"items": self._items}

    def __repr__(self) -> str:
        return f"SCIDTrie(items={self.num_items}, nodes={self.num_nodes}, codebook_sizes={self.codebook_sizes})"


def _check_codes(codes: Tensor, sizes: tuple[int, ...]) -> None:
    if codes.ndim != 2 or codes.is_floating_point() or codes.is_complex():
        shape = tuple(codes.shape)
        raise InputError(f"codes: got {codes.dtype} of shape {shape}, expected integers of shape (items, levels)")
    if codes.shape[1] != len(sizes) or not sizes:
        raise InputError(f"codes: {codes.shape[1]} levels but codebook_sizes names {len(sizes)}; give a size a level")
    if codes.shape[0] == 0:
        raise InputError("codes: no items; a catalogue needs at least one")
    outside = (codes < 0) | (codes >= torch.tensor(sizes, device=codes.device))
    if outside.any():
        item, level = (int(index) for index in outside.nonzero()[0])
        raise InputError(
            f"codes: item {item} has code {int(codes[item, level])} at level {level}, "
            f"expected 0 to {sizes[level] - 1}; check codebook_sizes"
        )
