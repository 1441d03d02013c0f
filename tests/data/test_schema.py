from datetime import datetime

import polars as pl
import pytest

from align3gr.data.schema import validate_interactions, validate_items, validate_users
from align3gr.errors import InputError

INTERACTIONS = {"user_id": ["u", "v"], "item_id": [7, 8], "timestamp": [1, 2], "rating": [5, None]}
ITEMS = {"item_id": ["7", "8"], "title": ["A", "B"], "text": ["a", "b"]}
USERS = {"user_id": ["u", "v"], "profile": ["", "p"]}


def test_interactions_come_out_in_canonical_types_and_order():
    frame = pl.DataFrame(INTERACTIONS | {"extra": [1, 2]})
    out = validate_interactions(frame, "x.parquet")
    assert out.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "rating": pl.Float64,
    }
    assert out.rows() == [("u", "7", 1, 5.0), ("v", "8", 2, None)]


def test_dates_become_microseconds():
    frame = pl.DataFrame(INTERACTIONS | {"timestamp": [datetime(1970, 1, 1), datetime(1970, 1, 1, 0, 0, 2)]})
    assert validate_interactions(frame, "x")["timestamp"].to_list() == [0, 2_000_000]


@pytest.mark.parametrize(
    ("changed", "column", "words"),
    [
        ({"user_id": [None, "v"]}, "user_id", "null in row 0"),
        ({"user_id": ["u", ""]}, "user_id", "empty string in row 1"),
        ({"item_id": [7.0, 8.0]}, "item_id", "Float64"),
        ({"timestamp": [1, None]}, "timestamp", "null in row 1"),
        ({"timestamp": [1.5, 2.5]}, "timestamp", "expected integers or datetimes"),
        ({"timestamp": ["1", "2"]}, "timestamp", "String"),
        ({"rating": ["good", "bad"]}, "rating", "expected numbers"),
        ({"rating": [1.0, float("nan")]}, "rating", "nan in row 1"),
        ({"feedback": ["liked", "meh"]}, "feedback", "'meh'"),
        ({"review": [1, 2]}, "review", "expected strings"),
    ],
)
def test_bad_interactions_are_refused_with_source_and_column(changed, column, words):
    with pytest.raises(InputError) as error:
        validate_interactions(pl.DataFrame(INTERACTIONS | changed), "logs/x.parquet")
    message = str(error.value)
    assert message.startswith("logs/x.parquet: ") and repr(column) in message and words in message
    assert "\n" not in message


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_a_missing_column_is_named(column):
    with pytest.raises(InputError, match=f"x: column '{column}' is missing"):
        validate_interactions(pl.DataFrame(INTERACTIONS).drop(column), "x")


def test_items_and_users_are_unique_and_have_texts():
    assert validate_items(pl.DataFrame(ITEMS), "x").rows() == [("7", "A", "a"), ("8", "B", "b")]
    assert validate_users(pl.DataFrame(USERS), "x").rows() == [("u", ""), ("v", "p")]
    with pytest.raises(InputError, match="'item_id' has '7' more than once"):
        validate_items(pl.DataFrame(ITEMS | {"item_id": ["7", "7"]}), "x")
    with pytest.raises(InputError, match="'title' is null in row 1"):
        validate_items(pl.DataFrame(ITEMS | {"title": ["A", None]}), "x")
    with pytest.raises(InputError, match="'profile' has type Int64"):
        validate_users(pl.DataFrame(USERS | {"profile": [1, 2]}), "x")
    with pytest.raises(InputError, match="'profile' is missing"):
        validate_users(pl.DataFrame(USERS).drop("profile"), "x")
