"""User codes without the future, on the built-in market."""

import numpy as np
import polars as pl
import pytest

from align3gr.data.schema import PROFILE
from align3gr.errors import InputError
from align3gr.sft import UserCodes, user_codes_without_future


class Assigner:
    """Says in the code what it was given: how many items, the first and the last of them, and the profile's length."""

    def __init__(self):
        self.calls = []

    def user_codes(self, profiles, histories):
        self.calls += list(zip(profiles, histories, strict=True))
        return np.array([[len(items), int(items[0][1:]), int(items[-1][1:])] for items in histories], dtype=np.int64)


@pytest.fixture
def split():
    from align3gr.data import Tables, leave_one_out

    users = ["a"] * 7 + ["b"] * 4
    items = [f"i{n}" for n in [0, 1, 2, 3, 4, 5, 6, 2, 3, 0, 1]]
    interactions = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": list(range(11))})
    catalogue = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(7)],
            "title": [f"T{n}" for n in range(7)],
            "text": ["red"] * 4 + ["blue"] * 3,
        }
    )
    profiles = pl.DataFrame({"user_id": ["a", "b"], "profile": ["", "given"]})
    return leave_one_out(Tables(interactions, catalogue, profiles), min_interactions=0)


def test_all_is_the_same_code_everywhere(split):
    full = np.array([[1], [2]])
    codes = user_codes_without_future("all", full, split, None)
    assert codes.at(1, 1).tolist() == [2]
    assert [(first, end) for first, end, _ in codes.segments(0, 5)] == [(1, 5)]


def test_prefix_sees_the_items_before(split):
    codes = user_codes_without_future("prefix", np.zeros((2, 3), int), split, Assigner())
    # a's train items are 0..4, b's 2 and 3.
    assert [codes.at(0, position).tolist() for position in range(1, 5)] == [[1, 0, 0], [2, 0, 1], [3, 0, 2], [4, 0, 3]]
    assert codes.at(1, 1).tolist() == [1, 2, 2]


def test_cross_fitted_halves_never_see_themselves(split):
    assigner = Assigner()
    codes = user_codes_without_future("cross-fitted", np.zeros((2, 3), int), split, assigner)
    # a: items 0-2 behind the code of 3, 4 and the other way round; b: item 3 behind the code of item 2.
    assert [codes.at(0, position).tolist() for position in (1, 2)] == [[2, 3, 4]] * 2
    assert [codes.at(0, position).tolist() for position in (3, 4)] == [[3, 0, 2]] * 2
    assert codes.at(1, 1).tolist() == [1, 2, 2]
    profiles = {profile for profile, _ in assigner.calls}
    assert "given" in profiles  # the data's own profile stays
    made = [profile for profile, items in assigner.calls if items == ["i3", "i4"]]
    assert (
        len(made) == 1 and made[0].endswith("Lately chose T4; T3.") and not {"T0", "T1", "T2"} & set(made[0].split())
    )


def test_positions_are_covered_once(split):
    for kind in ("all", "cross-fitted", "prefix"):
        codes = user_codes_without_future(kind, np.zeros((2, 3), int), split, Assigner())
        for user, sequence in enumerate(split.train_sequences()):
            covered = [p for first, end, _ in codes.segments(user, len(sequence)) for p in range(first, end)]
            assert covered == list(range(1, len(sequence)))


def test_what_cannot_be_is_refused(split):
    with pytest.raises(InputError, match="user_codes_from: got 'some'"):
        user_codes_without_future("some", np.zeros((2, 1)), split, None)
    with pytest.raises(InputError, match="needs the model of the token level"):
        user_codes_without_future("prefix", np.zeros((2, 1)), split, None)
    assert UserCodes(np.array([[3]])).at(0, 9).tolist() == [3]
    assert split.users[PROFILE].to_list()[1] == "given"
