import json

import numpy as np
import pytest

from align3gr.encoders import PPMIFactorization, load_collaborative_encoder
from align3gr.encoders.collaborative import interaction_counts, interaction_matrix, positive_pmi
from align3gr.errors import InputError


def two_kinds(seed: int = 0) -> list[np.ndarray]:
    """80 users, the first half with even items below 20, the others with odd ones."""
    rng = np.random.default_rng(seed)
    return [rng.choice(np.arange(kind, 20, 2), 5, replace=False) for kind in (0, 1) for _ in range(40)]


def test_positive_pmi_by_hand():
    # Items 0 and 1 stand together twice, 1 and 2 once; margins 2, 3, 1 of 6.
    matrix = interaction_matrix([np.array([0, 1]), np.array([0, 1]), np.array([1, 2]), np.array([3])], 4)
    ppmi = positive_pmi(matrix).toarray()
    assert ppmi[0, 1] == pytest.approx(np.log(2 * 6 / (2 * 3)))
    assert ppmi[1, 2] == pytest.approx(np.log(1 * 6 / (3 * 1)))
    assert ppmi[0, 2] == 0 and np.array_equal(ppmi, ppmi.T) and not ppmi[3].any()


def test_counts_are_those_of_interactions():
    assert interaction_counts([np.array([0, 2, 0]), np.array([2])], 4).tolist() == [2, 0, 2, 0]


def test_items_taken_together_get_near_vectors_and_lonely_ones_the_zero_vector():
    sequences = two_kinds()
    encoder = PPMIFactorization(dim=6)
    encoder.fit(sequences, 22)
    items, users = encoder.item_vectors, encoder.encode_users([*sequences, np.array([], dtype=np.int64)])
    unit = items[:20] / np.linalg.norm(items[:20], axis=1, keepdims=True)
    similarity = unit @ unit.T
    same = similarity[0::2, 0::2].mean()
    assert same > similarity[0::2, 1::2].mean() + 0.3
    assert not items[20:].any() and not users[-1].any()
    assert np.allclose(users[0], items[sequences[0]].mean(0), atol=1e-6)


def test_a_history_counts_an_item_once():
    encoder = PPMIFactorization(dim=6)
    encoder.fit(two_kinds(), 20)
    once, twice = encoder.encode_users([np.array([3, 5]), np.array([5, 3, 5])])
    assert np.array_equal(once, twice)


def test_factorization_is_the_same_on_every_run_and_narrow_catalogues_are_padded():
    vectors = []
    for _ in range(2):
        encoder = PPMIFactorization(dim=8)
        encoder.fit([np.array([0, 1, 2]), np.array([1, 2])], 3)
        vectors.append(encoder.item_vectors)
    assert vectors[0].shape == (3, 8) and np.array_equal(*vectors)


def test_item_vectors_rebuild_the_ppmi_matrix():
    # Left times right singular vectors; for the positive eigenvalues of a symmetric matrix they are the same.
    sequences = two_kinds()
    ppmi = positive_pmi(interaction_matrix(sequences, 20)).toarray()
    encoder = PPMIFactorization(dim=19)
    encoder.fit(sequences, 20)
    values, vectors = np.linalg.eigh(ppmi)
    expected = (vectors * np.abs(values)) @ vectors.T
    assert np.allclose(encoder.item_vectors @ encoder.item_vectors.T, expected, atol=0.05)


def test_a_saved_factorization_encodes_users_who_come_later(tmp_path):
    encoder = PPMIFactorization(dim=6, seed=3)
    encoder.fit(two_kinds(), 20)
    encoder.save(tmp_path / "encoder")
    loaded = load_collaborative_encoder(tmp_path / "encoder")
    assert np.array_equal(loaded.item_vectors, encoder.item_vectors)
    later = [np.array([1, 3]), np.array([], dtype=np.int64)]
    assert np.array_equal(loaded.encode_users(later), encoder.encode_users(later))


def test_folders_without_a_collaborative_encoder_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no encoder"):
        load_collaborative_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps({"type": "tfidf"}))
    with pytest.raises(InputError, match="holds no collaborative encoder but 'tfidf'"):
        load_collaborative_encoder(tmp_path)
