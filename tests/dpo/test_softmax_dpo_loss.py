"""Softmax-DPO loss against values computed by hand."""

import math

import pytest
import torch

from align3gr.dpo.softmax_dpo_loss import softmax_dpo_loss


def loss(chosen, rejected, mask=None, beta=0.5):
    rejected = torch.tensor(rejected)
    mask = torch.ones_like(rejected, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return softmax_dpo_loss(torch.tensor(chosen), rejected, mask, beta)


def test_by_hand():
    # -log(sigmoid(-log(exp(0.5 * (1 - 2)) + exp(0.5 * (4 - 2))))), as Eq. (3) is printed
    expected = -math.log(1 / (1 + math.exp(math.log(math.exp(-0.5) + math.exp(1.0)))))
    assert loss([2.0], [[1.0, 4.0]]).item() == pytest.approx(expected, abs=1e-6)


def test_policy_equal_to_reference_gives_log_of_the_number_of_completions():
    values = loss([0.0, 0.0], [[0.0] * 20, [0.0] * 20], [[True] * 20, [True] * 3 + [False] * 17])
    assert values.tolist() == pytest.approx([math.log(21), math.log(4)], abs=1e-6)


def test_one_rejected_is_the_sigmoid_loss():
    expected = -torch.nn.functional.logsigmoid(torch.tensor(0.5 * (1.5 + 0.7))).item()
    assert loss([1.5], [[-0.7]]).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("chosen", "expected"), [(1e4, 0.0), (-1e4, 1e4 + math.log(2))])
def test_extreme_log_ratios_are_finite_with_finite_gradients(chosen, expected):
    ratio = torch.tensor([chosen], requires_grad=True)
    value = softmax_dpo_loss(ratio, torch.zeros(1, 3), torch.tensor([[True, True, False]]), beta=1.0)
    assert value.item() == pytest.approx(expected, abs=1e-2)
    value.sum().backward()
    assert torch.isfinite(ratio.grad).all()


def test_masked_slots_have_no_influence_and_no_gradient():
    rejected = torch.tensor([[1.0, 1e4]], requires_grad=True)
    value = softmax_dpo_loss(torch.tensor([0.0]), rejected, torch.tensor([[True, False]]), beta=1.0)
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(1 + math.e), abs=1e-6)
    assert rejected.grad[0, 1] == 0 and rejected.grad[0, 0] > 0


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("drawn_from", ["reference", "elsewhere"])
def test_the_optimum_is_the_reference_times_a_power_of_data_over_rejected(beta, drawn_from):
    """What docs/preference-level.md says of beta, for a policy that is a table of five items: every pair, weighed."""
    data = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1], dtype=torch.float64)
    rejected = reference if drawn_from == "reference" else torch.full((5,), 0.2, dtype=torch.float64)
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )
    chosen, other = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        ratio = logits.log_softmax(0) - reference.log()
        pairs = softmax_dpo_loss(ratio[chosen], ratio[other, None], torch.ones(25, 1, dtype=torch.bool), beta)
        loss = (pairs * data[chosen] * rejected[other]).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = reference * (data / rejected) ** (1 / beta)
    assert torch.allclose(logits.softmax(0), expected / expected.sum(), atol=1e-5)
