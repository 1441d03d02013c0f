"""Rows of codes, one an item: their check, their order, their content hash."""

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from align3gr.errors import InputError


def codes_fingerprint(codes: np.ndarray, codebook_sizes: Sequence[int]) -> str:
    """Content hash of a table of codes. Shape: `codes` `(items, levels)`, of any integer type."""
    digest = hashlib.sha256(json.dumps([list(map(int, codebook_sizes)), list(codes.shape)]).encode())
    digest.update(np.ascontiguousarray(codes, dtype="<i4").data)
    return digest.hexdigest()


def code_dtype(sizes: tuple[int, ...]) -> torch.dtype:
    """The smallest signed type that holds every code."""
    return torch.int16 if max(sizes) <= 2**15 else torch.int32


def lexicographic_order(codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Rows in the order of their codes, equal ones in the order they came in. Shape: `(items,)`, int64."""
    if math.prod(sizes) < 2**63:  # a SCID fits one integer: one sort, not one a level
        key = codes[:, 0].to(torch.long, copy=True)
        for level, size in enumerate(sizes[1:], start=1):
            key = key.mul_(size).add_(codes[:, level])
        return key.argsort(stable=True)
    order = torch.arange(len(codes), device=codes.device)
    for level in reversed(range(len(sizes))):
        order = order[codes[order, level].argsort(stable=True)]
    return order


def check_codes(codes: Tensor, sizes: tuple[int, ...]) -> None:
    """Refuse codes of which no tree can be made.

    Raises:
        InputError: no items, no integers, another number of levels than sizes, or a code outside its codebook.
    """
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
