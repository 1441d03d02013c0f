"""The recipe from raw files to the split: settings in the manifest, clear refusals, no half-made folder."""

import gzip
import json

import polars as pl
import pytest

from align3gr import InputError
from align3gr.data import Split
from align3gr.pipeline import read_manifest


@pytest.fixture
def run(run_stage, tmp_path):
    def prepare(format, source, **options):
        config = tmp_path / "prepare.yaml"
        config.write_text(json.dumps({"format": format, **options}))
        run_stage("prepare", tmp_path / "run", config=config, source=source)
        return Split.load(tmp_path / "run" / "data")

    return prepare


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    rows = [(user, item, 10 * place) for user in "uvw" for place, item in enumerate("abcab")]
    frame = pl.DataFrame(rows, schema=["who", "what", "when"], orient="row")
    frame.with_columns(feedback=pl.lit("liked")).write_parquet(folder / "log.parquet")
    return folder


def test_own_columns_and_every_option_go_into_the_manifest(run, shop, tmp_path):
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    split = run("parquet", shop, columns=columns, interactions="log.parquet", core=2, duplicates="first")
    assert split.train.select("user_id", "items").rows() == [("u", ["a"]), ("v", ["a"]), ("w", ["a"])]
    assert split.train["feedbacks"].to_list() == [["liked"]] * 3
    settings = read_manifest(tmp_path / "run" / "data")["settings"]
    assert settings["files"]["columns"] == columns and settings["duplicates"] == "first" and settings["core"] == 2
    assert list(read_manifest(tmp_path / "run" / "data")["inputs"]) == ["log.parquet"]


def test_columns_on_the_command_line_are_json(run_stage, shop, tmp_path):
    config = tmp_path / "prepare.yaml"
    config.write_text("format: parquet\ncore: 0\n")
    columns = '{"user_id": "who", "item_id": "what", "timestamp": "when"}'
    run_stage("prepare", tmp_path / "run", config=config, source=shop, columns=columns)
    assert Split.load(tmp_path / "run" / "data").statistics["interactions"] == 15


def test_a_split_by_time(run, shop):
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    times = {"validation_from": 30, "test_from": 40}
    split = run("parquet", shop, columns=columns, split="time", core=1, **times)
    assert split.train["items"].to_list() == [["a", "b", "c"]] * 3
    assert split.validation["item_id"].to_list() == ["a"] * 3 and split.test["item_id"].to_list() == ["b"] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "time", "validation_from": 0.5}, "test_from: needed by split 'time'"),
        ({"validation_from": 0.5}, "validation_from: applies only to split 'time'"),
        ({"split": "random"}, "split: got 'random', choose from leave_one_out, time"),
        ({"missing_items": "keep"}, "missing_items: got 'keep', choose from drop, id"),
        ({"category": "Books"}, "category: does not apply to format 'parquet'"),
        ({"columns": {"user_id": "user"}}, "has no column 'user'"),
        ({"num_users": 5}, "options of the synthetic market do not apply"),
    ],
)
def test_wrong_options_leave_nothing_behind(run, shop, tmp_path, options, words):
    with pytest.raises(InputError) as error:
        run("parquet", shop, **options)
    assert words in str(error.value) and not (tmp_path / "run").exists()


def test_a_truncated_file_leaves_nothing_behind(run, tmp_path):
    (tmp_path / "raw").mkdir()
    line = b'{"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1}\n'
    packed = gzip.compress(line * 5000)
    (tmp_path / "raw" / "X_5.json.gz").write_bytes(packed[: len(packed) - 9])
    (tmp_path / "raw" / "meta_X.json.gz").write_bytes(gzip.compress(b'{"asin": "B", "title": "Bee"}\n'))
    with pytest.raises(InputError, match=r"X_5\.json\.gz: the gzip file ends too early"):
        run("amazon-2018", tmp_path / "raw")
    assert not (tmp_path / "run").exists()
