import itertools

import numpy as np
import pytest
import torch

from align3gr.baselines.sequence_training import batches, cut, encode_histories, take_steps


def test_every_item_but_the_first_is_learnt_once():
    for length in range(12):
        sequence = np.arange(100, 100 + length)
        pairs = [tuple(pair) for piece in cut(sequence, 4) for pair in itertools.pairwise(piece)]
        assert sorted(pairs) == [(item, item + 1) for item in range(100, 100 + length - 1)]


def test_batches_hold_every_row_once_and_little_padding():
    lengths = np.random.default_rng(1).integers(1, 51, size=1000)
    made = batches(lengths, 16, np.random.default_rng(0))
    assert sorted(np.concatenate(made).tolist()) == list(range(1000))
    padded = sum(len(rows) * lengths[rows].max() for rows in made)
    assert padded < 1.1 * lengths.sum()


def test_each_loss_is_computed_after_the_step_before():
    weight = torch.nn.Parameter(torch.tensor(4.0))
    optimizer = torch.optim.SGD([weight], lr=0.25)
    # Losses 16, 4 and 1: each step of a quarter of the gradient halves the weight.
    assert take_steps(optimizer, (weight**2 for _ in range(3))) == pytest.approx(7.0)
    assert weight.item() == pytest.approx(0.5)


def test_histories_are_encoded_by_length_and_come_back_in_order():
    histories = [np.array([5, 6, 7]), np.zeros(0, dtype=np.int64), np.array([2]), np.array([1, 9])]
    asked = []

    def encode(recent):
        asked.extend(len(history) for history in recent)
        return torch.tensor([[history[0], len(history)] for history in recent], dtype=torch.float32)

    found = encode_histories(histories, 2, 2, encode)
    assert found.tolist() == [[6, 2], [0, 0], [2, 1], [1, 2]] and asked == [1, 2, 2]
