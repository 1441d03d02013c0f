import math

import numpy as np
import pytest

from align3gr.encoders.lift import cluster_lift, label_lift


def test_lift_of_labels_by_hand():
    # Two labels, half of the interactions each: random pairs share one half of the time, consecutive ones always.
    labels = np.array([0, 0, 1, 1])
    sequences = [np.array([0, 1, 0]), np.array([2, 3, 2])] * 2000
    assert label_lift(labels, sequences) == pytest.approx(2, rel=0.05)
    # Never; the pair of an item with itself does not count.
    assert label_lift(labels, [np.array([0, 0, 2]), np.array([3, 3, 1])] * 50) == 0


def test_vectors_of_kinds_have_a_lift_and_random_ones_none():
    rng = np.random.default_rng(0)
    kind = np.arange(80) % 4
    sequences = [4 * rng.integers(20, size=8) + rng.integers(4) for _ in range(500)]
    telling = np.eye(4)[kind] + 0.05 * rng.normal(size=(80, 4))
    assert cluster_lift(telling, sequences, clusters=4) == pytest.approx(4, rel=0.1)
    assert cluster_lift(rng.normal(size=(80, 4)), sequences, clusters=4) == pytest.approx(1, abs=0.25)


def test_no_pairs_are_no_number():
    assert math.isnan(label_lift(np.array([0, 1]), [np.array([1])]))
    assert math.isnan(label_lift(np.array([0, 1]), []))
