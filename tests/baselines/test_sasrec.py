import numpy as np
import pytest
import torch
import torch.nn.functional as F

from align3gr.baselines import SASRec, SASRecModel, VectorBaseline, rank_by_vectors
from align3gr.errors import InputError
from tests.baselines.test_vectors import questions


@pytest.fixture
def model() -> SASRecModel:
    torch.manual_seed(0)
    made = SASRecModel(num_items=9, dim=8, layers=2, heads=2, max_history=6, dropout=0.0).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def attention(layer, x):
    """Multi-head attention, written out: x is (length, dim)."""
    inner = layer.self_attn
    queries, keys, values = (x @ inner.in_proj_weight.T + inner.in_proj_bias).chunk(3, dim=-1)
    future = torch.ones(len(x), len(x)).triu(1).bool()
    heads = []
    for q, k, v in zip(*(part.chunk(inner.num_heads, dim=-1) for part in (queries, keys, values)), strict=True):
        scores = (q @ k.T / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    return inner.out_proj(torch.cat(heads, dim=-1))


def test_the_forward_written_out(model):
    history = torch.tensor([3, 1, 4, 1, 5])
    x = model.items.weight[history] * 8**0.5 + model.positions.weight[:5]
    for layer in model.blocks.layers:
        x = x + attention(layer, F.layer_norm(x, (8,), layer.norm1.weight, layer.norm1.bias))
        inner = F.layer_norm(x, (8,), layer.norm2.weight, layer.norm2.bias)
        x = x + layer.linear2(F.relu(layer.linear1(inner)))
    expected = F.layer_norm(x, (8,), model.blocks.norm.weight, model.blocks.norm.bias)
    torch.testing.assert_close(model(history[None])[0], expected, atol=1e-5, rtol=1e-5)


def test_no_position_sees_what_comes_later(model):
    one, other = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[3, 1, 4, 2, 9]])
    first, second = model(one)[0], model(other)[0]
    torch.testing.assert_close(first[:3], second[:3])
    assert (first[3:] - second[3:]).abs().max() > 1e-2


def test_items_and_answers_share_their_embeddings(model):
    assert model.catalogue.data_ptr() == model.items.weight.data_ptr() and model.catalogue.shape == (9, 8)


def test_users_do_not_depend_on_those_beside_them():
    sequences = [np.array([0, 1, 2, 3, 4, 5]), np.array([5, 4]), np.array([2])]
    baseline = SASRec(dim=8, epochs=1, max_history=4).fit(sequences, 6)
    together = baseline.user_vectors([*sequences, np.zeros(0, dtype=np.int64)], np.arange(4))
    alone = np.concatenate([baseline.user_vectors([sequence], np.array([0])) for sequence in sequences])
    np.testing.assert_allclose(together[:3], alone, atol=1e-6)
    assert not together[3].any()
    # The latest four items are seen.
    np.testing.assert_allclose(baseline.user_vectors([np.array([2, 3, 4, 5])], np.array([0]))[0], alone[0], atol=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce"])
def test_it_learns_who_follows_whom(loss):
    # After item i comes item i + 7 modulo 24, which no popularity tells.
    follow = [(item + 7) % 24 for item in range(24)]
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(120):
        sequence = [int(rng.integers(24))]
        while len(sequence) < 6:
            sequence.append(follow[sequence[-1]])
        sequences.append(np.array(sequence))
    asked = questions([[item] for item in range(24)], np.zeros(24, dtype=np.int64))
    model = SASRec(
        dim=16, loss=loss, negatives=10, dropout=0.0, learning_rate=1e-2, batch_size=32, epochs=45, patience=45
    )
    assert isinstance(model, VectorBaseline)

    def hits() -> float:
        return float((rank_by_vectors(model, asked, 1)[0][:, 0] == follow).mean())

    model.fit(sequences, 24, hits)
    assert hits() == max(model.curve) >= 0.95


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "hinge"}, "loss: got 'hinge', choose from softmax"),
        ({"dim": 5, "heads": 2}, "dim: got 5, expected a multiple of heads=2"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        SASRec(**options)


def test_nobody_with_two_items_is_refused():
    with pytest.raises(InputError, match="no user has two interactions"):
        SASRec().fit([np.array([0]), np.array([1])], 2)
