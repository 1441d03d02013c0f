import numpy as np
import polars as pl
import pytest

from align3gr.data.interaction_log import InteractionLog
from align3gr.data.tables import Split, Tables
from align3gr.errors import InputError


@pytest.fixture
def tables():
    return Tables(
        interactions=pl.DataFrame({"user_id": ["u", "u"], "item_id": ["b", "a"], "timestamp": [1, 2]}),
        items=pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "text": ["", ""]}),
        users=pl.DataFrame({"user_id": ["u"], "profile": [""]}),
    )


@pytest.fixture
def split():
    """u: c a | b | c   v: b (train only)   w: a | c | b"""
    return Split(
        items=pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "text": ["", "", ""]}),
        users=pl.DataFrame({"user_id": ["w", "u", "v"], "profile": ["", "", ""]}),
        train=pl.DataFrame(
            {
                "user_id": ["w", "u", "v"],
                "items": [["a"], ["c", "a"], ["b"]],
                "timestamps": [[1], [1, 2], [1]],
                "ratings": [[None], [4.0, None], [None]],
            }
        ),
        validation=pl.DataFrame(
            {"user_id": ["w", "u"], "item_id": ["c", "b"], "timestamp": [2, 3], "rating": [None, None]}
        ),
        test=pl.DataFrame({"user_id": ["w", "u"], "item_id": ["b", "c"], "timestamp": [3, 4], "rating": [2.0, None]}),
        statistics={"users": 3},
    )


def test_tables_survive_a_folder(tables, tmp_path):
    tables.save(tmp_path / "new" / "folder")
    loaded = Tables.load(tmp_path / "new" / "folder")
    assert loaded.interactions.equals(tables.interactions)
    assert loaded.items.equals(tables.items)
    assert loaded.users.equals(tables.users)


def test_users_of_an_earlier_save_do_not_stay(tables, tmp_path):
    tables.save(tmp_path)
    Tables(tables.interactions, tables.items).save(tmp_path)
    assert Tables.load(tmp_path).users is None


def test_unknown_ids_are_refused(tables):
    with pytest.raises(InputError, match="row 0 has item_id 'b', which is not in the items table"):
        Tables(tables.interactions, tables.items.head(1))
    with pytest.raises(InputError, match="row 0 has user_id 'u', which is not in the users table"):
        Tables(tables.interactions, tables.items, pl.DataFrame({"user_id": ["v"], "profile": [""]}))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, tables):
    with pytest.raises(InputError, match="no such folder"):
        Tables.load(tmp_path / "none")
    with pytest.raises(InputError, match=r"interactions\.parquet is missing"):
        Tables.load(tmp_path)
    tables.save(tmp_path)
    content = (tmp_path / "items.parquet").read_bytes()
    (tmp_path / "items.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"items.parquet: not a readable Parquet file"):
        Tables.load(tmp_path)


def test_split_numbers_are_row_numbers(split):
    assert split.item_index == {"a": 0, "b": 1, "c": 2}
    assert split.user_index == {"w": 0, "u": 1, "v": 2}
    sequences = split.train_sequences()
    assert [sequence.tolist() for sequence in sequences] == [[0], [2, 0], [1]]
    assert sequences[0].dtype == np.int64


def test_histories_grow_by_the_validation_item(split):
    validation, test = split.histories("validation"), split.histories("test")
    assert validation.user_rows.tolist() == [0, 1]
    assert [history.tolist() for history in validation.histories] == [[0], [2, 0]]
    assert validation.targets.tolist() == [2, 1]
    assert validation.ratings is None
    assert [history.tolist() for history in test.histories] == [[0, 2], [2, 0, 1]]
    assert test.targets.tolist() == [1, 2]
    np.testing.assert_array_equal(test.ratings, [2.0, np.nan])
    assert (test.num_users, test.num_items, len(test)) == (3, 3, 2)


def test_recent_cuts_and_histories_do_not(split):
    test = split.histories("test", max_history=2)
    assert [history.tolist() for history in test.recent] == [[0, 2], [0, 1]]
    assert [len(history) for history in test.histories] == [2, 3]


def test_subset_keeps_rows_together(split):
    subset = split.histories("test").subset(np.array([1]))
    assert subset.user_rows.tolist() == [1] and subset.targets.tolist() == [2]
    assert [history.tolist() for history in subset.histories] == [[2, 0, 1]]
    assert np.isnan(subset.ratings).tolist() == [True]


@pytest.mark.parametrize(
    ("arguments", "words"), [({"split": "train"}, "'train'"), ({"split": "test", "max_history": 0}, "max_history")]
)
def test_bad_arguments_of_histories(split, arguments, words):
    with pytest.raises(InputError, match=words):
        split.histories(**arguments)


def test_split_survives_a_folder(split, tmp_path):
    split.save(tmp_path)
    loaded = Split.load(tmp_path)
    for name in ("items", "users", "train", "validation", "test"):
        assert getattr(loaded, name).equals(getattr(split, name)), name
    assert loaded.statistics == {"users": 3}


def test_a_split_that_does_not_fit_together_is_refused(split):
    parts = {name: getattr(split, name) for name in ("items", "users", "train", "validation", "test")}
    with pytest.raises(InputError, match="same user_id in the same order"):
        Split(**parts | {"users": split.users.reverse()})
    with pytest.raises(InputError, match="train: row 1 has item_id 'c'"):
        Split(**parts | {"items": split.items.head(2)})
    with pytest.raises(InputError, match="test: a user_id stands there twice"):
        Split(**parts | {"test": pl.concat([split.test, split.test])})
    with pytest.raises(InputError, match="train: column 'items' has type String"):
        Split(**parts | {"train": split.train.with_columns(items=pl.lit("a"))})


def test_an_incomplete_split_folder_is_refused(split, tmp_path):
    split.save(tmp_path)
    (tmp_path / "statistics.json").write_text("{")
    with pytest.raises(InputError, match=r"statistics\.json: not JSON"):
        Split.load(tmp_path)
    (tmp_path / "statistics.json").unlink()
    with pytest.raises(InputError, match=r"statistics\.json: no such file"):
        Split.load(tmp_path)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(InputError, match=r"test\.parquet is missing"):
        Split.load(tmp_path)


def test_reviews_and_feedback_survive_a_folder_and_stay_lazy(split, tmp_path):
    train = split.train.with_columns(feedbacks=pl.Series([[None], ["liked", "disliked"], ["neutral"]]))
    reviews = pl.DataFrame({"user_id": ["u"], "position": [1], "review": ["Nice"]}).lazy()
    parts = {name: getattr(split, name) for name in ("items", "users", "validation", "test")}
    Split(train=train, reviews=reviews, **parts).save(tmp_path)
    loaded = Split.load(tmp_path)
    assert loaded.train["feedbacks"].to_list() == [[None], ["liked", "disliked"], ["neutral"]]
    assert loaded.reviews.collect().rows() == [("u", 1, "Nice")]
    # Saved over the file that it is a view of.
    loaded.save(tmp_path)
    assert Split.load(tmp_path).reviews.collect().rows() == [("u", 1, "Nice")]
    split.save(tmp_path)
    assert Split.load(tmp_path).reviews is None and not (tmp_path / "reviews.parquet").exists()


def test_reviews_that_do_not_fit_are_refused(split, tmp_path):
    parts = {name: getattr(split, name) for name in ("items", "users", "train", "validation", "test")}
    with pytest.raises(InputError, match="reviews has columns"):
        Split(reviews=pl.LazyFrame({"user_id": ["u"], "review": ["x"]}), **parts)
    split.save(tmp_path)
    (tmp_path / "reviews.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"reviews\.parquet: not a readable Parquet file"):
        Split.load(tmp_path)


def test_tables_of_a_log_save_as_plain_ones(tmp_path):
    log = InteractionLog("log")
    log.add(pl.DataFrame({"user_id": ["u"], "item_id": ["b"], "timestamp": [1], "review": ["good"]}))
    log.add(pl.DataFrame({"user_id": ["v"], "item_id": ["a"], "timestamp": [2], "review": [None]}))
    log.tables([("b", "B", "Bee"), ("a", "A", "Ay"), ("c", "C", "Sea")]).save(tmp_path)
    loaded = Tables.load(tmp_path)
    assert loaded.interactions.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "review": pl.String,
    }
    assert loaded.interactions.rows() == [("u", "b", 1, "good"), ("v", "a", 2, None)]
    assert loaded.items.rows() == [("b", "B", "Bee"), ("a", "A", "Ay")]
