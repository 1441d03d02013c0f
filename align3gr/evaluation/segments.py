"""Where the hits come from: metrics by history length, popularity and novelty of the target, and the SCID level at
which a target was lost."""

from collections.abc import Mapping, Sequence

import numpy as np

from align3gr.errors import InputError
from align3gr.evaluation.metrics import mean_metrics

# Upper ends of the bins, the last of which is open.
HISTORY_LENGTHS = (5, 10, 20, 50)
TRAIN_COUNTS = (0, 5, 20, 100)


def bins(values: np.ndarray, upper: Sequence[int]) -> dict[str, np.ndarray]:
    """Which values fall into each bin of whole numbers from 0 on.

    Args:
        values: (users,) whole numbers, not negative.
        upper: the largest value of each bin but the last, ascending.

    Returns:
        For each bin, named by its ends, (users,) bool.

    >>> {name: inside.tolist() for name, inside in bins(np.array([0, 3, 9]), upper=(0, 5)).items()}
    {'0': [True, False, False], '1-5': [False, True, False], '6+': [False, False, True]}
    """
    values = np.asarray(values)
    found: dict[str, np.ndarray] = {}
    low = 0
    for high in upper:
        found[str(high) if low == high else f"{low}-{high}"] = (values >= low) & (values <= high)
        low = high + 1
    return found | {f"{low}+": values >= low}


def segment_users(
    history_lengths: np.ndarray, train_counts: np.ndarray, repeat: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """The segments of a report: each divides all users.

    - `history length`: interactions before the target, the whole history.
    - `target popularity`: train interactions of the target; bin `0` are the cold items.
    - `target`: `repeat` if it stands in the history, else `discovery`.

    Args:
        history_lengths: (users,)
        train_counts: (users,) train interactions of each user's target.
        repeat: (users,) bool, see [`is_repeat`].

    Returns:
        For each segment its parts by name, each (users,) bool.
    """
    repeat = np.asarray(repeat, dtype=bool)
    return {
        "history length": bins(history_lengths, HISTORY_LENGTHS),
        "target popularity": bins(train_counts, TRAIN_COUNTS),
        "target": {"repeat": repeat, "discovery": ~repeat},
    }


def segment_metrics(
    ranks: np.ndarray, segments: Mapping[str, Mapping[str, np.ndarray]], ks: Sequence[int]
) -> dict[str, dict[str, dict[str, float]]]:
    """Means of the rank metrics over the users of each part; parts without users are left out.

    Args:
        ranks: (users,) 0-based ranks of `target_ranks`.
        segments: see [`segment_users`].
        ks: lengths of the lists that are judged.

    >>> parts = {"target": {"repeat": np.array([True, False, True])}}
    >>> segment_metrics(np.array([0, 1, 7]), parts, ks=[5])["target"]["repeat"]["recall@5"]
    0.5
    """
    return {
        segment: {name: mean_metrics(ranks[users], ks) for name, users in parts.items() if users.any()}
        for segment, parts in segments.items()
    }


def shared_levels(rankings: np.ndarray, targets: np.ndarray, codes: np.ndarray) -> np.ndarray:
    r"""How far each list comes towards its target: the longest prefix of the target's SCID that any item of the list
    shares, $\max_{i \in L_u} p_{i t_u}$.

    Args:
        rankings: (users, k) item indices, -1 where a list is shorter.
        targets: (users,) item indices.
        codes: (items, levels) SCIDs.

    Returns:
        (users,) int64 from 0 (not even the first level; also an empty list) to levels.

    >>> codes = np.array([[0, 0], [0, 1], [1, 1]])
    >>> shared_levels(np.array([[1, 2], [2, -1], [0, 2]]), np.array([0, 0, 0]), codes).tolist()
    [1, 0, 2]
    """
    rankings, targets, codes = np.asarray(rankings), np.asarray(targets), np.asarray(codes)
    if max(rankings.max(initial=0), targets.max(initial=0)) >= len(codes):
        raise InputError(f"codes: got {len(codes)} rows, expected one for each item of the rankings and targets")
    longest = np.zeros(len(targets), dtype=np.int64)
    sharing = rankings >= 0
    for column in codes.T:
        sharing &= column[rankings] == column[targets][:, None]
        longest += sharing.any(axis=1)
    return longest


def lost_levels(rankings: np.ndarray, targets: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """Where the search lost the targets that are not in the lists, see [`shared_levels`].

    Args:
        rankings: (users, k) item indices, -1 where a list is shorter.
        targets: (users,) item indices.
        codes: (items, levels) SCIDs.

    Returns:
        Key "0": share of these users of whose target no shown item shares the first level, "1": some item shares the
        first level but none the second, ... The last key, the number of levels, can only be reached where items share
        an SCID. The shares add up to 1 (all are 0 where nothing is lost); `users` is the number of lost targets.

    >>> codes = np.array([[0, 0], [0, 1], [1, 1]])
    >>> lost_levels(np.array([[1, 2], [2, -1], [0, 2]]), np.array([0, 0, 0]), codes)
    {'0': 0.5, '1': 0.5, '2': 0.0, 'users': 2}
    """
    lost = ~(np.asarray(rankings) == np.asarray(targets)[:, None]).any(axis=1)
    levels = np.shape(codes)[1]
    counts = np.bincount(shared_levels(rankings, targets, codes)[lost], minlength=levels + 1)
    shares = counts / max(int(lost.sum()), 1)
    return {str(level): float(share) for level, share in enumerate(shares)} | {"users": int(lost.sum())}
