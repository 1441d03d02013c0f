import numpy as np
import polars as pl
import pytest

from align3gr.data.splits import k_core, leave_one_out, time_split
from align3gr.data.synthetic import SyntheticMarket, SyntheticMarketConfig
from align3gr.data.tables import Split, Tables
from align3gr.errors import InputError

TRAIN_ONLY = ("items.parquet", "users.parquet", "train.parquet", "reviews.parquet", "statistics.json")


def make_tables(rows, users=None):
    """Tables of (user, item, timestamp) rows, or (user, item, timestamp, rating)."""
    columns = ["user_id", "item_id", "timestamp", "rating"][: len(rows[0])]
    interactions = pl.DataFrame(rows, schema=columns, orient="row")
    ids = sorted(set(interactions["item_id"]))
    items = pl.DataFrame({"item_id": ids, "title": ids, "text": ids})
    return Tables(interactions, items, users)


def test_k_core_repeats_until_nothing_falls():
    # c has one interaction; without it u has one; without u, a has one; then v keeps only b, twice.
    rows = [("u", "c", 1), ("u", "a", 2), ("v", "a", 1), ("v", "b", 2), ("v", "b", 3)]
    core = k_core(make_tables(rows).interactions, 2)
    assert core.rows() == [("v", "b", 2), ("v", "b", 3)]


def test_k_core_keeps_what_has_enough():
    rows = [("u", "a", 1), ("u", "b", 2), ("v", "b", 1), ("v", "a", 2), ("w", "a", 1)]
    assert k_core(make_tables(rows).interactions, 2).rows() == rows[:4]
    assert k_core(make_tables(rows).interactions, 0).rows() == rows


def test_last_is_test_and_the_one_before_validation():
    rows = [("u", "d", 9, 1.0), ("u", "a", 1, 5.0), ("u", "c", 7, 2.0), ("u", "b", 4, 4.0)]
    split = leave_one_out(make_tables(rows), min_interactions=0)
    assert split.train.rows() == [("u", ["a", "b"], [1, 4], [5.0, 4.0])]
    assert split.validation.rows() == [("u", "c", 7, 2.0)]
    assert split.test.rows() == [("u", "d", 9, 1.0)]


def test_ties_keep_the_order_of_the_file():
    rows = [("u", "c", 5), ("u", "a", 5), ("u", "b", 5), ("u", "d", 1)]
    split = leave_one_out(make_tables(rows), min_interactions=0)
    assert split.train["items"].to_list() == [["d", "c"]]
    assert split.validation["item_id"].to_list() == ["a"]
    assert split.test["item_id"].to_list() == ["b"]
    assert split.statistics["users_with_tied_last_timestamp"] == 1


def test_short_users_are_train_only_and_repeats_stay():
    rows = [("u", "a", 1), ("u", "b", 2), ("v", "a", 1), ("v", "a", 2), ("v", "a", 3)]
    split = leave_one_out(make_tables(rows), min_interactions=0)
    assert split.train.select("user_id", "items").rows() == [("u", ["a", "b"]), ("v", ["a"])]
    assert split.test.select("user_id", "item_id").rows() == [("v", "a")]
    assert split.statistics["train_interactions"] == 3
    assert split.statistics["test_users"] == 1
    assert split.statistics["users_with_tied_last_timestamp"] == 0


def test_order_of_users_and_items():
    rows = [(user, item, time) for user in ("v", "u") for time, item in enumerate("cab")]
    assert leave_one_out(make_tables(rows), 1).users["user_id"].to_list() == ["u", "v"]
    users = pl.DataFrame({"user_id": ["x", "v", "u"], "profile": ["", "", ""]})
    split = leave_one_out(make_tables(rows, users), min_interactions=1)
    # x has no interaction and cannot be a row of the split.
    assert split.users["user_id"].to_list() == split.train["user_id"].to_list() == ["v", "u"]
    assert split.items["item_id"].to_list() == ["a", "b", "c"]


def test_only_zero_keeps_items_that_nobody_took():
    tables = make_tables([("u", item, time) for time, item in enumerate("abc")])
    extra = pl.DataFrame({"item_id": ["z"], "title": ["z"], "text": ["z"]})
    tables = Tables(tables.interactions, pl.concat([extra, tables.items]))
    assert leave_one_out(tables, min_interactions=0).items["item_id"].to_list() == ["z", "a", "b", "c"]
    assert leave_one_out(tables, min_interactions=1).items["item_id"].to_list() == ["a", "b", "c"]


def test_an_empty_core_is_an_error():
    with pytest.raises(InputError, match="none of 3 interactions is in the 5-core; lower min_interactions"):
        leave_one_out(make_tables([("u", item, time) for time, item in enumerate("abc")]))
    with pytest.raises(InputError, match="k: got -1"):
        k_core(make_tables([("u", "a", 1)]).interactions, -1)


REPEATS = [("u", "a", 1), ("u", "b", 2), ("u", "a", 3), ("u", "c", 4), ("u", "d", 5), ("u", "b", 6)]


@pytest.mark.parametrize(
    ("duplicates", "train", "targets"),
    [("keep", ["a", "b", "a", "c"], ["d", "b"]), ("first", ["a", "b"], ["c", "d"]), ("last", ["a", "c"], ["d", "b"])],
)
def test_repeated_pairs(duplicates, train, targets):
    split = leave_one_out(make_tables(REPEATS), 0, duplicates)
    assert split.train["items"].to_list() == [train]
    assert [split.validation["item_id"][0], split.test["item_id"][0]] == targets
    assert split.statistics.get("removed_duplicates") == (None if duplicates == "keep" else 2)


def test_repeats_leave_before_they_are_counted():
    # Without its repeat u has two interactions, and a one.
    rows = [("u", "a", 1), ("u", "a", 2), ("u", "b", 3), ("v", "b", 1), ("v", "c", 2), ("v", "d", 3)]
    assert leave_one_out(make_tables(rows), 1, "first").statistics["interactions"] == 5
    with pytest.raises(InputError, match="none of 6 interactions is in the 2-core"):
        leave_one_out(make_tables(rows), 2, "first")
    assert k_core(make_tables(rows[:3] + rows[2:3]).interactions, 2).height == 4
    with pytest.raises(InputError, match="duplicates: got 'none', choose from keep, first, last"):
        leave_one_out(make_tables(rows), 1, "none")


def test_feedback_and_reviews_go_with_the_train_interactions():
    interactions = pl.DataFrame(
        {
            "user_id": ["v", "u", "u", "v", "u", "v", "u"],
            "item_id": ["a", "c", "b", "b", "a", "c", "d"],
            "timestamp": [1, 3, 2, 2, 1, 3, 4],
            "feedback": ["liked", "neutral", None, None, "disliked", "liked", None],
            "review": ["va", "uc", "ub", "vb", "", "vc", "ud"],
        }
    )
    items = pl.DataFrame({"item_id": list("abcd"), "title": list("abcd"), "text": list("abcd")})
    split = leave_one_out(Tables(interactions, items), min_interactions=1)
    # u: a b | c | d   v: a | b | c
    assert split.train.select("user_id", "feedbacks").rows() == [("u", ["disliked", None]), ("v", ["liked"])]
    assert split.reviews.collect().rows() == [("v", 0, "va"), ("u", 1, "ub")]
    plain = leave_one_out(Tables(interactions.drop("feedback", "review"), items), min_interactions=1)
    assert plain.reviews is None and "feedbacks" not in plain.train.columns
    assert plain.train.equals(split.train.drop("feedbacks"))


def test_only_a_period_counts():
    split = leave_one_out(make_tables(REPEATS), 1, since=2, until=6)
    assert split.train["items"].to_list() == [["b", "a"]]
    assert split.test["item_id"].to_list() == ["d"] and split.statistics["removed_interactions"] == 2
    # The a of time 1 is outside and does not make that of time 3 a repeat.
    assert leave_one_out(make_tables(REPEATS), 1, "first", since=2).train["items"].to_list() == [["b", "a"]]
    with pytest.raises(InputError, match="until: got 'x'"):
        leave_one_out(make_tables(REPEATS), 1, until="x")


# Train ends at 10, validation at 20.
TIMES = [
    ("u", "a", 1), ("u", "b", 9), ("u", "c", 10), ("u", "a", 11), ("u", "b", 25), ("u", "a", 30),
    ("v", "a", 2), ("v", "b", 20), ("w", "b", 3), ("x", "a", 12), ("w", "d", 15), ("w", "c", 16), ("v", "c", 4),
]  # fmt: skip


def test_a_split_by_time():
    split = time_split(make_tables(TIMES), 10, 20, min_interactions=1)
    # x has nothing before 10; d is not there before 10, so w's first known item of the period is c.
    assert split.train.select("user_id", "items").rows() == [("u", ["a", "b"]), ("v", ["a", "c"]), ("w", ["b"])]
    assert split.validation.select("user_id", "item_id", "timestamp").rows() == [("u", "c", 10), ("w", "c", 16)]
    assert split.test.select("user_id", "item_id", "timestamp").rows() == [("u", "b", 25), ("v", "b", 20)]
    assert split.items["item_id"].to_list() == ["a", "b", "c"]
    expected = {"validation_from": 10, "test_from": 20, "unused_interactions": 2, "removed_interactions": 2}
    assert {name: split.statistics[name] for name in expected} == expected
    assert split.statistics["train_interactions"] == 5 and split.statistics["interactions"] == 9
    assert [history.tolist() for history in split.histories("test").histories] == [[0, 1, 2], [0, 2]]


def test_the_whole_catalogue_makes_later_items_targets():
    split = time_split(make_tables(TIMES), 10, 20, min_interactions=0)
    assert split.validation.select("user_id", "item_id").rows() == [("u", "c"), ("w", "d")]
    assert split.items["item_id"].to_list() == ["a", "b", "c", "d"]


def test_the_core_of_a_split_by_time_is_that_of_its_train():
    # Train is ua ub va vc wb. c has one, without it v has one, and so on: nothing is left, whatever comes later.
    with pytest.raises(InputError, match="none of 13 interactions is in the 2-core"):
        time_split(make_tables(TIMES), 10, 20, min_interactions=2)
    split = time_split(make_tables([*TIMES, ("v", "b", 5)]), 10, 20, min_interactions=2)
    assert split.train.select("user_id", "items").rows() == [("u", ["a", "b"]), ("v", ["a", "b"])]
    assert split.validation.select("user_id", "item_id").rows() == [("u", "a")]


def test_moments_may_be_shares_and_dates():
    day = 86_400
    rows = [("u", item, start + day * place) for start in (0,) for place, item in enumerate("abcde")]
    for moments in ((0.6, 0.8), ("0.6", "0.8"), (3 * day, 4 * day), ("1970-01-04", "1970-01-05T00:00:00+00:00")):
        split = time_split(make_tables(rows), *moments, min_interactions=1)
        assert split.train["items"].to_list() == [["a", "b", "c"]], moments
        # d and e occur only later; with them in the catalogue they are the targets.
        split = time_split(make_tables(rows), *moments, min_interactions=0)
        assert (split.validation["item_id"][0], split.test["item_id"][0]) == ("d", "e")


@pytest.mark.parametrize(
    ("moments", "duplicates", "words"),
    [
        (("soon", 20), "keep", "validation_from: got 'soon', expected a date such as 2018-07-01"),
        ((10, 1.5), "keep", "test_from: got 1.5, expected a share between 0 and 1"),
        ((20, 10), "keep", "test_from: 10 is timestamp 10, expected one after validation_from (20)"),
        ((10, 20), "last", "duplicates: 'last' lets later interactions remove train ones"),
    ],
)
def test_bad_moments_are_refused(moments, duplicates, words):
    with pytest.raises(InputError) as error:
        time_split(make_tables(TIMES), *moments, min_interactions=1, duplicates=duplicates)
    assert words in str(error.value)


def test_nothing_but_the_targets_changes_with_the_targets_of_a_split_by_time(tmp_path):
    tables = SyntheticMarket(SyntheticMarketConfig(num_users=120, num_items=300, seed=3)).tables()
    before = time_split(tables, 0.7, 0.85, min_interactions=3)
    assert before.items.height < 300 and before.test.height > 50
    later = (tables.interactions["timestamp"] >= before.statistics["validation_from"]).to_numpy()
    items = tables.interactions["item_id"].to_numpy().copy()
    items[later] = np.random.default_rng(0).permutation(items[later])
    changed = Tables(tables.interactions.with_columns(item_id=pl.Series(items)), tables.items, tables.users)
    after = time_split(changed, 0.7, 0.85, min_interactions=3)
    before.save(tmp_path / "before")
    after.save(tmp_path / "after")
    for name in ("items.parquet", "users.parquet", "train.parquet", "reviews.parquet"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes(), name
    assert not before.test.equals(after.test)


@pytest.mark.parametrize("from_end", [1, 2], ids=["test", "validation"])
def test_no_train_artefact_changes_when_targets_change_places(tmp_path, from_end):
    market = SyntheticMarket(SyntheticMarketConfig(num_users=120, num_items=300, min_interactions=3, seed=3))
    tables = market.tables()
    # No profiles, so that they are made; every user has at least five interactions after the 5-core or falls.
    tables = Tables(tables.interactions, tables.items)
    before = leave_one_out(tables)
    assert before.items.height < 300, "the core must bite, or the test says nothing about it"

    target = {1: before.test, 2: before.validation}[from_end].select("user_id", "timestamp")
    marked = tables.interactions.join(target.with_columns(hit=True), on=["user_id", "timestamp"], how="left")
    marked = marked.with_row_index()
    rows = marked.filter(pl.col("hit"))["index"].to_numpy()
    moved = np.random.default_rng(0).permutation(rows)
    items = marked["item_id"].to_numpy().copy()
    items[rows] = items[moved]
    after = leave_one_out(Tables(tables.interactions.with_columns(item_id=pl.Series(items)), tables.items))

    before.save(tmp_path / "before")
    after.save(tmp_path / "after")
    changed = {1: "test.parquet", 2: "validation.parquet"}[from_end]
    for name in TRAIN_ONLY:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes(), name
    assert (tmp_path / "before" / changed).read_bytes() != (tmp_path / "after" / changed).read_bytes()
    assert Split.load(tmp_path / "after").train.equals(before.train)
