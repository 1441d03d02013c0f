import sys

import numpy as np
import pytest

from align3gr.encoders import LightGCNEncoder, load_collaborative_encoder
from align3gr.errors import InputError
from tests.encoders.test_collaborative import two_kinds


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(InputError, match="pip install torch-geometric"):
        LightGCNEncoder()


def test_kinds_are_told_apart_and_a_user_is_one_more_convolution(tmp_path):
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    encoder = LightGCNEncoder(dim=8, seed=1, epochs=8, learning_rate=0.05)
    sequences = two_kinds()
    encoder.fit(sequences, 22)
    items = encoder.item_vectors
    assert items.shape == (22, 8) and items.dtype == np.float32 and not items[20:].any() and items[:20].any(1).all()
    assert max(encoder.auc) > 0.85
    empty = np.array([], dtype=np.int64)
    users = encoder.encode_users([np.array([1, 3, 3]), empty])
    owners = [sum(item in sequence for sequence in sequences) for item in (1, 3)]
    expected = items[1] / np.sqrt(2 * owners[0]) + items[3] / np.sqrt(2 * owners[1])
    assert np.allclose(users[0], expected, atol=1e-6) and not users[1].any()
    scores = items[:20] @ users[0]
    assert scores[1::2].mean() > scores[0::2].mean() + 0.1
    again = LightGCNEncoder(dim=8, seed=1, epochs=8, learning_rate=0.05)
    again.fit(sequences, 22)
    assert np.array_equal(again.item_vectors, items)
    encoder.save(tmp_path)
    loaded = load_collaborative_encoder(tmp_path)
    assert np.array_equal(loaded.item_vectors, items)
    assert np.array_equal(loaded.encode_users([np.array([1, 3])]), encoder.encode_users([np.array([1, 3])]))


def test_training_that_diverges_says_so():
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    encoder = LightGCNEncoder(dim=4, epochs=3, learning_rate=1e30)
    with pytest.raises(
        InputError, match=r"learning_rate: lightgcn diverged in epoch \d at a rate of 1e\+30; lower it"
    ):
        encoder.fit(two_kinds(), 22)
