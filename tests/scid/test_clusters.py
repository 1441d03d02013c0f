import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from align3gr.errors import InputError
from align3gr.scid import cluster_codes, cooccurrence_graph, spectral_clusters


def planted(groups, size, inside, outside, seed=0):
    """A random graph whose nodes have more edges within their group. Shape: `(groups * size, groups * size)`."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    chance = np.where(group[:, None] == group, inside, outside)
    upper = np.triu(rng.random(chance.shape) < chance, 1)
    return sp.csr_matrix((upper + upper.T).astype(float)), group


def test_edges_count_users_with_both_items():
    graph = cooccurrence_graph([np.array([0, 1, 0]), np.array([1, 0, 2]), np.array([3])], 5)
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 2
    expected[0, 2] = expected[2, 0] = expected[1, 2] = expected[2, 1] = 1
    assert graph.toarray().tolist() == expected.tolist()


@pytest.mark.parametrize("size", [30, 150])  # below and above what is solved densely
def test_planted_groups_are_found_as_by_scikit_learn(size):
    graph, group = planted(4, size, 0.5, 0.02)
    found = spectral_clusters(graph, 4)
    assert adjusted_rand_score(group, found) == 1.0
    theirs = SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(graph.toarray())
    assert adjusted_rand_score(theirs, found) == 1.0
    assert np.array_equal(found, spectral_clusters(graph, 4))


def test_items_without_edges_do_not_hide_the_groups():
    graph, group = planted(3, 150, 0.3, 0.01)
    padded = sp.block_diag([graph, sp.csr_matrix((30, 30))]).tocsr()
    found = spectral_clusters(padded, 3)
    assert adjusted_rand_score(group, found[:450]) > 0.95


def test_clusters_are_numbered_from_the_largest():
    graph = sp.block_diag([np.ones((3, 3)), np.ones((9, 9)), np.ones((6, 6))]).tocsr()
    labels = spectral_clusters(graph, 3)
    assert labels.tolist() == [2] * 3 + [0] * 9 + [1] * 6


def block_users(sizes, users=60, seed=0):
    """Train sequences of users who stay within one block of items."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes])
    return [
        rng.choice(np.arange(starts[block], starts[block + 1]), size=5, replace=False)
        for block in np.arange(users * len(sizes)) % len(sizes)
    ]


def test_large_clusters_are_cut_again_and_small_ones_stay_whole():
    sizes = [40, 10]
    codes = cluster_codes(block_users(sizes), 50, clusters=2, largest=12, levels=3)
    assert len(set(codes[:40, 0])) == 1 and len(set(codes[40:, 0])) == 1 and codes[0, 0] != codes[40, 0]
    # The small block was not cut: its later codes are the ones for that, which no cut cluster has.
    assert len(np.unique(codes[40:], axis=0)) == 1
    assert codes[40, 1] == codes[:, 1].max() and codes[40, 1] not in codes[:40, 1]
    _, counts = np.unique(codes[:, :2], axis=0, return_counts=True)
    assert len(counts) == 3 and counts.sum() == 50


def test_there_are_no_more_cuts_than_allowed():
    codes = cluster_codes(block_users([40, 40]), 80, clusters=2, largest=2, levels=2)
    assert codes.shape == (80, 2) and len(np.unique(codes, axis=0)) == 4
    assert cluster_codes(block_users([40, 40]), 80, clusters=2, largest=45, levels=3).shape == (80, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "clusters, cluster_levels, largest_cluster: got 1, 3 and 20"),
        ({"levels": 0}, "got 2, 0 and 20"),
        ({"clusters": 30}, "got 30, 3 and 20"),
        ({"largest": 50}, "largest_cluster: got 50, but there are 50 items"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        cluster_codes(block_users([40, 10]), 50, **({"clusters": 2, "largest": 20} | options))
