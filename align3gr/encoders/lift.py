"""How much vectors know about behaviour, before any code is made from them."""

from collections.abc import Sequence

import numpy as np


def cluster_lift(vectors: np.ndarray, sequences: Sequence[np.ndarray], clusters: int = 256, seed: int = 0) -> float:
    """How much more often two consecutive items of a user share a cluster than two random interactions do.

    The clusters are those of k-means on the vectors scaled to length 1; they stand for the first code of an SCID. 1 is
    chance. Pairs of an item with itself are left out.

    Args:
        vectors: `(items, dim)`.
        sequences: item indices of each user, oldest first.
        clusters: at most; a small catalogue has no more than a quarter of its items.
        seed: of k-means and of the random pairs.
    """
    from sklearn.cluster import MiniBatchKMeans

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    number = max(1, min(clusters, len(vectors) // 4))
    kmeans = MiniBatchKMeans(number, n_init=1, batch_size=4096, random_state=seed)
    return label_lift(kmeans.fit_predict(unit), sequences, seed)


def label_lift(labels: np.ndarray, sequences: Sequence[np.ndarray], seed: int = 0) -> float:
    """The same for given labels `(items,)`. NaN where there is no pair, or no random pair shares a label."""
    empty = [np.zeros(0, np.int64)]
    first = np.concatenate([sequence[:-1] for sequence in sequences] or empty)
    second = np.concatenate([sequence[1:] for sequence in sequences] or empty)
    apart = first != second
    first, second = labels[first[apart]], labels[second[apart]]
    random = np.random.default_rng(seed).permutation(second)
    by_chance = (first == random).mean() if len(first) else 0
    return float((first == second).mean() / by_chance) if by_chance else float("nan")
