"""Unique item codes: items that were given the same codes are told apart by the last level."""

from dataclasses import dataclass

import numpy as np

from align3gr.errors import InputError


@dataclass
class CollisionReport:
    """What it cost to make the codes unique.

    Attributes:
        collided: items that shared their codes with another item before.
        moved: items whose codes changed.
        extra_distance: mean increase of the squared distance to the code vector, over all items.
    """

    collided: int
    moved: int
    extra_distance: float


def resolve_collisions(
    codes: np.ndarray, residuals: np.ndarray, last_codebook: np.ndarray, previous_codebook: np.ndarray | None = None
) -> tuple[np.ndarray, CollisionReport]:
    """Gives every item its own codes by re-assigning the last level, at the least total distance.

    Items that share all levels but the last compete for the last codebook; each such group is a linear assignment
    problem and is solved exactly. A group larger than the codebook first sends the items that lose least to the
    nearest sibling prefix that has room.

    Args:
        codes: `(items, levels)` int64.
        residuals: `(items, dim)` what the last level quantised.
        last_codebook: `(codes, dim)` code vectors of the last level.
        previous_codebook: `(codes, dim)` code vectors of the level before, needed when a group is too large.

    Raises:
        InputError: there are more items than code combinations under a prefix and no sibling has room.
    """
    from scipy.optimize import linear_sum_assignment

    before = codes
    codes, residuals = codes.copy(), residuals.copy()
    size = len(last_codebook)
    if codes.shape[1] > 1:
        _spill_large_groups(codes, residuals, last_codebook, previous_codebook)
    _, group, counts = np.unique(codes[:, :-1], axis=0, return_inverse=True, return_counts=True)
    if counts.max() > size:
        raise InputError(f"codes: {counts.max()} items share a prefix and the last level has only {size} codes")
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(counts)[:-1])
    for rows in members:
        if len(np.unique(codes[rows, -1])) == len(rows):
            continue
        distance = ((residuals[rows, None] - last_codebook[None]) ** 2).sum(-1)
        codes[rows, -1] = linear_sum_assignment(distance)[1]
    if len(np.unique(codes, axis=0)) != len(codes):
        raise RuntimeError("items still share their codes after resolve_collisions")
    return codes, _report(before, codes, residuals, last_codebook)


def _spill_large_groups(
    codes: np.ndarray, residuals: np.ndarray, last_codebook: np.ndarray, previous_codebook: np.ndarray | None
) -> None:
    """Moves items out of prefixes that hold more items than the last codebook has codes, in place."""
    size = len(last_codebook)
    prefixes, group, counts = np.unique(codes[:, :-1], axis=0, return_inverse=True, return_counts=True)
    if counts.max() <= size:
        return
    if previous_codebook is None:
        raise InputError(f"codes: {counts.max()} items share a prefix, more than the last level's {size} codes")
    room = {tuple(prefix): size - count for prefix, count in zip(prefixes.tolist(), counts.tolist(), strict=True)}
    for g in np.flatnonzero(counts > size):
        rows = np.flatnonzero(group == g)
        stem, own = tuple(prefixes[g, :-1].tolist()), int(prefixes[g, -1])
        full = residuals[rows] + previous_codebook[own]  # what the level before the last quantised
        distance = ((full[:, None] - previous_codebook[None]) ** 2).sum(-1)
        loss = np.partition(distance, 1, axis=1)[:, 1] - distance[:, own]
        for i in np.argsort(loss, kind="stable")[: counts[g] - size]:
            for sibling in np.argsort(distance[i], kind="stable").tolist():
                if sibling != own and room.get((*stem, sibling), size) > 0:
                    room[(*stem, sibling)] = room.get((*stem, sibling), size) - 1
                    codes[rows[i], -2] = sibling
                    residuals[rows[i]] = full[i] - previous_codebook[sibling]
                    codes[rows[i], -1] = ((residuals[rows[i]] - last_codebook) ** 2).sum(1).argmin()
                    break
            else:
                raise InputError(f"codes: no prefix beside {stem} has room; use larger codebooks or one more level")


def _report(before: np.ndarray, after: np.ndarray, residuals: np.ndarray, codebook: np.ndarray) -> CollisionReport:
    _, inverse, counts = np.unique(before, axis=0, return_inverse=True, return_counts=True)
    same_prefix = (before[:, :-1] == after[:, :-1]).all(1)
    cost = ((residuals - codebook[after[:, -1]]) ** 2).sum(1) - ((residuals - codebook[before[:, -1]]) ** 2).sum(1)
    return CollisionReport(
        collided=int((counts[inverse] > 1).sum()),
        moved=int((before != after).any(1).sum()),
        extra_distance=float(np.where(same_prefix, cost, 0).mean()),
    )
