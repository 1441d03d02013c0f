import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from align3gr.encoders import DINEncoder, DINTrainingConfig, load_collaborative_encoder
from align3gr.encoders.histories import Histories, auc_of_true_items
from align3gr.errors import InputError


def kinds(users: int, seed: int) -> list[np.ndarray]:
    """Histories over 40 items of four kinds; each user keeps to one."""
    rng = np.random.default_rng(seed)
    return [4 * rng.integers(10, size=rng.integers(3, 9)) + rng.integers(4) for _ in range(users)]


def four_interests(users: int, seed: int) -> list[np.ndarray]:
    """Histories over 96 items of twelve kinds; each user takes items of four of them."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(users):
        own = rng.choice(12, 4, replace=False)
        sequences.append(12 * rng.integers(8, size=12) + own[rng.integers(4, size=12)])
    return sequences


SCHEDULE = DINTrainingConfig(learning_rate=1e-2, batch_size=128, epochs=4, seed=1)


@pytest.fixture(scope="module")
def encoder() -> DINEncoder:
    encoder = DINEncoder(8, training=SCHEDULE)
    encoder.fit(kinds(300, 0), 42)
    return encoder


def test_training_learns_which_items_go_together(encoder):
    assert encoder.auc[0] < max(encoder.auc) and max(encoder.auc) > 0.8
    vectors = encoder.item_vectors
    assert vectors.shape == (42, 8) and vectors.dtype == np.float32
    unit = vectors[:40] / np.linalg.norm(vectors[:40], axis=1, keepdims=True)
    similarity = unit @ unit.T
    kind = np.arange(40) % 4
    same = (kind[:, None] == kind) & ~np.eye(40, dtype=bool)
    assert similarity[same].mean() > similarity[kind[:, None] != kind].mean() + 0.2


def test_attention_to_the_target_beats_the_mean_where_users_have_several_interests():
    # What the paper is about: one vector of four dimensions cannot hold four interests, one for each target can.
    auc = {}
    for attention in ("target", "mean"):
        schedule = DINTrainingConfig(learning_rate=1e-2, batch_size=256, epochs=8, seed=0)
        encoder = DINEncoder(4, training=schedule, attention=attention)
        encoder.fit(four_interests(400, 0), 96)
        auc[attention] = max(encoder.auc)
    assert auc["target"] > auc["mean"] + 0.03


def changing_interest(users: int, seed: int) -> list[np.ndarray]:
    """Histories over 40 items of ten kinds; the next item is of the latest one's kind, four times in five."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(users):
        stays = rng.random(12) < 0.8
        kind = rng.integers(10, size=12)
        for place in range(1, 12):
            kind[place] = kind[place - 1] if stays[place] else kind[place]
        sequences.append(10 * rng.integers(4, size=12) + kind)
    return sequences


def test_places_in_the_history_matter_where_interests_change():
    auc = {}
    for attention in ("target", "recency", "mean"):
        encoder = DINEncoder(8, 0, training=DINTrainingConfig(1e-2, 256, epochs=6), attention=attention)
        encoder.fit(changing_interest(300, 0), 40)
        auc[attention] = max(encoder.auc)
    # Both together see which of the recent items the target belongs to, one weight a place does not.
    assert auc["target"] > auc["recency"] + 0.01 and auc["recency"] > auc["mean"] + 0.01


def test_the_best_epoch_is_kept(encoder):
    sequences = kinds(300, 0)
    histories = Histories(sequences, 42)
    last = histories.starts[1:] - 1
    negatives = histories.negatives(histories.user_of[last], 20, np.random.default_rng(SCHEDULE.seed))
    targets = np.concatenate([histories.items[last][:, None], negatives], axis=1)
    with torch.no_grad():
        logits = encoder.model(histories.before(histories.user_of[last], last), torch.from_numpy(targets)).logits
    assert auc_of_true_items(logits.numpy()) == pytest.approx(max(encoder.auc), abs=1e-6)


def test_unknown_items_and_users_get_the_zero_vector(encoder):
    assert not encoder.item_vectors[40:].any() and encoder.item_vectors[:40].any(1).all()
    empty = np.array([], dtype=np.int64)
    users = encoder.encode_users([np.array([1, 5]), empty, np.array([40, 41]), np.array([40, 1, 41, 5])])
    assert users.shape == (4, 8) and users[0].any() and not users[1:3].any()
    assert np.allclose(users[3], users[0])  # items without a vector say nothing
    assert encoder.encode_users([]).shape == (0, 8) and not encoder.encode_users([[]]).any()


def test_the_same_seed_gives_the_same_vectors_and_a_saved_encoder_too(encoder, tmp_path):
    again = DINEncoder(8, training=SCHEDULE)
    again.fit(kinds(300, 0), 42)
    assert np.array_equal(again.item_vectors, encoder.item_vectors) and again.auc == encoder.auc
    encoder.save(tmp_path)
    loaded = load_collaborative_encoder(tmp_path)
    later = kinds(20, 5)
    assert np.array_equal(loaded.item_vectors, encoder.item_vectors)
    assert np.allclose(loaded.encode_users(later), encoder.encode_users(later), atol=1e-6)
    assert loaded.auc == encoder.auc


def test_too_short_histories_are_refused():
    with pytest.raises(InputError, match="no user has three interactions"):
        DINEncoder(8).fit([np.array([0, 1])] * 5, 3)
    with pytest.raises(InputError, match="epochs: got 0, expected 1 or more"):
        DINTrainingConfig(epochs=0)


def test_training_that_diverges_says_so_and_keeps_the_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    schedule = DINTrainingConfig(learning_rate=1e30, batch_size=32, epochs=2)
    with pytest.raises(InputError, match=r"learning_rate: the loss of step \d is nan at a rate of 1e\+30") as caught:
        DINEncoder(4, training=schedule).fit(kinds(60, 0), 42)
    (batch,) = tmp_path.glob("align3gr-din-*/nonfinite-batch.safetensors")
    assert str(batch) in str(caught.value) and load_file(batch)["targets"].shape == (32, 5)
    DINEncoder(4, training=DINTrainingConfig(epochs=1)).fit(kinds(60, 0), 42)
    assert [path.name for path in tmp_path.iterdir()] == [batch.parent.name]  # all else is removed


def test_a_second_gpu_changes_nothing(monkeypatch):
    # What Trainer then does needs no GPU: batches of twice the size, and nn.DataParallel around the model.
    schedule, auc = DINTrainingConfig(learning_rate=1e-2, batch_size=32, epochs=2), []
    for gpus in (1, 2):
        monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self, gpus=gpus: gpus))
        encoder = DINEncoder(4, 3, training=schedule)
        encoder.fit(kinds(60, 0), 42)
        auc.append(encoder.auc)
    assert auc[0] == auc[1]


def test_seed_and_settings_are_those_given_and_a_saved_encoder_keeps_them(tmp_path):
    schedule = DINTrainingConfig(batch_size=64, epochs=1, seed=5)
    assert DINEncoder(4).seed == 42 and DINEncoder(4, 0).training.seed == 0
    assert DINEncoder(4, training=schedule).seed == 5 and DINEncoder(4, 7, training=schedule).seed == 7
    assert schedule.seed == 5
    with pytest.raises(InputError, match="atention: no setting of a DIN; expected one of attention_dims"):
        DINEncoder(4, atention="mean")
    encoder = DINEncoder(4, 7, training=schedule, attention="mean", hidden_dims=(6,))
    encoder.fit(kinds(60, 0), 42)
    encoder.save(tmp_path)
    loaded = load_collaborative_encoder(tmp_path)
    assert (loaded.dim, loaded.seed, loaded.training) == (4, 7, encoder.training)
    loaded.fit(kinds(60, 0), 42)
    assert np.array_equal(loaded.item_vectors, encoder.item_vectors)
    # Folders of earlier versions hold no schedule.
    (tmp_path / "encoder.json").write_text('{"type": "din", "auc": [0.5]}')
    assert np.array_equal(load_collaborative_encoder(tmp_path).item_vectors, encoder.item_vectors)
