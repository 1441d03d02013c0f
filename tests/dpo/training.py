"""What the tests of `SoftmaxDPOTrainer` read off a trainer."""

import math

import torch

UNIFORM = (math.log(3) + math.log(2) + math.log(5)) / 3  # `rows` have 2, 1 and 4 rejected


def losses(trainer) -> list[float]:
    """Train; the logged losses."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def batch_loss(trainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch of the whole dataset."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_gradients_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """The same names, and values within 1e-5 of the largest of each."""
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(ours[name], grad, atol=1e-5 * grad.abs().max().item(), rtol=1e-5, msg=name)
