import numpy as np
import pytest
import torch
import torch.nn.functional as F

from align3gr.baselines import BERT4Rec, BERT4RecModel, VectorBaseline
from align3gr.baselines.bert4rec import hide
from align3gr.errors import InputError
from tests.baselines.markets import learnt

PADDING, MASK = 9, 10


@pytest.fixture
def model() -> BERT4RecModel:
    torch.manual_seed(0)
    made = BERT4RecModel(num_items=9, dim=8, layers=2, heads=2, length=6, dropout=0.3).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def attention(layer, x):
    """Multi-head attention in both directions, written out: x is (length, dim)."""
    inner = layer.self_attn
    queries, keys, values = (x @ inner.in_proj_weight.T + inner.in_proj_bias).chunk(3, dim=-1)
    heads = []
    for q, k, v in zip(*(part.chunk(inner.num_heads, dim=-1) for part in (queries, keys, values)), strict=True):
        heads.append((q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return inner.out_proj(torch.cat(heads, dim=-1))


def test_the_forward_written_out(model):
    history = torch.tensor([3, 1, MASK, 1, 5])

    def norm(layer, x):
        return F.layer_norm(x, (8,), layer.weight, layer.bias)

    # The last place is 0.
    x = norm(model.norm, model.items.weight[history] + model.places.weight[[4, 3, 2, 1, 0]])
    for layer in model.blocks.layers:
        x = x + attention(layer, norm(layer.norm1, x))
        x = x + layer.linear2(F.gelu(layer.linear1(norm(layer.norm2, x))))
    hidden = norm(model.project_norm, F.gelu(model.project(norm(model.blocks.norm, x))))
    expected = hidden @ model.items.weight[:9].T + model.bias
    torch.testing.assert_close(model(history[None])[0] @ model.catalogue.T, expected, atol=1e-4, rtol=1e-4)


def test_padding_changes_nothing_and_what_comes_later_does(model):
    alone = model(torch.tensor([[3, MASK, 4]]))[0]
    padded = model(torch.tensor([[3, MASK, 4, PADDING, PADDING], [1, 2, 3, 4, 5]]))[0]
    torch.testing.assert_close(padded[:3], alone, atol=1e-5, rtol=1e-5)
    other = model(torch.tensor([[3, MASK, 5]]))[0]
    assert (other[1] - alone[1]).abs().max() > 1e-3


def test_hidden_items_are_drawn_as_asked():
    rng = np.random.default_rng(0)
    table = np.full((4000, 8), PADDING)
    table[:, :6] = rng.integers(9, size=(4000, 6))
    hidden = hide(table, PADDING, 0.5, 0.0, rng)
    assert not hidden[:, 6:].any()
    # 2 of 64 draws hide nothing or all of six items; these hide the last alone.
    counts = hidden.sum(1)
    assert counts.min() == 1 and counts.max() == 5
    expected = 6 * 0.5 + (1 - 0) / 64 + (1 - 6) / 64
    assert counts.mean() == pytest.approx(expected, abs=0.06)
    last = hide(table, PADDING, 0.5, 0.25, rng)
    alone = (last.sum(1) == 1) & last[:, 5]
    # A row in four, and of the others those whose draw hides the last item alone, nothing, or all.
    assert alone.mean() == pytest.approx(0.25 + 0.75 * 3 / 64, abs=0.03)


def test_two_items_keep_one_to_read():
    hidden = hide(np.array([[1, 2]] * 50), PADDING, 0.9, 0.0, np.random.default_rng(0))
    assert (hidden.sum(1) == 1).all()


def test_the_loss_is_that_of_the_masked_places():
    baseline = BERT4Rec(dim=8, dropout=0.0, max_history=6, epochs=1, loss="softmax").fit([np.arange(5)], 9)
    table, hidden = torch.tensor([[3, 1, 4], [5, 6, 9]]), torch.tensor([[False, True, True], [True, False, False]])
    shown = torch.tensor([[3, MASK, MASK], [MASK, 6, PADDING]])
    scores = baseline.model(shown) @ baseline.model.catalogue.T
    expected = -sum(scores[at].log_softmax(-1)[item] for at, item in (((0, 1), 1), ((0, 2), 4), ((1, 0), 5))) / 3
    torch.testing.assert_close(baseline._loss(table, hidden), expected)


def test_the_question_is_a_mask_after_the_latest_items():
    sequences = [np.array([0, 1, 2, 3, 4, 5]), np.array([5, 4]), np.array([2])]
    baseline = BERT4Rec(dim=8, epochs=1, max_history=4).fit(sequences, 9)
    together = baseline.user_vectors([*sequences, np.zeros(0, dtype=np.int64)], np.arange(4))
    asked = torch.tensor([[3, 4, 5, MASK]])
    np.testing.assert_allclose(together[0], baseline.model(asked)[0, 3].detach().numpy(), atol=1e-5)
    asked = torch.tensor([[2, MASK]])
    np.testing.assert_allclose(together[2], baseline.model(asked)[0, 1].detach().numpy(), atol=1e-5)
    assert not together[3].any()


def test_it_learns_who_follows_whom():
    options = {"masked": 0.3, "only_last": 0.3, "dropout": 0.0, "learning_rate": 5e-3, "batch_size": 16}
    model = BERT4Rec(dim=32, layers=1, epochs=60, patience=60, **options)
    assert isinstance(model, VectorBaseline)
    assert learnt(model, behind=3) >= 0.95


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 5, "heads": 2}, "dim: got 5, expected a multiple of heads=2"),
        ({"max_history": 1}, "max_history: got 1, expected at least 2"),
        ({"masked": 1.0}, "masked: got 1.0"),
        ({"only_last": -0.1}, "only_last: got -0.1"),
        ({"loss": "hinge"}, "loss: got 'hinge'"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        BERT4Rec(**options)


def test_nobody_with_two_items_is_refused():
    with pytest.raises(InputError, match="no user has two interactions, which BERT4Rec needs"):
        BERT4Rec().fit([np.array([0]), np.array([1])], 2)
