import numpy as np
import pytest
import torch
import torch.nn.functional as F

from align3gr.baselines import TwoTower, TwoTowerModel, VectorBaseline, rank_by_vectors
from align3gr.baselines.two_tower import in_batch_softmax
from align3gr.errors import InputError
from tests.baselines.markets import learnt
from tests.baselines.test_vectors import questions


@pytest.fixture
def model() -> TwoTowerModel:
    torch.manual_seed(0)
    return TwoTowerModel(3, np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32), dim=4, temperature=0.5)


def dense(tower, x):
    """Two layers of a tower in NumPy."""
    first, last = ([part.detach().numpy() for part in (tower[at].weight, tower[at].bias)] for at in (0, 2))
    return last[0] @ np.maximum(first[0] @ x + first[1], 0) + last[1]


def test_the_towers_in_numpy(model):
    items, users, features = (
        part.detach().numpy() for part in (model.items.weight, model.users.weight, model.features)
    )
    found = model(torch.tensor([2, 0]), torch.tensor([[3, 1, 1], [5, 5, 4]])) @ model.catalogue.T
    for row, (user, history) in enumerate(((2, [3, 1, 1]), (0, [4]))):
        query = dense(model.query_tower, np.concatenate([items[history[-1]], items[history].mean(0), users[user]]))
        for item in range(5):
            answer = dense(model.item_tower, np.concatenate([items[item], features[item]]))
            cosine = query @ answer / np.linalg.norm(query) / np.linalg.norm(answer)
            assert found[row, item].item() == pytest.approx(cosine / 0.5, abs=1e-5)


def test_the_correction_makes_a_batch_stand_for_the_catalogue():
    # Item 0 is half of the batch, items 1 and 2 a quarter: the corrected sum over the batch is that over the items,
    # each once for all the rows that hold it, times the size of the batch.
    scores, share = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.5, 0.25, 0.25])
    batch = torch.tensor([0, 0, 1, 2])
    table = scores[batch].expand(4, 4)
    total = sum(4 * np.exp(score) for score in scores.tolist())
    # Rows of item 0 leave out the other row of the same item, which is half of what the item counts for.
    expected = [np.log(total - 2 * np.exp(1.0)) - 1 + np.log(0.5)] * 2
    expected += [np.log(total) - score + np.log(0.25) for score in (-0.5, 2.0)]
    found = in_batch_softmax(table, batch, share.log()[batch])
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_an_item_that_is_the_answer_of_two_rows_is_no_negative_of_either():
    scores = torch.tensor([[1.0, 9.0, 0.0], [9.0, 2.0, 0.0], [3.0, 1.0, 2.0]])
    expected = F.cross_entropy(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]), reduction="sum")
    expected += F.cross_entropy(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([2]))
    found = in_batch_softmax(scores, torch.tensor([7, 7, 3]), torch.zeros(3))
    torch.testing.assert_close(found, expected / 3)


def test_the_share_is_that_of_the_answers():
    baseline = TwoTower(features="none", dim=2, epochs=1).fit([np.array([2, 0, 0]), np.array([0, 1])], 4)
    # Answers 0, 0 and 1; an item that is none counts as one.
    assert baseline._log_share.exp().tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3])


def test_it_learns_who_follows_whom():
    model = TwoTower(
        features="none", dim=16, window=1, temperature=0.2, learning_rate=1e-2, batch_size=64, epochs=30, patience=30
    )
    assert isinstance(model, VectorBaseline)
    assert learnt(model) >= 0.95


TEXTS = [f"thing {word} {word}" for word in ("red", "red", "red", "blue", "blue", "blue")]
# Nobody takes items 2 and 5.
TRAIN = [np.array([0, 1, 0, 1])] * 20 + [np.array([3, 4, 3, 4])] * 20


def test_texts_tell_where_an_item_that_nobody_took_belongs():
    asked = questions([[0, 1], [3, 4]], np.array([0, 1]))
    model = TwoTower(TEXTS, features="text", dim=8, window=2, learning_rate=1e-2, batch_size=40, epochs=25)
    _, masked = rank_by_vectors(model.fit(TRAIN, 6), asked, 1)
    assert masked[:, 0].tolist() == [2, 5]


def test_features_have_length_one_each():
    model = TwoTower(TEXTS, features="text+collaborative", dim=4, epochs=1).fit(TRAIN, 6)
    features = model.network.features.numpy()
    assert features.shape == (6, 128 + 64)
    np.testing.assert_allclose(np.linalg.norm(features[:, :128], axis=1), 1, rtol=1e-5)
    # Who stood with nobody has nothing that says with whom.
    np.testing.assert_allclose(np.linalg.norm(features[:, 128:], axis=1), [1, 1, 0, 1, 1, 0], rtol=1e-5)
    widths = {
        name: TwoTower(TEXTS, features=name, epochs=1).fit(TRAIN, 6) for name in ("text", "collaborative", "none")
    }
    assert [made.network.features.shape[1] for made in widths.values()] == [128, 64, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": "image"}, "features: got 'image', choose from text"),
        ({"features": "text"}, "item_texts: got None"),
        ({"features": "none", "temperature": 0}, "temperature: got 0"),
        ({"features": "none", "window": 0}, "window: got 0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        TwoTower(**options)
