import numpy as np
import pytest
import torch
import torch.nn.functional as F

from align3gr.baselines import Caser, CaserModel, VectorBaseline
from align3gr.errors import InputError
from tests.baselines.markets import learnt

DIM, WINDOW, HORIZONTAL, VERTICAL = 4, 3, 2, 5


@pytest.fixture
def model() -> CaserModel:
    torch.manual_seed(0)
    made = CaserModel(3, 9, DIM, WINDOW, HORIZONTAL, VERTICAL, dropout=0.5).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def test_the_forward_against_torchs_convolutions(model):
    users, history = torch.tensor([2, 0]), torch.tensor([[3, 1, 4], [9, 9, 5]])
    picture = model.items.weight[history][:, None]  # (batch, channel, window, dim)
    # Each vertical filter is one column high as the picture, moved over its columns.
    columns = torch.nn.Conv2d(1, VERTICAL, (WINDOW, 1))
    columns.weight.data = model.vertical.weight[:, None, :, None]
    columns.bias.data = model.vertical.bias
    read = [columns(picture)[:, :, 0].transpose(1, 2).flatten(1)]
    for height, filters in enumerate(model.horizontal, start=1):
        rows = torch.nn.Conv2d(1, HORIZONTAL, (height, DIM))
        rows.weight.data = filters.weight.view(HORIZONTAL, 1, height, DIM)
        rows.bias.data = filters.bias
        said = F.relu(rows(picture)[..., 0])
        read.append(F.max_pool1d(said, said.shape[-1])[..., 0])
    hidden = F.relu(F.linear(torch.cat(read, 1), model.dense.weight, model.dense.bias))
    expected = torch.cat([hidden, model.users.weight[users]], 1) @ model.answers[:, :-1].T + model.answers[:, -1]
    assert hidden.any() and expected.shape == (2, 9)
    torch.testing.assert_close(model(users, history) @ model.catalogue.T, expected)


def test_padding_starts_and_stays_as_zeros():
    network = Caser(dim=4, epochs=3, learning_rate=0.1).fit([np.array([0, 1, 2])], 3).network
    assert not network.items.weight[3].any() and network.items.weight[:3].all()


def test_dropout_is_for_training_only(model):
    users, history = torch.tensor([1]), torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(users, history), model(users, history))
    model.train()
    assert len({model(users, history)[0, :DIM].sum().item() for _ in range(8)}) > 1


def test_it_learns_who_follows_whom():
    options = {"window": 2, "ahead": 1, "dropout": 0.0, "learning_rate": 1e-2, "batch_size": 64}
    model = Caser(dim=16, loss="bce", negatives=3, epochs=40, patience=40, **options)
    assert isinstance(model, VectorBaseline)
    assert learnt(model, behind=2) >= 0.95


@pytest.mark.parametrize(
    ("options", "words"), [({"dropout": 1.0}, "dropout: got 1.0"), ({"loss": "hinge"}, "loss: got 'hinge'")]
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Caser(**options)
