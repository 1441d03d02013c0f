import numpy as np
import pytest
import torch

from align3gr.baselines.vectors import rank_by_vectors, train_until_flat
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.errors import InputError

ITEMS = np.array([[3.0, 0], [2, 1], [1, 2], [0, 3], [2, 1]], dtype=np.float32)


class Fixed:
    """Vectors given; the user with row r likes the r-th direction."""

    def fit(self, train_sequences, num_items, validate=None):
        return self

    def item_vectors(self):
        return ITEMS

    def user_vectors(self, histories, user_rows):
        return np.eye(2, dtype=np.float32)[user_rows]


def questions(histories, user_rows) -> EvaluationSet:
    return EvaluationSet(
        user_rows=np.array(user_rows),
        histories=[np.array(history, dtype=np.int64) for history in histories],
        targets=np.zeros(len(histories), dtype=np.int64),
        ratings=None,
        max_history=20,
        num_users=2,
        num_items=5,
    )


@pytest.mark.parametrize("batch_size", [1, 2, 512])
def test_lists_by_hand(batch_size):
    asked = questions([[0], [], [3, 2, 3, 1]], [0, 1, 1])
    allowed, masked = rank_by_vectors(Fixed(), asked, 4, batch_size)
    # First direction: 3, 2, 1, 0, 2; second: 0, 1, 2, 3, 1. Equal scores go by index.
    assert allowed.tolist() == [[0, 1, 4, 2], [3, 2, 1, 4], [3, 2, 1, 4]]
    assert masked.tolist() == [[1, 4, 2, 3], [3, 2, 1, 4], [4, 0, -1, -1]]


def test_lists_longer_than_the_catalogue_end_with_nothing():
    allowed, masked = rank_by_vectors(Fixed(), questions([[0, 1]], [1]), 7)
    assert allowed.tolist() == [[3, 2, 1, 4, 0, -1, -1]]
    assert masked.tolist() == [[3, 2, 4, -1, -1, -1, -1]]


def test_nobody_asks():
    assert rank_by_vectors(Fixed(), questions([], np.zeros(0, dtype=np.int64)), 3)[1].shape == (0, 3)


def train(values, patience, epochs=10, losses=(0.0,) * 10):
    """Each epoch adds 1 to the weight and loses `losses`; validation says `values` one after the other."""
    losses = iter(losses)
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)

    def run_epoch():
        with torch.no_grad():
            module.weight += 1
        return next(losses)

    said = iter(values)
    curve = train_until_flat(run_epoch, lambda: next(said), module, epochs, patience)
    return module.weight.item(), curve


def test_training_stops_after_patience_and_returns_to_the_best_epoch():
    # Best at the second epoch; the third and fourth do not exceed it.
    assert train([0.1, 0.5, 0.5, 0.4, 0.9], patience=2) == (2.0, [0.1, 0.5, 0.5, 0.4])
    assert train([0.1, 0.5, 0.5, 0.6, 0.5, 0.5, 0.5], patience=3) == (4.0, [0.1, 0.5, 0.5, 0.6, 0.5, 0.5, 0.5])


def test_training_ends_with_its_epochs():
    assert train([0.1, 0.2, 0.3], patience=2, epochs=3) == (3.0, [0.1, 0.2, 0.3])


def test_a_loss_that_is_no_number_ends_training_at_the_best_epoch_before():
    assert train([0.1, 0.5, 0.4, 0.9], patience=9, losses=[1.0, 1.0, 1.0, np.nan]) == (2.0, [0.1, 0.5, 0.4])
    with pytest.raises(InputError, match="learning_rate: the loss of epoch 1 of Linear is inf; lower it"):
        train([0.1], patience=9, losses=[np.inf])


def test_without_validation_all_epochs_are_run():
    module = torch.nn.Linear(1, 1)
    runs = []
    assert train_until_flat(lambda: runs.append(module.training) or 0.0, None, module, 4, 1) == []
    assert runs == [True] * 4 and not module.training
