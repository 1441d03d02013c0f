"""Logs of events: checked at the door, turned into levels, joined to a split."""

import polars as pl
import pytest

from align3gr.data import feedback_of_events, feedback_of_log, read_events, read_feedback
from align3gr.data.schema import validate_events, validate_feedback
from align3gr.errors import InputError
from tests.data.test_feedback import split_of


def log(rows, columns=("user_id", "item_id", "timestamp", "event", "request_id", "rank")) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=list(columns), orient="row")


def levels(rows) -> list[tuple]:
    table = feedback_of_events(validate_events(log(rows), "log"))
    return table.select("user_id", "item_id", "timestamp", "feedback", "request_id", "rank").rows()


def test_what_happened_to_a_shown_item_decides():
    shown = [("u", item, 1, "impression", "r", place + 1) for place, item in enumerate("abcde")]
    done = [("u", "b", 2, "click", "r", None), ("u", "c", 3, "purchase", "r", None), ("u", "d", 4, "dislike", "r", 7)]
    assert levels(shown + done) == [
        ("u", "a", 1, "neutral", "r", 1),
        ("u", "b", 2, "liked", "r", 2),
        ("u", "c", 3, "liked", "r", 3),
        ("u", "d", 4, "disliked", "r", 4),
        ("u", "e", 1, "neutral", "r", 5),
    ]


@pytest.mark.parametrize(
    ("events", "level"),
    [
        (["click", "dislike"], "disliked"),  # an explicit sign counts more than a click
        (["dislike", "click"], "disliked"),
        (["like", "dislike"], "disliked"),  # of two explicit ones the later
        (["dislike", "purchase"], "liked"),
        (["click", "impression"], "liked"),
        (["impression", "impression"], "neutral"),
        (["like"], "liked"),
    ],
)
def test_several_events_of_one_item(events, level):
    assert [row[3] for row in levels([("u", "a", time, event, "r", None) for time, event in enumerate(events)])] == [
        level
    ]
    # At one moment the order of the rows decides.
    assert [row[3] for row in levels([("u", "a", 5, event, None, None) for event in events])] == [level]


def test_requests_are_judged_apart_and_rows_without_one_together():
    rows = [
        ("u", "a", 1, "impression", "r1", 1),
        ("u", "a", 2, "click", "r2", 3),
        ("v", "a", 1, "impression", None, None),
    ]
    rows += [("v", "a", 8, "click", None, None), ("v", "b", 9, "impression", None, None)]
    assert levels(rows) == [
        ("u", "a", 1, "neutral", "r1", 1),
        ("u", "a", 2, "liked", "r2", 3),
        ("v", "a", 8, "liked", None, None),
        ("v", "b", 9, "neutral", None, None),
    ]


def test_scores_give_places_where_the_log_has_no_ranks():
    columns = ("user_id", "item_id", "timestamp", "event", "request_id", "score")
    rows = [("u", "a", 1, "impression", 7, -3.0), ("u", "b", 1, "impression", 7, -1.0)]
    rows += [("u", "c", 1, "impression", 8, -9.0), ("u", "d", 1, "impression", None, 0.0)]
    table = feedback_of_events(validate_events(log(rows, columns), "log"))
    assert table["rank"].to_list() == [2, 1, 1, None]
    assert table["request_id"].to_list() == ["7", "7", "8", None]


def test_places_by_score_count_items_not_events():
    columns = ("user_id", "item_id", "timestamp", "event", "request_id", "score")
    rows = [("u", "a", 1, "impression", "r", 0.9), ("u", "a", 2, "click", "r", 0.9)]
    rows += [("u", "b", 1, "impression", "r", 0.5), ("u", "c", 1, "impression", "r", 0.5)]
    rows += [("u", "c", 2, "click", "r", None), ("u", "d", 1, "impression", "r", 0.7)]
    table = feedback_of_events(validate_events(log(rows, columns), "log"))
    assert table.select("item_id", "rank").rows() == [("a", 1), ("b", 3), ("c", 4), ("d", 2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop("event"), ["column 'event' is missing", "needed: user_id, item_id, timestamp, event"]),
        (lambda t: t.with_columns(event=pl.lit("skip")), ["'event' has the value 'skip'", "impression, click, like"]),
        (lambda t: t.with_columns(event=pl.lit(None, pl.String)), ["'event' is null in row 0"]),
        (lambda t: t.with_columns(user_id=pl.lit(1.5)), ["'user_id' has type Float64"]),
        (lambda t: t.with_columns(timestamp=pl.lit("noon")), ["'timestamp' has type String"]),
        (lambda t: t.with_columns(rank=pl.lit(0)), ["'rank' is 0 in row 0", "the first place is 1"]),
        (lambda t: t.with_columns(rank=pl.lit(1.5)), ["'rank' has type Float64"]),
        (lambda t: t.with_columns(score=pl.lit(float("inf"))), ["'score' is inf in row 0", "no score"]),
        (lambda t: t.with_columns(request_id=pl.lit(1.5)), ["'request_id' has type Float64"]),
    ],
)
def test_a_wrong_log_is_refused_in_one_line_that_names_the_column(change, words):
    good = log([("u", "a", 1, "click", "r", 1)])
    with pytest.raises(InputError) as raised:
        validate_events(change(good), "events.parquet")
    message = str(raised.value)
    assert message.startswith("events.parquet: ") and "\n" not in message
    assert all(word in message for word in words), message


def test_a_log_is_joined_to_the_split_and_the_rest_is_counted():
    split = split_of([None, None])  # held out: u d at 10, v a at 11
    rows = [("u", "a", 30, "impression", "r", 1), ("u", "b", 30, "dislike", "r", 2), ("x", "a", 30, "click", "r", 1)]
    rows += [("u", "z", 30, "click", "r", 3), ("x", "z", 30, "click", "r", 3), ("u", "d", 10, "purchase", None, None)]
    table, counts = feedback_of_log(validate_events(log(rows), "log"), split)
    assert table.select("user_id", "item_id", "feedback").rows() == [("u", "a", "neutral"), ("u", "b", "disliked")]
    assert counts == {
        "events": 6,
        "unknown_users": 2,
        "unknown_items": 2,
        "held_out": 1,
        "feedback": 2,
        "users": 1,
        "requests": 1,
        "disliked": 1,
        "neutral": 1,
        "liked": 0,
    }
    with pytest.raises(InputError, match=r"none of 1 events is of a user and an item .* \(1 of unknown users"):
        feedback_of_log(validate_events(log(rows[2:3]), "log"), split)


def test_held_out_items_at_another_time_are_kept_and_told(caplog):
    events = validate_events(log([("u", "d", 99, "click", None, None)]), "log")
    table, counts = feedback_of_log(events, split_of([None, None]))
    assert (table.height, counts["held_out"]) == (1, 0)
    assert "1 events are of a user and their held-out item" in caplog.text


def test_files_and_folders(tmp_path):
    (tmp_path / "log").mkdir()
    for day in (1, 2):
        log([("u", "a", day, "click", "r", 1)]).write_parquet(tmp_path / "log" / f"{day}.parquet")
    assert read_events(tmp_path / "log")["timestamp"].sort().to_list() == [1, 2]
    table = feedback_of_events(read_events(tmp_path / "log" / "1.parquet"))
    table.write_parquet(tmp_path / "feedback.parquet")
    assert read_feedback(tmp_path / "feedback.parquet").equals(table)
    with pytest.raises(InputError, match=r"--log .*nowhere: not found"):
        read_events(tmp_path / "nowhere")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(InputError, match=r"text.parquet: not a readable Parquet file"):
        read_events(tmp_path / "text.parquet")
    with pytest.raises(InputError, match=r"column 'feedback' is null in row 0"):
        validate_feedback(table.with_columns(feedback=pl.lit(None, pl.String)), "t")


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pl.Series("rank", ["first"]), "column 'rank' has type String"),
        (pl.Series("rank", [0]), "column 'rank' is 0 in row 0; the first place is 1"),
        (pl.Series("rank", [2**63], dtype=pl.UInt64), "column 'rank' is 9223372036854775808 in row 0"),
        (pl.Series("request_id", [1.5]), "column 'request_id' has type Float64"),
        (pl.Series("timestamp", [2**63], dtype=pl.UInt64), "column 'timestamp' is 9223372036854775808 in row 0"),
    ],
)
def test_both_tables_refuse_the_same_requests_ranks_and_times(column, words):
    events = validate_events(log([("u", "a", 1, "click", "r", 1)]), "log")
    for frame, validate in ((events, validate_events), (feedback_of_events(events), validate_feedback)):
        with pytest.raises(InputError, match=f"^table: {words}"):
            validate(frame.with_columns(column), "table")
