import numpy as np
import pytest

from align3gr.baselines import MatrixFactorization, VectorBaseline, rank_by_vectors
from tests.baselines.test_vectors import questions

pytest.importorskip("implicit")


def test_two_blocks_of_users_and_items_are_told_apart():
    # Users 0-9 take items 0-5, users 10-19 items 6-11, each four of their block.
    rng = np.random.default_rng(0)
    train = [rng.permutation(6)[:4] + 6 * (user // 10) for user in range(20)]
    model = MatrixFactorization(dim=2, alpha=3.0).fit(train, 12)
    assert isinstance(model, VectorBaseline)
    _, masked = rank_by_vectors(model, questions(train, np.arange(20)), 2)
    # The two items of the own block that are left, whatever the user took.
    for user, best in enumerate(masked):
        assert set(best) == set(range(6 * (user // 10), 6 * (user // 10) + 6)) - set(train[user])


def test_users_are_the_weighted_least_squares_solution_of_their_history():
    train = [np.array([0, 1]), np.array([1, 2]), np.array([0, 3])]
    model = MatrixFactorization(dim=3, alpha=7.0, regularization=0.5).fit(train, 5)
    items = model.item_vectors().astype(np.float64)
    assert not items[4].any()
    # (Y'Y + alpha-weighted history + regularisation) u = (1 + alpha) * sum of the history, Hu et al. (2008), Eq. (4).
    # implicit's alpha is the whole confidence of a taken item.
    own = items[[1, 3]]
    left = items.T @ items + 6 * own.T @ own + 0.5 * np.eye(3)
    expected = np.linalg.solve(left, 7 * own.sum(0))
    np.testing.assert_allclose(model.user_vectors([np.array([1, 3])], np.array([0]))[0], expected, rtol=1e-3)
