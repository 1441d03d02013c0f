import numpy as np
import pytest
import scipy.sparse as sp

from align3gr.baselines import LightGCN, VectorBaseline, rank_by_vectors
from align3gr.baselines.lightgcn import adjacency
from tests.baselines.test_vectors import questions

pytest.importorskip("torch_geometric")

TRAIN = [np.array([0, 1, 1]), np.array([1, 2]), np.array([2, 0, 3])]


def dense_graph(train, num_items) -> np.ndarray:
    """D^-1/2 A D^-1/2 of users, then items."""
    taken = np.zeros((len(train), num_items))
    for user, items in enumerate(train):
        taken[user, items] = 1
    size = sum(taken.shape)
    graph = np.zeros((size, size))
    graph[: len(train), len(train) :] = taken
    graph += graph.T
    scale = np.diag(1 / np.sqrt(np.maximum(graph.sum(1), 1)))
    return scale @ graph @ scale


def test_adjacency_by_hand():
    graph = adjacency(sp.csr_matrix(np.array([[1.0, 1.0], [0.0, 1.0]]))).to_dense().numpy()
    # Users 0 and 1, items 2 and 3; degrees 2, 1, 1, 2.
    expected = np.zeros((4, 4))
    expected[0, 2] = expected[2, 0] = expected[1, 3] = expected[3, 1] = 1 / np.sqrt(2)
    expected[0, 3] = expected[3, 0] = 1 / 2
    np.testing.assert_allclose(graph, expected, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_vectors_are_the_mean_of_powers_of_the_dense_graph(layers):
    model = LightGCN(dim=4, layers=layers, epochs=2, batch_size=3, learning_rate=0.1).fit(TRAIN, 5)
    own = model.model.embedding.weight.detach().numpy()
    graph = dense_graph(TRAIN, 5)
    final = sum(np.linalg.matrix_power(graph, power) @ own for power in range(layers + 1)) / (layers + 1)
    np.testing.assert_allclose(model.user_vectors(TRAIN, np.arange(3)), final[:3], atol=1e-6)
    np.testing.assert_allclose(model.item_vectors()[:4], final[3:7], atol=1e-6)
    assert not model.item_vectors()[4].any()  # nobody took it


def test_a_longer_history_changes_the_users_edges_and_nothing_else():
    model = LightGCN(dim=4, layers=1, epochs=1).fit(TRAIN, 5)
    longer = model.user_vectors([np.array([1, 2, 3])], np.array([1]))[0]
    # Items 1, 2 and 3 have 2, 2 and 1 users in the train split; this user now has three items.
    received = sum(model._layers[0][item] / np.sqrt(3 * degree) for item, degree in ((1, 2), (2, 2), (3, 1)))
    np.testing.assert_allclose(longer, (model._users[1] + received) / 2, rtol=1e-5)
    # An item that nobody took in the train split sends nothing.
    alone = model.user_vectors([np.array([4])], np.array([1]))[0]
    np.testing.assert_allclose(alone, model._users[1] / 2, rtol=1e-6)


def test_it_learns_two_blocks_and_stops():
    rng = np.random.default_rng(0)
    train = [rng.permutation(8)[:5] + 8 * (user // 15) for user in range(30)]
    asked = questions(train, np.arange(30))
    model = LightGCN(dim=8, learning_rate=0.05, epochs=40, patience=3, batch_size=64)
    assert isinstance(model, VectorBaseline)

    def validate() -> float:
        _, masked = rank_by_vectors(model, asked, 3)
        return float((masked // 8 == np.arange(30)[:, None] // 15).mean())

    model.fit(train, 16, validate)
    assert validate() == max(model.curve) == 1.0 and len(model.curve) < 40


def test_the_same_seed_gives_the_same_vectors():
    first, again, other = (LightGCN(seed=seed, dim=4, epochs=2).fit(TRAIN, 5) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.item_vectors(), again.item_vectors())
    assert not np.array_equal(first.item_vectors(), other.item_vectors())
