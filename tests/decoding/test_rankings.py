import numpy as np
import pytest

from align3gr.decoding.rankings import _is_short


@pytest.mark.parametrize(
    ("allowed", "denied", "short"),
    [
        (None, None, True),  # 10 items, one of them seen: 9 could be shown and 2 are
        ([0, 1, 2], None, False),  # one set for all: 1 and 2 are left, and there
        ([0, 1, 2, 3], None, True),
        ([0, 1, 2, 3], [3], False),
        ([[0, 1, 2, 3]], [[9]], True),  # a set each
        (None, [3, 4, 5, 6, 7, 8, 9], False),
    ],
)
def test_a_list_is_short_where_items_are_left(allowed, denied, short):
    assert _is_short(np.array([[1, 2, -1]]), [np.array([0])], allowed, denied, 10).tolist() == [short]


def test_a_full_list_is_never_short():
    assert not _is_short(np.array([[1, 2, 3]]), [np.array([0])], None, None, 10).any()
