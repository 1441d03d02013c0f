"""The same lists whatever files the histories come from and the recommendations go to."""

import csv
import gzip
import json

import polars as pl
import pytest

from align3gr.decoding.files import recommend_file
from align3gr.errors import InputError

HISTORIES = [["b", "c"], ["a"], [], None, ["d", "e", "a"]]
USERS = ["u1", "stranger", None, "u2", "u1"]


def write_csv(path):
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["note", "user_id", "items"])
        for number, (user, history) in enumerate(zip(USERS, HISTORIES, strict=True)):
            ids = json.dumps(history) if number == 4 else " ".join(history or [])  # a list of JSON will do, too
            rows.writerow(["a, b\nc", user or "", ids])


def write_jsonl(path):
    lines = [{"user_id": user, "items": history} for user, history in zip(USERS, HISTORIES, strict=True)]
    del lines[2]["user_id"]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")


def recommended(path):
    if path.suffix == ".parquet":
        return pl.read_parquet(path).rows()
    if path.suffix == ".jsonl":
        return [tuple(json.loads(line).values()) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["row", "user_id", "rank", "item_id", "title", "score"]
    return [
        (int(row), user or None, int(rank), item, title, float(score)) for row, user, rank, item, title, score in rows
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "jsonl.gz"])
def test_the_same_lists_for_every_kind_of_file(recommender, tmp_path, kind):
    pl.DataFrame({"user_id": USERS, "items": HISTORIES}).write_parquet(tmp_path / "histories.parquet")
    source = tmp_path / f"histories.{kind.removesuffix('.gz')}"
    (write_csv if kind == "csv" else write_jsonl)(source)
    if kind.endswith(".gz"):
        source = tmp_path / f"histories.{kind}"
        source.write_bytes(gzip.compress((tmp_path / "histories.jsonl").read_bytes()))
    expected = tmp_path / "expected.parquet"
    recommend_file(recommender, tmp_path / "histories.parquet", expected, k=3, part_users=2, progress=False)
    for ending in ("parquet", "csv", "jsonl"):
        output = tmp_path / f"recs.{ending}"
        assert recommend_file(recommender, source, output, k=3, part_users=2, progress=False) == 5
        rows = recommended(output)
        assert [row[:5] for row in rows] == [row[:5] for row in recommended(expected)]
        assert [row[5] for row in rows] == pytest.approx([row[5] for row in recommended(expected)], rel=1e-6)
        assert not output.with_name(output.name + ".parts").exists()


def test_files_without_a_row(recommender, tmp_path):
    (tmp_path / "none.csv").write_text("items\n")
    (tmp_path / "none.jsonl").write_text("")
    assert recommend_file(recommender, tmp_path / "none.csv", tmp_path / "recs.csv", k=3, progress=False) == 0
    assert (tmp_path / "recs.csv").read_text() == "row,user_id,rank,item_id,title,score\n"
    assert recommend_file(recommender, tmp_path / "none.jsonl", tmp_path / "recs.jsonl", k=3, progress=False) == 0
    assert (tmp_path / "recs.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "user_id,history\nu,a b\n", "column 'items' is missing, it has user_id, history"),
        ("x.jsonl", '{"item": ["a"]}\n', "column 'items' is missing, it has item"),
        ("x.jsonl", '{"items": ["a"]}\n{"user_id": 1}\n', "x.jsonl: line 2: field 'items' is missing, it has user_id"),
        ("x.jsonl", '{"items": "a"}\n', "line 1: 'items' is 'a', expected a list of item ids"),
        ("x.jsonl", '{"items": ["a"\n', "line 1 is not a valid record"),
        ("x.csv", 'items\na\n"[""b"","\n', "row 3: column 'items' begins like a JSON list, but is none"),
        ("x.csv", 'items\n"[{}]"\n', "row 2: 'items' is [{}], expected a list of item ids"),
        ("x.csv", "items\na\nb nothere\n", "row 1, column 'items' names 'nothere', which is not in the catalogue"),
    ],
)
def test_what_cannot_be_read_is_named(recommender, tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        recommend_file(recommender, tmp_path / name, tmp_path / "recs.csv", k=3, progress=False)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_ending_that_says_nothing_is_refused(recommender, tmp_path):
    write_jsonl(tmp_path / "x.jsonl")
    for name in ("recs.txt", "recs.csv.gz"):
        with pytest.raises(
            InputError, match=rf"{name}: its ending says nothing, expected \.parquet, \.csv, \.jsonl, "
        ):
            recommend_file(recommender, tmp_path / "x.jsonl", tmp_path / name, k=3, progress=False)
    recommend_file(recommender, tmp_path / "x.jsonl", tmp_path / "recs", k=3, progress=False)  # none is Parquet
    assert pl.read_parquet(tmp_path / "recs")["row"].n_unique() == 5


def test_the_histories_are_not_replaced_by_the_lists(recommender, tmp_path):
    write_jsonl(tmp_path / "x.jsonl")
    before = (tmp_path / "x.jsonl").read_bytes()
    (tmp_path / "link.jsonl").symlink_to("x.jsonl")
    for name in ("x.jsonl", "link.jsonl"):
        with pytest.raises(InputError, match=rf"{name}: holds the histories and would be replaced"):
            recommend_file(recommender, tmp_path / "x.jsonl", tmp_path / name, k=3, progress=False)
    assert (tmp_path / "x.jsonl").read_bytes() == before
