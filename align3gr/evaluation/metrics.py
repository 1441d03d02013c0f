"""Ranking metrics of leave-one-out evaluation: one relevant item a user, the whole catalogue ranked.

Functions of one list take arrays over users and give per-user values, so that a mean, an interval or a paired
test can be made of them. A ranking is a row of item indices, best first; -1 stands for "nothing more to show".
"""

from collections.abc import Sequence

import numpy as np

from align3gr.data.schema import DISLIKED_RATING, LIKED_RATING
from align3gr.errors import InputError

# Rank of a target that is not in the ranking: larger than any k, whatever the length of the ranking.
ABSENT = np.iinfo(np.int64).max

# Lengths of the lists in reports; only those that the ranking is long enough for are judged.
REPORTED_KS = (1, 5, 10, 20, 100)


def target_ranks(rankings: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The 0-based position of each user's target in their ranking.

    Args:
        rankings: (users, k) item indices, best first, -1 where a list is shorter.
        targets: (users,) item indices, not negative.

    Returns:
        (users,) int64; `ABSENT` where the target is not there.

    >>> target_ranks(np.array([[4, 2, 7], [1, 0, -1]]), np.array([7, 1])).tolist()
    [2, 0]
    """
    rankings, targets = np.asarray(rankings), np.asarray(targets)
    if rankings.ndim != 2 or targets.shape != rankings.shape[:1]:
        raise InputError(
            f"rankings and targets: got shapes {rankings.shape} and {targets.shape}, expected (users, k) and (users,)"
        )
    if targets.size and targets.min() < 0:
        raise InputError(f"targets: got {targets.min()}, expected item indices from 0 (-1 means no item in a ranking)")
    ranks = np.full(len(targets), ABSENT, dtype=np.int64)
    users, positions = np.nonzero(rankings == targets[:, None])
    # Reversed, so that the best position is written last should an item stand twice in a ranking.
    ranks[users[::-1]] = positions[::-1]
    return ranks


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    r"""Recall@k of each user: with one relevant item $[\mathrm{rank} < k]$, also known as hit rate.

    Args:
        ranks: (users,) 0-based ranks of `target_ranks`.
        k: length of the list that is judged.

    Returns:
        (users,) float64, 0 or 1.

    >>> recall_at_k(np.array([0, 3, 9, ABSENT]), k=5).mean()
    np.float64(0.5)
    """
    return (np.asarray(ranks) < _positive(k)).astype(np.float64)


def ndcg_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    r"""NDCG@k of each user: with one relevant item the ideal gain is 1, so it is the gain of the target itself,
    $[\mathrm{rank} < k] / \log_2(\mathrm{rank} + 2)$.

    Args:
        ranks: (users,) 0-based ranks of `target_ranks`.
        k: length of the list that is judged.

    Returns:
        (users,) float64 between 0 and 1.

    >>> ndcg_at_k(np.array([0, 2, ABSENT]), k=5).tolist()
    [1.0, 0.5, 0.0]
    """
    ranks = np.asarray(ranks)
    # The clip keeps ABSENT + 2 from overflowing; what it changes is multiplied by 0.
    return recall_at_k(ranks, k) / np.log2(np.minimum(ranks, k) + 2.0)


def mrr_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    r"""Reciprocal rank of each user's target within k, $[\mathrm{rank} < k] / (\mathrm{rank} + 1)$; its mean is
    MRR@k.

    Args:
        ranks: (users,) 0-based ranks of `target_ranks`.
        k: length of the list that is judged.

    Returns:
        (users,) float64 between 0 and 1.

    >>> mrr_at_k(np.array([0, 3, ABSENT]), k=5).tolist()
    [1.0, 0.25, 0.0]
    """
    ranks = np.asarray(ranks)
    return recall_at_k(ranks, k) / (np.minimum(ranks, k) + 1.0)


def reported_ks(k: int, num_beams: int) -> tuple[int, ...]:
    """The lengths of `REPORTED_KS` that lists of k items can answer.

    Args:
        k: length of the lists.
        num_beams: beam of the search, which no list can exceed.

    Raises:
        InputError: k is longer than the beam, or not positive.

    >>> reported_ks(20, num_beams=20)
    (1, 5, 10, 20)
    """
    if _positive(k) > num_beams:
        raise InputError(f"k: got {k}, but the search keeps num_beams={num_beams} items; raise num_beams or lower k")
    return tuple(length for length in REPORTED_KS if length <= k)


# Name in reports -> function of (ranks, k).
RANK_METRICS = {"recall": recall_at_k, "ndcg": ndcg_at_k, "mrr": mrr_at_k}


def mean_metrics(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Means of every rank metric at every k, such as `recall@10`, and the number of `users`; all 0 without users.

    Args:
        ranks: of the targets, from 0; `ABSENT` where the list lacks it.
        ks: lengths of the lists.

    >>> mean_metrics(np.array([1, ABSENT]), ks=[2])["mrr@2"]
    0.25
    """
    means = {
        f"{name}@{k}": float(metric(ranks, k).mean()) if len(ranks) else 0.0
        for k in ks
        for name, metric in RANK_METRICS.items()
    }
    return means | {"users": len(ranks)}


def is_repeat(targets: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
    """Whether each target stands in the user's history.

    Args:
        targets: (users,) item indices.
        histories: for each user the whole history, item indices.

    Returns:
        (users,) bool.

    >>> is_repeat(np.array([3, 3]), [np.array([1, 3]), np.array([1, 2])]).tolist()
    [True, False]
    """
    targets = np.asarray(targets)
    if len(histories) != len(targets):
        raise InputError(f"histories: got {len(histories)}, expected one for each of {len(targets)} targets")
    # Without a conversion of each history, which would take most of the time of an evaluation.
    lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(targets))
    users = np.repeat(np.arange(len(targets)), lengths)
    items = np.concatenate([*histories, np.empty(0, np.int64)])
    return np.bincount(users[items == targets[users]], minlength=len(targets)) > 0


def three_columns(
    rankings_allowed: np.ndarray,
    rankings_masked: np.ndarray,
    targets: np.ndarray,
    histories: Sequence[np.ndarray],
    ks: Sequence[int] = (5, 10),
    ratings: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Recall, NDCG and MRR under the three protocols that published tables mix, side by side.

    - `seen_allowed`: any item may be shown; the protocol of generative recommenders.
    - `seen_masked`: items of the history are not shown and a repeated target is a miss.
    - `discoveries`: the masked ranking, over users whose target is not in their history.
    - `seen_allowed_repeats`, `seen_allowed_discoveries`: the first column, users with a repeated target, others.
    - with ratings, the first three again over users who rated the target 4 or higher: `seen_allowed_liked`, ...;
      and the first two over users who rated it 1 or lower: `seen_allowed_disliked`, `seen_masked_disliked`. There
      recall@k is the share of lists that show what the user turned out to dislike: lower is better.

    Args:
        rankings_allowed: (users, k) item indices, -1 where a list is shorter.
        rankings_masked: (users, k) the same without items of the user's history.
        targets: (users,) item indices.
        histories: for each user the whole history, item indices (not only the part a model saw).
        ks: lengths of the list that are judged; none longer than the rankings.
        ratings: (users,) rating of the target, NaN where there is none.

    Returns:
        For each column `recall@k`, `ndcg@k` and `mrr@k` for each k, means over its `users`; all are 0 without users.

    Raises:
        InputError: shapes do not fit, a k is longer than the rankings, or a masked ranking shows a seen target.
    """
    for name, rankings in (("rankings_allowed", rankings_allowed), ("rankings_masked", rankings_masked)):
        if max(ks) > np.shape(rankings)[1]:
            raise InputError(
                f"{name}: got lists of {np.shape(rankings)[1]} items, which cannot answer k={max(ks)}; rank more items"
            )
    allowed, masked = target_ranks(rankings_allowed, targets), target_ranks(rankings_masked, targets)
    repeat = is_repeat(targets, histories)
    if (masked[repeat] != ABSENT).any():
        row = np.flatnonzero(repeat & (masked != ABSENT))[0]
        raise InputError(f"rankings_masked: row {row} shows item {targets[row]} of its history; mask all of it")
    everyone = np.ones(len(repeat), dtype=bool)
    groups = {
        "seen_allowed": (allowed, everyone),
        "seen_masked": (masked, everyone),
        "discoveries": (masked, ~repeat),
        "seen_allowed_repeats": (allowed, repeat),
        "seen_allowed_discoveries": (allowed, ~repeat),
    }
    if ratings is not None:
        # No rating is NaN, and every comparison with it is false.
        liked, disliked = np.asarray(ratings) >= LIKED_RATING, np.asarray(ratings) <= DISLIKED_RATING
        for name in ("seen_allowed", "seen_masked", "discoveries"):
            ranks, users = groups[name]
            groups[f"{name}_liked"] = (ranks, users & liked)
        groups["seen_allowed_disliked"] = (allowed, disliked)
        groups["seen_masked_disliked"] = (masked, disliked)
    return {name: mean_metrics(ranks[users], ks) for name, (ranks, users) in groups.items()}


def _positive(k: int) -> int:
    if k < 1:
        raise InputError(f"k: got {k}, expected at least 1")
    return k
