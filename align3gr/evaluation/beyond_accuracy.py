"""What a list is worth beside its hits: how much of the catalogue is shown, how popular, how varied, how disliked.

A ranking is a row of item indices, best first; -1 stands for "nothing more to show" and is left out everywhere.
Functions of one list give per-user values, NaN for a user who has no value; functions of all lists give one number.
"""

import numpy as np
import scipy.sparse as sp

from align3gr.errors import InputError

# Lists whose vectors are summed at a time: 768 dimensions x 16,384 users are 50 MB in fp32.
_USERS_AT_A_TIME = 16_384


def exposure(rankings: np.ndarray, num_items: int) -> np.ndarray:
    """How often each item is shown.

    Args:
        rankings: (users, k) item indices, -1 where a list is shorter.
        num_items: size of the catalogue.

    Returns:
        (items,) int64.

    Raises:
        InputError: an item lies outside the catalogue.

    >>> exposure(np.array([[0, 2], [2, -1]]), num_items=4).tolist()
    [1, 0, 2, 0]
    """
    rankings = np.asarray(rankings)
    if rankings.size and rankings.max() >= num_items:
        raise InputError(f"rankings: got item {rankings.max()}, expected indices below num_items={num_items}")
    return np.bincount(rankings[rankings >= 0], minlength=num_items)


def catalogue_coverage(rankings: np.ndarray, num_items: int) -> float:
    r"""Share of the catalogue that stands in at least one list, $|\bigcup_u L_u| / |I|$.

    Args:
        rankings: item indices of each list, -1 where there is none. Shape: `(users, k)`.
        num_items: size of the catalogue.

    >>> catalogue_coverage(np.array([[0, 2], [2, -1]]), num_items=4)
    0.5
    """
    return float((exposure(rankings, num_items) > 0).mean())


def exposure_gini(rankings: np.ndarray, num_items: int) -> float:
    r"""Gini coefficient of the items' exposure, 0 where all are shown equally often, towards 1 where few are:
    $\sum_{i=1}^{n} (2i - n - 1) x_i / (n \sum_i x_i)$ with the exposures $x$ of all $n$ items in ascending order.

    Items that are never shown count. NaN where nothing is shown at all.

    Args:
        rankings: item indices of each list, -1 where there is none. Shape: `(users, k)`.
        num_items: size of the catalogue.

    >>> exposure_gini(np.array([[0, 1], [2, 3]]), num_items=4)
    0.0
    >>> exposure_gini(np.array([[0], [0]]), num_items=4)
    0.75
    """
    shown = np.sort(exposure(rankings, num_items)).astype(np.float64)
    if not shown.sum():
        return float("nan")
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ shown / (num_items * shown.sum()))


def recommendation_popularity(rankings: np.ndarray, train_counts: np.ndarray) -> np.ndarray:
    r"""Mean train count of the items in each list, $\frac{1}{|L_u|} \sum_{i \in L_u} c_i$. The mean over users is the
    average recommendation popularity (ARP; Yin et al. 2012).

    Args:
        rankings: (users, k) item indices, -1 where a list is shorter.
        train_counts: (items,) interactions of each item in the train split.

    Returns:
        (users,) float64, NaN for an empty list.

    >>> recommendation_popularity(np.array([[0, 1], [2, -1]]), np.array([9, 1, 4])).tolist()
    [5.0, 4.0]
    """
    rankings = np.asarray(rankings)
    shown = rankings >= 0
    counts = np.where(shown, np.asarray(train_counts)[rankings], 0)
    return _ratio(counts.sum(axis=1), shown.sum(axis=1))


def prefix_diversity(rankings: np.ndarray, codes: np.ndarray) -> np.ndarray:
    r"""Intra-list diversity by SCIDs: the mean over the pairs of a list of $1 - p_{ij} / H$, where $p_{ij}$ is the
    number of leading levels that the SCIDs of both items share and $H$ the number of levels.

    It depends on the code table: compare systems of one table only.

    Args:
        rankings: (users, k) item indices, -1 where a list is shorter.
        codes: (items, levels) SCIDs.

    Returns:
        (users,) float64 between 0 and 1, NaN for a list of fewer than two items.

    >>> codes = np.array([[0, 0], [0, 1], [1, 1]])
    >>> prefix_diversity(np.array([[0, 1, -1], [0, 2, -1], [0, 1, 2]]), codes).round(4).tolist()
    [0.5, 1.0, 0.8333]
    """
    rankings = np.asarray(rankings)
    shown = rankings >= 0
    shared = np.zeros(len(rankings))
    for prefixes in _prefix_numbers(codes):
        # Items of one prefix stand side by side in a sorted row; a group of c items has c (c - 1) / 2 pairs.
        rows = np.nonzero(shown)[0]
        keys = rows * (prefixes.max(initial=0) + 1) + prefixes[rankings[shown]]
        groups, sizes = np.unique(keys, return_counts=True)
        users = groups // (prefixes.max(initial=0) + 1)
        shared += np.bincount(users, weights=sizes * (sizes - 1) / 2, minlength=len(rankings))
    length = shown.sum(axis=1)
    return 1 - _ratio(shared / np.shape(codes)[1], length * (length - 1) / 2)


def vector_diversity(rankings: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    r"""Intra-list diversity by item vectors: the mean over the pairs of a list of $1 - \cos(v_i, v_j)$.

    A zero vector (nothing is known about the item) has cosine 0 with every other. The sum over pairs is
    $(\|\sum_i \hat v_i\|^2 - \sum_i \|\hat v_i\|^2) / 2$, so no pair is formed.

    Args:
        rankings: (users, k) item indices, -1 where a list is shorter.
        vectors: (items, dim) any vectors, such as the semantic embeddings.

    Returns:
        (users,) float64 between 0 and 2, NaN for a list of fewer than two items.

    >>> vectors = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> vector_diversity(np.array([[0, 1, -1], [0, 2, -1], [0, 1, 2]]), vectors).round(4).tolist()
    [1.0, 0.0, 0.6667]
    """
    rankings, vectors = np.asarray(rankings), np.asarray(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    squares = (unit**2).sum(axis=1)
    cosines = np.empty(len(rankings))
    for start in range(0, len(rankings), _USERS_AT_A_TIME):
        batch = rankings[start : start + _USERS_AT_A_TIME]
        users, places = np.nonzero(batch >= 0)
        # Items as a sparse table of users sum their vectors without a copy of each list's vectors.
        items = sp.csr_matrix(
            (np.ones(len(users), dtype=unit.dtype), (users, batch[users, places])), shape=(len(batch), len(unit))
        )
        cosines[start : start + len(batch)] = (((items @ unit) ** 2).sum(axis=1) - items @ squares) / 2
    length = (rankings >= 0).sum(axis=1)
    return 1 - _ratio(cosines, length * (length - 1) / 2)


def shows_disliked(rankings: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Whether each list shows an item that its user is known to dislike.

    Args:
        rankings: (users, k) item indices, -1 where a list is shorter.
        users: (dislikes,) row of the ranking that each dislike belongs to.
        items: (dislikes,) the disliked item.

    Returns:
        (users,) float64, 0 or 1; NaN for users who dislike nothing, about whom nothing can be said.

    >>> shows_disliked(np.array([[4, 2], [1, 0], [5, 6]]), np.array([0, 1, 1]), np.array([2, 7, 8])).tolist()
    [1.0, 0.0, nan]
    """
    rankings, users, items = np.asarray(rankings), np.asarray(users), np.asarray(items)
    width = max(rankings.max(initial=0), items.max(initial=0)) + 2  # one place for -1
    keys = np.arange(len(rankings))[:, None] * width + rankings + 1
    shown = np.isin(keys, users * width + items + 1).any(axis=1)
    return np.where(np.bincount(users, minlength=len(rankings)) > 0, shown.astype(np.float64), np.nan)


def _prefix_numbers(codes: np.ndarray) -> list[np.ndarray]:
    """For each level (items,) a number that two items share if their SCIDs agree up to it."""
    numbers, prefixes = [], np.zeros(len(codes), dtype=np.int64)
    for column in np.asarray(codes).T:
        prefixes = np.unique(prefixes * (column.max(initial=0) + 1) + column, return_inverse=True)[1]
        numbers.append(prefixes)
    return numbers


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise, NaN where the denominator is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), np.nan)
