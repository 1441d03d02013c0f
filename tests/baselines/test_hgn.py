import numpy as np
import pytest
import torch

from align3gr.baselines import HGN, HGNModel, VectorBaseline
from tests.baselines.markets import learnt


@pytest.fixture
def model() -> HGNModel:
    torch.manual_seed(0)
    made = HGNModel(num_users=3, num_items=9, dim=4, window=3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    with torch.no_grad():
        made.items.weight[9] = 0
    return made


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def scores_written_out(model: HGNModel, user: int, history: list[int]) -> list[float]:
    """The score of every item, one item of the history after the other; padding is left out, as if not there."""
    weight = {name: value.detach().numpy().astype(np.float64) for name, value in model.named_parameters()}
    u = weight["users.weight"][user]
    gated, gates = [], []
    for place, item in enumerate(history):
        if item == 9:
            continue
        e = weight["items.weight"][item]
        inner = (
            weight["feature_gate.weight"] @ e + weight["feature_gate.bias"] + weight["feature_gate_user.weight"] @ u
        )
        gated.append(e * sigmoid(inner))
        gates.append(
            sigmoid(weight["instance_gate.weight"][0] @ gated[-1] + weight["instance_gate_user.weight"][place] @ u)
        )
    pooled = sum(gate * vector for gate, vector in zip(gates, gated, strict=True)) / sum(gates)
    found = []
    for *answer, bias in weight["answers"]:
        said = u @ answer + pooled @ answer + bias
        found.append(said + sum(weight["items.weight"][item] @ answer for item in history if item != 9))
    return found


@pytest.mark.parametrize("history", [[3, 1, 4], [9, 5, 5], [9, 9, 0]])
def test_scores_against_the_equations_of_the_paper(model, history):
    found = model(torch.tensor([2]), torch.tensor([history])) @ model.catalogue.T
    np.testing.assert_allclose(found.detach().numpy()[0], scores_written_out(model, 2, history), rtol=1e-4, atol=1e-5)


def test_nothing_but_padding_leaves_the_user(model):
    said = model(torch.tensor([1]), torch.tensor([[9, 9, 9]]))[0]
    torch.testing.assert_close(said, torch.cat([model.users.weight[1], torch.ones(1)]))


@pytest.mark.parametrize("loss", ["bpr", "sampled_softmax"])
def test_it_learns_who_follows_whom(loss):
    model = HGN(dim=16, window=1, ahead=1, loss=loss, learning_rate=2e-2, batch_size=64, epochs=40, patience=40)
    assert isinstance(model, VectorBaseline)
    assert learnt(model) >= 0.95
