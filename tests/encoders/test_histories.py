import numpy as np
import pytest

from align3gr.encoders.histories import Histories, auc_of_true_items, last_items
from align3gr.errors import InputError

SEQUENCES = [np.array([4, 2, 0, 1]), np.array([], dtype=np.int64), np.array([3, 3])]


def test_rows_hold_the_latest_items_before_a_position():
    histories = Histories(SEQUENCES, 5, max_history=2)
    # Positions: 3 is the last item of user 0, 1 its second, 5 the second of user 2, 4 its first.
    rows = histories.before(np.array([0, 0, 2, 2]), np.array([3, 1, 5, 4]))
    assert rows.tolist() == [[2, 0], [5, 4], [5, 3], [5, 5]]


def test_negatives_are_items_that_the_user_did_not_take():
    histories = Histories(SEQUENCES, 5)
    drawn = histories.negatives(np.array([0, 1, 2]), 400, np.random.default_rng(0))
    assert [sorted(set(row.tolist())) for row in drawn] == [[3], [0, 1, 2, 3, 4], [0, 1, 2, 4]]
    counts = np.bincount(drawn[1], minlength=5)
    assert counts.min() > 50


def test_the_inner_validation_is_the_last_item_of_users_with_three(monkeypatch):
    sequences = [np.arange(length) for length in (3, 2, 4, 5)]
    rng = np.random.default_rng(0)
    assert last_items(Histories(sequences, 5), rng, "din").tolist() == [2, 8, 13]
    monkeypatch.setattr("align3gr.encoders.histories.VALIDATION_USERS", 2)
    fewer = last_items(Histories(sequences, 5), rng, "din")
    assert len(fewer) == 2 and set(fewer) < {2, 8, 13}
    with pytest.raises(InputError, match="three interactions, which 'din' needs"):
        last_items(Histories(sequences[1:2], 5), rng, "din")


def test_auc_by_hand():
    # Above both; above one of two; a tie and below.
    logits = np.array([[2.0, 1, 0], [2, 1, 3], [2, 2, 3]])
    assert auc_of_true_items(logits) == pytest.approx((1 + 0.5 + 0.25) / 3)
