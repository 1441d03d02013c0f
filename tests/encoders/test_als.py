import sys

import numpy as np
import pytest

from align3gr.encoders import ALSEncoder, load_collaborative_encoder
from align3gr.errors import InputError
from tests.encoders.test_collaborative import two_kinds

EMPTY = np.array([], dtype=np.int64)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(InputError, match="pip install implicit"):
        ALSEncoder()


def test_users_are_the_least_squares_solution_and_nobody_is_zero(tmp_path):
    pytest.importorskip("implicit", reason="implicit is not installed")
    encoder = ALSEncoder(dim=4, seed=1, alpha=3.0, regularization=0.5)
    encoder.fit(two_kinds(), 22)
    items = encoder.item_vectors
    assert items.shape == (22, 4) and items.dtype == np.float32 and not items[20:].any() and items[:20].any(1).all()
    history = np.array([1, 3, 5, 5])
    taken = np.isin(np.arange(22), history)
    # Hu et al.: (Y'CY + reg I)^-1 Y'C p, confidence alpha for taken items and 1 for the others.
    confidence = np.where(taken, 3.0, 1.0)
    expected = np.linalg.solve(items.T * confidence @ items + 0.5 * np.eye(4), items.T @ (confidence * taken))
    users = encoder.encode_users([history, EMPTY])
    assert np.allclose(users[0], expected, atol=1e-4) and not users[1].any()
    scores = items[:20] @ users[0]
    assert scores[1::2].mean() > scores[0::2].mean() + 0.3
    again = ALSEncoder(dim=4, seed=1, alpha=3.0, regularization=0.5)
    again.fit(two_kinds(), 22)
    assert np.allclose(again.item_vectors, items, atol=1e-6)
    encoder.save(tmp_path)
    loaded = load_collaborative_encoder(tmp_path)
    assert np.array_equal(loaded.item_vectors, items)
    assert np.allclose(loaded.encode_users([history, EMPTY]), users, atol=1e-6)
    assert encoder.encode_users([]).shape == (0, 4)
