"""P5-CID: codes from clusters of items that the same users have (Hua et al. 2023, "How to Index Item IDs").

Items are the nodes of a graph whose edges count the users with both items in their train sequence. Spectral
clustering (Ng, Jordan and Weiss 2002) cuts it into clusters, and each cluster that is too large again, within its own
part of the graph. An item's codes are the clusters on its path. Real co-occurrence graphs have isolated items and
small components, for each of which plain spectral clustering spends a cluster; a weak edge between all items (Qin and
Rohe 2013) keeps it to the large ones.
"""

import logging
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from align3gr.errors import InputError

logger = logging.getLogger(__name__)

_DENSE = 400  # items up to which all eigenvectors are computed


def cluster_codes(
    train_sequences: Sequence[np.ndarray],
    num_items: int,
    clusters: int = 20,
    largest: int = 200,
    levels: int = 3,
    seed: int = 0,
) -> np.ndarray:
    """Codes of the clusters that each item is in, the widest first; items of one last cluster share them.

    A cluster's code is its number among those that its parent was cut into, the largest first. The last code of a
    level that needs one is for items whose cluster was not cut any further.

    Args:
        train_sequences: item indices of each user's train split.
        num_items: size of the catalogue.
        clusters: parts that a cluster is cut into.
        largest: items up to which a cluster stays whole.
        levels: cuts at most, however large a cluster still is.
        seed: of the k-means starts.

    Returns:
        Shape: `(items, at most levels)` int64.

    Raises:
        InputError: a number does not fit the others or the catalogue.
    """
    if clusters < 2 or levels < 1 or largest < clusters:
        raise InputError(
            f"clusters, cluster_levels, largest_cluster: got {clusters}, {levels} and {largest}, expected 2 or more, "
            "1 or more, and at least as many items as clusters"
        )
    if num_items <= largest:
        raise InputError(
            f"largest_cluster: got {largest}, but there are {num_items} items; take fewer, so that there "
            "is something to cut"
        )
    graph = cooccurrence_graph(train_sequences, num_items)
    codes = np.full((num_items, levels), -1, dtype=np.int64)
    waiting = [(np.arange(num_items), 0)]
    while waiting:
        members, level = waiting.pop()
        if level == levels or len(members) <= largest:
            continue
        labels = spectral_clusters(graph[members][:, members], clusters, seed)
        codes[members, level] = labels
        waiting += [(members[labels == label], level + 1) for label in np.unique(labels)]
    sizes = np.unique(codes, axis=0, return_counts=True)[1]
    logger.info("%d clusters of 1 to %d items", len(sizes), sizes.max())
    codes = codes[:, (codes >= 0).any(axis=0)]
    return np.where(codes >= 0, codes, codes.max(axis=0) + 1)


def cooccurrence_graph(train_sequences: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """How many users have both items, 0 on the diagonal. Shape: `(items, items)` float64.

    Args:
        train_sequences: item indices of each user.
        num_items: size of the catalogue.
    """
    distinct = [np.unique(sequence) for sequence in train_sequences]
    columns = np.concatenate([np.zeros(0, np.int64), *distinct])
    rows = np.repeat(np.arange(len(distinct)), [len(items) for items in distinct])
    has = sp.csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(distinct), num_items))
    graph = sp.csr_matrix(has.T @ has)
    graph.setdiag(0)
    graph.eliminate_zeros()
    return graph


def spectral_clusters(graph: sp.csr_matrix, clusters: int, seed: int = 0) -> np.ndarray:
    """A cut of a graph into clusters, numbered from the largest to the smallest.

    k-means on the rows, scaled to length 1, of the first eigenvectors of the normalised adjacency matrix, to which a
    mean degree's worth of edges is added evenly.

    Args:
        graph: symmetric edge weights.
            Shape: `(items, items)`.
        clusters: at most, fewer where rows coincide; at most as many as items.
        seed: of the k-means starts.

    Returns:
        Shape: `(items,)` int64.
    """
    from sklearn.cluster import KMeans

    vectors = _first_eigenvectors(graph, clusters)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    labels = KMeans(clusters, n_init=3, random_state=seed).fit_predict(unit)
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    return np.argsort(order)[labels].astype(np.int64)


def _first_eigenvectors(graph: sp.csr_matrix, number: int) -> np.ndarray:
    """Of the regularised, normalised adjacency matrix. Shape: `(items, number)`."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    items = graph.shape[0]
    added = max(graph.sum() / items, 1.0) / items  # to each edge
    scale = 1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel() + added * items)
    if items <= max(_DENSE, number + 1):
        whole = scale[:, None] * (graph.toarray() + added) * scale
        return np.linalg.eigh(whole)[1][:, -number:]

    def product(vector: np.ndarray) -> np.ndarray:
        scaled = scale * vector.ravel()
        return scale * (graph @ scaled + added * scaled.sum())

    operator = LinearOperator((items, items), matvec=product, dtype=np.float64)
    # A fixed start, so that the same graph gives the same codes.
    start = np.random.default_rng(0).standard_normal(items)
    return eigsh(operator, k=number, which="LA", v0=start, tol=1e-4)[1]
