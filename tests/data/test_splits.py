import numpy as np
import polars as pl
import pytest

from align3gr.data.splits import k_core, leave_one_out
from align3gr.data.synthetic import SyntheticMarket, SyntheticMarketConfig
from align3gr.data.tables import Split, Tables
from align3gr.errors import InputError

TRAIN_ONLY = ("items.parquet", "users.parquet", "train.parquet", "statistics.json")


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
