import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from align3gr.encoders import DINConfig, DINModel
from align3gr.encoders.modeling_din import Dice
from align3gr.errors import InputError


def small(**settings) -> DINModel:
    torch.manual_seed(0)
    model = DINModel(DINConfig(num_items=6, embedding_dim=3, attention_dims=(4,), hidden_dims=(5,), **settings))
    # Also the last layer of the attention, which starts at equal weights.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_dice_by_hand():
    dice = Dice(1)
    dice.alpha.data.fill_(0.5)
    s = torch.tensor([[1.0], [3.0]])  # mean 2, variance 1
    p = sigmoid(np.array([-1.0, 1.0]))
    expected = p * [1, 3] + (1 - p) * 0.5 * np.array([1, 3])
    assert np.allclose(dice(s).detach().numpy()[:, 0], expected, atol=1e-6)
    # Running statistics after one step of momentum 0.1: mean 0.2, unbiased variance 2 -> 0.9 + 0.2.
    dice.eval()
    p = sigmoid((5 - 0.2) / np.sqrt(1.1))
    assert dice(torch.tensor([[5.0]])).item() == pytest.approx(5 * p + (1 - p) * 0.5 * 5, abs=1e-5)


def test_a_single_row_in_training_uses_the_running_statistics():
    dice = Dice(1)
    assert dice(torch.tensor([[2.0]])).item() == pytest.approx(2 * sigmoid(2.0), abs=1e-5)


def test_attention_by_hand_without_softmax():
    model = small(activation="prelu").eval()
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    embeddings = weights["item_embeddings.weight"]
    history, target = embeddings[[0, 4]], embeddings[2]
    pooled, attention = np.zeros(3), []
    for h, place in zip(history, weights["activation_unit.position.weight"][[1, 0]], strict=True):  # latest first
        x = np.concatenate([h, target, h - target, h * target])
        hidden = weights["activation_unit.input.weight"] @ x + weights["activation_unit.input.bias"] + place
        hidden = np.where(hidden > 0, hidden, weights["activation_unit.tower.0.weight"] * hidden)
        a = weights["activation_unit.tower.1.weight"][0] @ hidden + weights["activation_unit.tower.1.bias"][0]
        attention.append(a)
        pooled += a * h / 2  # two items
    output = model(torch.tensor([[0, 4]]), torch.tensor([[2]]))
    assert np.allclose(output.interests.detach().numpy()[0, 0], pooled, atol=1e-6)
    assert abs(sum(attention) - 1) > 0.05  # no softmax
    features = np.concatenate([pooled, target, pooled * target])
    hidden = weights["input.weight"] @ features + weights["input.bias"]
    hidden = np.where(hidden > 0, hidden, weights["tower.0.weight"] * hidden)
    logit = weights["tower.1.weight"][0] @ hidden + weights["tower.1.bias"][0] + weights["item_bias.weight"][2, 0]
    assert output.logits.item() == pytest.approx(logit, abs=1e-5)


def test_recency_by_hand():
    model = small(attention="recency", max_history=2).eval()
    old, latest = 1 + model.recency.weight[1], 1 + model.recency.weight[0]
    embeddings = model.item_embeddings.weight
    # Padding takes no place; a third item from the end, more than the two that are read, has the oldest one's weight.
    interests = model.interests(torch.tensor([[6, 0, 6, 4, 6], [2, 0, 6, 6, 4]]), torch.tensor([[2], [3]]))[:, 0]
    torch.testing.assert_close(interests[0], (old * embeddings[0] + latest * embeddings[4]) / 2)
    torch.testing.assert_close(interests[1], (old * embeddings[2] + old * embeddings[0] + latest * embeddings[4]) / 3)


@pytest.mark.parametrize("attention", ["target", "recency"])
def test_attention_starts_as_mean_pooling(attention):
    model = DINModel(DINConfig(num_items=6, embedding_dim=3, attention=attention)).eval()
    interests = model(torch.tensor([[0, 4, 6]]), torch.tensor([[2, 3]])).interests[0]
    assert torch.allclose(interests, model.item_embeddings.weight[[0, 4]].mean(0).expand(2, 3), atol=1e-6)


def test_mean_pooling_is_the_mean():
    model = small(attention="mean").eval()
    interests = model(torch.tensor([[0, 4, 6]]), torch.tensor([[2, 3]])).interests[0]
    assert torch.allclose(interests, model.item_embeddings.weight[[0, 4]].mean(0).expand(2, 3), atol=1e-6)
    assert not hasattr(model, "activation_unit")


@pytest.mark.parametrize("attention", ["target", "recency", "mean"])
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(attention, training):
    targets = torch.tensor([[1, 2], [3, 5]])
    tight = torch.tensor([[0, 4], [6, 2]])
    wide = torch.tensor([[6, 0, 6, 6, 4], [6, 6, 6, 2, 6]])
    labels = torch.tensor([[1, 0], [1, 0]])
    outputs = []
    for history in (tight, wide):
        model = small(attention=attention, mini_batch_l2=0.1).train(training)
        outputs.append(model(history, targets, labels))
    assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-6)
    assert outputs[0].loss.item() == pytest.approx(outputs[1].loss.item(), abs=1e-6)


def test_an_empty_history_has_no_interest():
    output = small().eval()(torch.tensor([[6, 6]]), torch.tensor([[1, 2]]))
    assert not output.interests.any() and output.logits.isfinite().all()


def test_regularisation_by_hand():
    model = small(mini_batch_l2=0.5).eval()
    model.interactions[:] = torch.tensor([1.0, 2, 4, 0, 0, 0, 0])
    history, targets, labels = torch.tensor([[0, 0, 6]]), torch.tensor([[2, 1]]), torch.tensor([[1, 0]])
    output = model(history, targets, labels)
    squares = model.item_embeddings.weight.square().sum(1)
    log_loss = torch.nn.functional.softplus(output.logits * torch.tensor([[-1.0, 1.0]])).mean()
    # Each item once, although 0 stands there twice; padding not at all.
    expected = log_loss + 0.5 * (squares[0] / 1 + squares[1] / 2 + squares[2] / 4)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_auto_classes_open_a_saved_model(tmp_path):
    model = small()
    model.interactions[1] = 3
    model(torch.tensor([[0, 4], [1, 2]]), torch.tensor([[1], [2]]))  # moves the running statistics of Dice
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "align3gr_din" and not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    batch = torch.tensor([[0, 4, 6]]), torch.tensor([[3, 1]])
    assert torch.equal(loaded(*batch).logits, model.eval()(*batch).logits)


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match="attention: got 'softmax', choose from target, recency, mean"):
        DINConfig(attention="softmax")
    with pytest.raises(InputError, match="activation: got 'relu'"):
        DINConfig(activation="relu")
    with pytest.raises(InputError, match="must be 1 or more"):
        DINConfig(num_items=0)
