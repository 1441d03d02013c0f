"""Unique item codes: what is done about items that were given the same codes, and what it costs.

| strategy | what it does | who uses it |
|---|---|---|
| `assignment` | within each group that shares all levels but the last, last codes of least total distance | default |
| `sinkhorn` | the same groups, last codes spread by an entropic transport plan, in rounds | LC-Rec |
| `nearest-free` | each collided item but the best one takes the cheapest path of codes that is free, at any level | |
| `extra-level` | one more level that numbers the items of a group | TIGER |
| `item-token` | one more level of as many codes as items, a code for each item alone | |
| `none` | items go on sharing; decoding ranks those of one SCID by their row | |
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align3gr.errors import InputError

STRATEGIES = ("assignment", "sinkhorn", "nearest-free", "extra-level", "item-token", "none")
# Those that leave the codes as they are and put a level behind them, which holds the items of today and no others.
ADDED_LEVEL = ("extra-level", "item-token")


@dataclass
class CollisionReport:
    """What it cost to make the codes unique.

    Attributes:
        strategy: what was done.
        collided: items that shared their codes with another item before, one whose codes were taken already included.
        moved: items whose codes changed; 0 with an extra level, which leaves the others as they are.
        extra_distance: mean increase of the squared distance between an item's latent and the sum of its code vectors,
            over all items.
        remaining: items that still share their codes; 0 except with `none`.
    """

    strategy: str
    collided: int
    moved: int
    extra_distance: float
    remaining: int


def resolve_collisions(
    codes: np.ndarray,
    latents: np.ndarray | None = None,
    codebooks: Sequence[np.ndarray] = (),
    strategy: str = "assignment",
    taken: np.ndarray | set[tuple[int, ...]] | None = None,
) -> tuple[np.ndarray, CollisionReport]:
    """Gives every item codes of its own.

    Args:
        codes: `(items, levels)` int64.
        latents: `(items, dim)` what the code books quantised.
        codebooks: code vectors of each level, `(codes, dim)`. Imported codes have neither latents nor code books, and
            can only be resolved by `extra-level`, `item-token` or `none`.
        strategy: one of `STRATEGIES`.
        taken: `(others, levels)` codes that belong to other items already and stay theirs; `nearest-free` only. A set
            of paths also receives those that are given now.

    Returns:
        Codes, `(items, levels)`, or one level more for `extra-level` and `item-token`; and the report.

    Raises:
        InputError: the strategy is unknown or lacks what it needs, or the code books have no room.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"collisions: got '{strategy}', choose from {', '.join(STRATEGIES)}")
    # A set is the caller's own, which receives the paths given now.
    used = taken if isinstance(taken, set) else {tuple(path) for path in ([] if taken is None else taken.tolist())}
    before, collided = codes, _collided(codes, used)
    if strategy == "none":
        codes = codes.copy()
    elif strategy == "extra-level":
        codes = np.concatenate([codes, _number_within_groups(codes)[:, None]], axis=1)
    elif strategy == "item-token":
        codes = np.concatenate([codes, np.arange(len(codes), dtype=np.int64)[:, None]], axis=1)
    elif latents is None or not len(codebooks):
        raise InputError(
            f"collisions: '{strategy}' needs latents and code books; take {', '.join(ADDED_LEVEL)} or none"
        )
    else:
        books = [np.asarray(book, dtype=np.float32) for book in codebooks]
        latents = np.asarray(latents, dtype=np.float32)
        codes = codes.copy()
        if strategy == "nearest-free":
            _take_free_paths(codes, latents, books, used)
        else:
            _spill_large_groups(codes, latents, books)
            _reassign_last_level(codes, latents, books, strategy)
    _, counts = np.unique(codes, axis=0, return_counts=True)
    remaining = int(counts[counts > 1].sum())
    if remaining and strategy != "none":
        raise RuntimeError(f"{remaining} items still share their codes after '{strategy}'")
    moved, extra = _cost(before, codes, latents, codebooks)
    return codes, CollisionReport(strategy, collided, moved, extra, remaining)


def distances(codes: np.ndarray, latents: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Squared distance of each latent to the sum of its code vectors. Shape: -> `(items,)`."""
    total = sum(book[codes[:, level]] for level, book in enumerate(codebooks))
    return np.square(latents - total).sum(1)


def _number_within_groups(codes: np.ndarray) -> np.ndarray:
    """0, 1, ... over the items that share their codes, in row order. Shape: `(items,)`."""
    _, group = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    numbers = np.empty(len(codes), dtype=np.int64)
    numbers[order] = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    return numbers


def _groups(prefixes: np.ndarray) -> list[np.ndarray]:
    """Rows that share a prefix, group by group."""
    _, group, counts = np.unique(prefixes, axis=0, return_inverse=True, return_counts=True)
    return np.split(np.argsort(group, kind="stable"), np.cumsum(counts)[:-1])


def _reassign_last_level(codes: np.ndarray, latents: np.ndarray, books: Sequence[np.ndarray], strategy: str) -> None:
    """Unique last codes within each group that shares the levels before, in place."""
    from scipy.optimize import linear_sum_assignment

    last = books[-1]
    residuals = latents - sum((book[codes[:, level]] for level, book in enumerate(books[:-1])), np.float32(0))
    for rows in _groups(codes[:, :-1]) if codes.shape[1] > 1 else [np.arange(len(codes))]:
        if len(rows) > len(last):
            raise InputError(f"codes: {len(rows)} items share a prefix and the last level has only {len(last)} codes")
        if len(np.unique(codes[rows, -1])) == len(rows):
            continue
        distance = np.square(residuals[rows, None] - last[None]).sum(-1)
        if strategy == "sinkhorn":
            distance = _sinkhorn_cost(distance)
        codes[rows, -1] = linear_sum_assignment(distance)[1]


def _sinkhorn_cost(distance: np.ndarray, epsilon: float = 0.05, iterations: int = 50) -> np.ndarray:
    """Minus the logarithm of a balanced transport plan, whose rounding to unique codes is an assignment."""
    log_plan = -distance.astype(np.float64) / (epsilon * max(float(np.ptp(distance)), 1e-12))
    share = np.log(distance.shape[0] / distance.shape[1])
    for _ in range(iterations):
        log_plan -= np.logaddexp.reduce(log_plan, 0, keepdims=True) - share
        log_plan -= np.logaddexp.reduce(log_plan, 1, keepdims=True)
    return -log_plan


def _take_free_paths(
    codes: np.ndarray, latents: np.ndarray, books: Sequence[np.ndarray], used: set[tuple[int, ...]]
) -> None:
    """The best item of a group keeps its codes, the others take the cheapest path that is not used, in place."""
    order = np.argsort(distances(codes, latents, books), kind="stable")
    kept, later = set(), []
    for row in order:
        path = tuple(codes[row].tolist())
        if path in used or path in kept:
            later.append(row)
        else:
            kept.add(path)
    room = int(np.prod([float(len(book)) for book in books], dtype=np.float64)) - len(used) - len(kept)
    if len(later) > room:
        raise InputError(f"codes: {len(later)} items need free codes, the code books have {room}; enlarge them")
    used |= kept
    for row in later:
        width = 8
        while True:
            free = [path for path in _cheapest_paths(latents[row], books, width) if path not in used]
            if free:
                break
            width *= 4
        used.add(free[0])
        codes[row] = free[0]


def _cheapest_paths(latent: np.ndarray, books: Sequence[np.ndarray], width: int) -> list[tuple[int, ...]]:
    """Paths of codes near a latent, cheapest first: a search that keeps the `width` best codes of each prefix."""
    paths, residuals = np.zeros((1, 0), dtype=np.int64), latent[None]
    for book in books:
        distance = np.square(residuals[:, None] - book[None]).sum(-1)
        keep = min(width, len(book))
        best = np.argsort(distance, axis=1, kind="stable")[:, :keep]
        paths = np.concatenate([np.repeat(paths, keep, 0), best.reshape(-1, 1)], axis=1)
        residuals = np.repeat(residuals, keep, 0) - book[best.ravel()]
    order = np.argsort(np.square(residuals).sum(1), kind="stable")
    return [tuple(path) for path in paths[order].tolist()]


def _spill_large_groups(codes: np.ndarray, latents: np.ndarray, books: Sequence[np.ndarray]) -> None:
    """Moves items out of prefixes that hold more items than the last codebook has codes, in place."""
    size = len(books[-1])
    if codes.shape[1] < 2:
        return
    prefixes, group, counts = np.unique(codes[:, :-1], axis=0, return_inverse=True, return_counts=True)
    if counts.max() <= size:
        return
    room = {tuple(prefix): size - count for prefix, count in zip(prefixes.tolist(), counts.tolist(), strict=True)}
    previous = books[-2]
    for g in np.flatnonzero(counts > size):
        rows = np.flatnonzero(group == g)
        stem, own = tuple(prefixes[g, :-1].tolist()), int(prefixes[g, -1])
        stem_vector = sum((book[code] for book, code in zip(books, stem, strict=False)), np.float32(0))
        left = latents[rows] - stem_vector  # what the level before the last quantised
        distance = np.square(left[:, None] - previous[None]).sum(-1)
        loss = np.partition(distance, 1, axis=1)[:, 1] - distance[:, own]
        for i in np.argsort(loss, kind="stable")[: counts[g] - size]:
            for sibling in np.argsort(distance[i], kind="stable").tolist():
                if sibling != own and room.get((*stem, sibling), size) > 0:
                    room[(*stem, sibling)] = room.get((*stem, sibling), size) - 1
                    codes[rows[i], -2] = sibling
                    codes[rows[i], -1] = np.square(left[i] - previous[sibling] - books[-1]).sum(1).argmin()
                    break
            else:
                raise InputError(f"codes: no prefix beside {stem} has room; use larger codebooks or one more level")


def _collided(codes: np.ndarray, used: set[tuple[int, ...]]) -> int:
    """Items that share their codes with each other, or with what is used already. Shape: `(items, levels)`."""
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    shared = counts[inverse.ravel()] > 1
    if used:
        shared |= np.fromiter((tuple(path) in used for path in codes.tolist()), bool, len(codes))
    return int(shared.sum())


def _cost(
    before: np.ndarray, after: np.ndarray, latents: np.ndarray | None, codebooks: Sequence[np.ndarray]
) -> tuple[int, float]:
    """Items that moved, and the mean increase of the squared distance. Shapes: `(items, levels)` each."""
    same = after[:, : before.shape[1]]
    moved = (before != same).any(1)
    extra = 0.0
    if moved.any() and latents is not None:
        cost = (distances(codes[moved], latents[moved], codebooks) for codes in (same, before))
        extra = float((next(cost) - next(cost)).sum() / len(before))
    return int(moved.sum()), extra
