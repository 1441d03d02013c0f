import itertools

import numpy as np
import pytest

from align3gr.errors import InputError
from align3gr.evaluation.metrics import ABSENT
from align3gr.evaluation.segments import lost_levels, segment_metrics, segment_users, shared_levels

RANKS = np.array([0, 4, ABSENT, 1])


def test_every_segment_divides_all_users():
    segments = segment_users(np.array([1, 5, 6, 51]), np.array([0, 1, 5, 101]), np.array([True, False, False, False]))
    where = {s: {name: np.flatnonzero(users).tolist() for name, users in p.items()} for s, p in segments.items()}
    assert where == {
        "history length": {"0-5": [0, 1], "6-10": [2], "11-20": [], "21-50": [], "51+": [3]},
        "target popularity": {"0": [0], "1-5": [1, 2], "6-20": [], "21-100": [], "101+": [3]},
        "target": {"repeat": [0], "discovery": [1, 2, 3]},
    }


def test_metrics_of_segments_by_hand():
    segments = segment_users(np.array([1, 5, 6, 51]), np.array([0, 1, 5, 101]), np.array([True, False, False, False]))
    found = segment_metrics(RANKS, segments, ks=(2, 5))
    assert list(found["history length"]) == ["0-5", "6-10", "51+"]  # parts without users are left out
    part = found["history length"]["0-5"]
    assert (part["recall@2"], part["recall@5"], part["mrr@5"], part["users"]) == (0.5, 1, (1 + 1 / 5) / 2, 2)
    assert found["target"]["discovery"]["recall@5"] == pytest.approx(2 / 3)


CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [2, 0, 0]])


def test_shared_levels_by_hand():
    rankings = np.array([[3, 1], [3, -1], [2, 3], [-1, -1], [1, 0]])
    # Item 3 has the codes of item 0 at the last two levels, behind another first one: nothing is shared.
    assert shared_levels(rankings, np.zeros(5, dtype=int), CODES).tolist() == [2, 0, 1, 0, 3]
    assert lost_levels(rankings, np.zeros(5, dtype=int), CODES) == {"0": 0.5, "1": 0.25, "2": 0.25, "3": 0, "users": 4}


def test_no_target_lost():
    assert lost_levels(np.array([[0]]), np.array([0]), CODES) == {"0": 0, "1": 0, "2": 0, "3": 0, "users": 0}


def test_an_item_with_the_same_codes_is_not_the_target():
    codes = np.array([[1, 2], [1, 2]])
    assert lost_levels(np.array([[1]]), np.array([0]), codes) == {"0": 0, "1": 0, "2": 1, "users": 1}


def test_shared_levels_equal_a_loop():
    rng = np.random.default_rng(0)
    codes, targets = rng.integers(3, size=(40, 3)), rng.integers(40, size=60)
    rankings = rng.integers(-1, 40, size=(60, 4))
    expected = [
        max(len(list(itertools.takewhile(bool, codes[item] == codes[target]))) if item >= 0 else 0 for item in ranking)
        for ranking, target in zip(rankings, targets, strict=True)
    ]
    assert set(expected) == {0, 1, 2, 3}
    assert shared_levels(rankings, targets, codes).tolist() == expected


def test_codes_of_another_catalogue_are_refused():
    with pytest.raises(InputError, match="codes: got 4 rows"):
        shared_levels(np.array([[4]]), np.array([0]), CODES)
