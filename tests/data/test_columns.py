import gzip
import json
from datetime import UTC, datetime

import polars as pl
import pytest

from align3gr.data import LogSource, find_files, read_log
from align3gr.errors import InputError

LOG = pl.DataFrame(
    {
        "uid": [7, 8, 7],
        "sku": ["x", "y", "x"],
        "when": ["2024-01-02", "2024-01-02T03:04:05.5+01:00", "2024-01-03 00:00:00"],
        "stars": [5.0, None, 2.5],
        "said": ["good", None, ""],
        "mood": ["liked", None, "disliked"],
    }
)
COLUMNS = json.dumps(
    {"user_id": "uid", "item_id": "sku", "timestamp": "when", "rating": "stars", "review": "said", "feedback": "mood"}
)
MICROSECONDS = [
    int(datetime(2024, 1, 2, tzinfo=UTC).timestamp()) * 10**6,
    int(datetime(2024, 1, 2, 2, 4, 5, tzinfo=UTC).timestamp()) * 10**6 + 500_000,
    int(datetime(2024, 1, 3, tzinfo=UTC).timestamp()) * 10**6,
]


def read(kind, source, **options):
    options = LogSource(**options)
    return read_log(kind, find_files(kind, source, options), options)


def write(frame, path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "csv":
        content = frame.write_csv().encode()
    elif kind == "jsonl":
        content = "".join(
            json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in frame.to_dicts()
        )
        content = content.encode()
    else:
        return frame.write_parquet(path)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("csv", "log.csv"),
        ("csv", "log.csv.gz"),
        ("jsonl", "log.json"),
        ("jsonl", "log.jsonl.gz"),
        ("parquet", "log.pq"),
    ],
)
def test_every_kind_of_file_gives_the_same_log(tmp_path, kind, name):
    write(LOG, tmp_path / name, kind)
    tables = read(kind, tmp_path / name, columns=COLUMNS)
    assert tables.interactions.rows() == [
        ("7", "x", MICROSECONDS[0], 5.0, "liked"),
        ("8", "y", MICROSECONDS[1], None, None),
        ("7", "x", MICROSECONDS[2], 2.5, "disliked"),
    ]
    assert tables.reviews.collect()["review"].to_list() == ["good", None, None]
    # Without a file of items the id is title and text.
    assert tables.catalogue().rows() == [("x", "x", "x"), ("y", "y", "y")]


def test_a_partitioned_folder_gives_its_names_as_columns(tmp_path):
    for day, rows in (("2024-02-01", [1, 2]), ("2024-01-31", [3])):
        for row in rows:
            path = tmp_path / "log" / f"day={day}" / f"part-{row}.parquet"
            write(pl.DataFrame({"user_id": ["u"], "item_id": [row]}), path, "parquet")
    tables = read("parquet", tmp_path / "log", columns={"timestamp": "day"})
    days = [int(datetime(2024, *day, tzinfo=UTC).timestamp()) * 10**6 for day in ((1, 31), (2, 1), (2, 1))]
    assert tables.interactions.rows() == [("u", str(row), day) for row, day in zip((3, 1, 2), days, strict=True)]


def test_files_that_options_name_are_no_part_of_the_log(tmp_path):
    write(pl.DataFrame({"user_id": ["u"], "item_id": [1], "timestamp": [5]}), tmp_path / "events.csv", "csv")
    write(pl.DataFrame({"item_id": [1], "title": ["Cup"]}), tmp_path / "things.csv", "csv")
    write(pl.DataFrame({"user_id": ["u"], "profile": ["tall"]}), tmp_path / "about" / "people.csv", "csv")
    tables = read("csv", tmp_path, items="things.csv", users="about/../about/people.csv")
    assert tables.interactions.rows() == [("u", "1", 5)]
    assert tables.catalogue().rows() == [("1", "Cup", "Cup")] and tables.users.rows() == [("u", "tall")]


def test_a_folder_that_is_named_like_a_file_is_read_as_a_folder(tmp_path):
    log = pl.DataFrame({"user_id": ["u"], "item_id": [1], "timestamp": [5]})
    write(log, tmp_path / "log.parquet" / "part-0.parquet", "parquet")
    assert read("parquet", tmp_path).interactions.rows() == [("u", "1", 5)]
    assert read("parquet", tmp_path / "log.parquet").interactions.rows() == [("u", "1", 5)]


def test_files_of_a_folder_must_have_the_same_columns(tmp_path):
    write(LOG.select(user_id="uid", item_id="sku", timestamp="when"), tmp_path / "a.csv", "csv")
    write(LOG.select(user_id="uid", item_id="sku", timestamp="when", rating="stars"), tmp_path / "b.csv", "csv")
    with pytest.raises(
        InputError, match=r"b\.csv: has columns for \['user_id', .*'rating'\], the files before it for"
    ):
        read("csv", tmp_path)


def test_items_and_users_with_columns_of_their_own(tmp_path):
    write(
        pl.DataFrame({"user_id": ["u", "v"], "item_id": [1, 2], "timestamp": [5, 6]}),
        tmp_path / "interactions.csv",
        "csv",
    )
    items = {
        "sku": [2, 1, 1],
        "name": ["Cup", None, "late"],
        "brand": ["A&amp;B", "Tea", "x"],
        "tags": [["a", "b"], [], []],
    }
    write(pl.DataFrame(items), tmp_path / "items.parquet", "parquet")
    write(pl.DataFrame({"user_id": ["v"], "age": [33], "town": ["Reno"]}), tmp_path / "people.jsonl", "jsonl")
    tables = read(
        "csv",
        tmp_path,
        item_columns={"item_id": "sku", "title": "name", "text": ["name", "brand", "tags"]},
        users="people.jsonl",
        user_columns={"profile": ["age", "town"]},
    )
    assert tables.interactions.rows() == [("u", "1", 5), ("v", "2", 6)]
    assert tables.catalogue().rows() == [("2", "Cup", "Cup. A&B. a, b"), ("1", "1", "Tea")]
    assert tables.users.rows() == [("v", "33. Reno"), ("u", "")]


def test_items_that_the_file_lacks(tmp_path):
    write(
        pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2]}),
        tmp_path / "interactions.jsonl",
        "jsonl",
    )
    write(pl.DataFrame({"item_id": ["b"], "title": ["Bee"]}), tmp_path / "items.csv", "csv")
    tables = read("jsonl", tmp_path)
    assert tables.interactions.rows() == [("u", "b", 2)] and tables.catalogue().rows() == [("b", "Bee", "Bee")]
    tables = read("jsonl", tmp_path, missing_items="id")
    assert tables.interactions.height == 2
    assert tables.catalogue().rows() == [("b", "Bee", "Bee"), ("a", "a", "a")]
    assert read("jsonl", tmp_path, items="none").catalogue().rows() == [("a", "a", "a"), ("b", "b", "b")]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"user_id": "UID"}, "has no column 'UID', the closest is 'uid'; its columns are ['uid', 'sku', 'when', "),
        ({"user_id": "uid"}, "has no column 'item_id'; its columns are"),
        ({"user": "uid"}, "columns: unknown name 'user', the closest is 'user_id'; choose from user_id, "),
        ({"user_id": ["uid", "sku"]}, "columns: 'user_id' has several columns ['uid', 'sku'], expected one"),
        ({"user_id": 3}, "columns: 'user_id' has 3, expected a column or a list"),
        ("{uid}", "columns: not JSON"),
        ("[1]", "columns: got [1], expected a mapping"),
    ],
)
def test_a_wrong_mapping_is_explained(tmp_path, columns, words):
    write(LOG, tmp_path / "log.csv", "csv")
    with pytest.raises(InputError) as error:
        read("csv", tmp_path / "log.csv", columns=columns)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        (
            "csv",
            {"when": ["2024-01-02", "soon", "2024-01-02"]},
            "row 3 has when 'soon', expected a whole number or an ISO",
        ),
        (
            "jsonl",
            {"when": ["1", "2", "2024-01-02"]},
            "line 3 has when '2024-01-02', expected a whole number, as in the",
        ),
        ("jsonl", {"when": [1, 2, None]}, "line 3 has when None"),
        ("parquet", {"when": [1.0, 2.0, 2.5]}, "row 2 has when 2.5, expected a whole number"),
        ("csv", {"when": ["1", "9" * 20, "3"]}, f"row 3 has when '{'9' * 20}', expected a whole number of 64 bits"),
        ("parquet", {"when": pl.Series([1, 2**63, 3], dtype=pl.UInt64)}, "row 1 has when 9223372036854775808, expec"),
        ("csv", {"uid": ["a", None, "b"]}, "row 3 has no uid"),
        ("parquet", {"uid": [1.0, 2.0, 3.0]}, "column 'uid' has type Float64, expected texts or whole numbers"),
        ("csv", {"stars": ["5", "good", ""]}, "row 3 has stars 'good', expected a finite number or nothing"),
        ("parquet", {"stars": [1.0, 2.0, float("inf")]}, "row 2 has stars inf"),
        ("csv", {"mood": ["liked", "meh", "liked"]}, "column 'feedback' has the value 'meh'"),
    ],
)
def test_a_bad_value_is_named(tmp_path, kind, changed, words):
    path = tmp_path / f"log.{kind}"
    write(LOG.with_columns(pl.Series(name, values) for name, values in changed.items()), path, kind)
    with pytest.raises(InputError) as error:
        read(kind, path, columns=COLUMNS)
    assert str(path) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no csv file \(\.csv\)"):
        read("csv", tmp_path)
    (tmp_path / "interactions.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"interactions\.parquet: not a readable Parquet file"):
        read("parquet", tmp_path)
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a\n")
    with pytest.raises(InputError, match=r"Row #2: Expected 3 columns, got 2"):
        read("csv", tmp_path)
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(InputError, match="holds no interactions"):
        read("csv", tmp_path)
    (tmp_path / "interactions.csv").write_text("")
    with pytest.raises(InputError, match=r"interactions\.csv: is empty, expected a first row"):
        read("csv", tmp_path)
