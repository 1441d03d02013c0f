"""Logs that are in memory already, and data sets as `datasets.load_dataset` opens them."""

import datetime
import json

import datasets
import pandas as pd
import polars as pl
import pytest

from align3gr.data import LogSource, Split, find_files, leave_one_out, read_frames, read_log
from align3gr.errors import InputError
from align3gr.pipeline import read_manifest
from align3gr.snapshots import local_folder

CLICKS = {
    "customer": ["7", "8", "7", "7"],
    "sku": ["a", "b", "b", "c"],
    "day": [datetime.datetime(2024, 1, day) for day in (1, 1, 2, 3)],
    "stars": [5.0, None, 2.5, 4.0],
}
PRODUCTS = {
    "sku": ["a", "b", "z"],
    "name": ["Axe", "Bow", "Zither"],
    "groups": [["tools", "steel"], ["arms"], []],
}
CUSTOMERS = {"customer": ["8"], "town": ["Oslo"]}
COLUMNS = {"user_id": "customer", "item_id": "sku", "timestamp": "day", "rating": "stars"}
ITEM_COLUMNS = {"item_id": "sku", "title": "name", "text": ["name", "groups"]}
USER_COLUMNS = {"user_id": "customer", "profile": "town"}
MAPPINGS = {"columns": COLUMNS, "item_columns": ITEM_COLUMNS, "user_columns": USER_COLUMNS}
DAY = 86_400_000_000  # microseconds
FIRST = 19_723 * DAY  # 2024-01-01
# The item c has no row: its interaction is left out.
INTERACTIONS = [("7", "a", FIRST, 5.0), ("8", "b", FIRST, None), ("7", "b", FIRST + DAY, 2.5)]
ITEMS = [("a", "Axe", "Axe. tools, steel"), ("b", "Bow", "Bow. arms")]
USERS = [("8", "Oslo"), ("7", "")]

KINDS = {
    "polars": pl.DataFrame,
    "pandas": pd.DataFrame,
    "arrow": lambda columns: pl.DataFrame(columns).to_arrow(),
    "datasets": datasets.Dataset.from_dict,
}


def contents(tables):
    log = tables.interactions.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    return log.rows(), tables.catalogue().rows(), tables.users.rows()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_frame_gives_the_same_tables(kind):
    make = KINDS[kind]
    tables = read_frames(make(CLICKS), make(PRODUCTS), make(CUSTOMERS), **MAPPINGS)
    assert contents(tables) == (INTERACTIONS, ITEMS, USERS)


def test_a_dictionary_of_data_sets_and_rows_that_were_selected():
    clicks = datasets.Dataset.from_dict(CLICKS).select([3, 2, 1, 0])  # an order of its own, with indices
    parts = {"interactions": clicks, "items": datasets.Dataset.from_dict(PRODUCTS)}
    tables = read_frames(datasets.DatasetDict(parts), columns=COLUMNS, item_columns=ITEM_COLUMNS, missing_items="id")
    assert [row[:2] for row in contents_of(tables)] == [("7", "c"), ("7", "b"), ("8", "b"), ("7", "a")]
    assert tables.catalogue().rows() == [*ITEMS, ("c", "c", "c")] and tables.users is None


def contents_of(tables):
    return tables.interactions.with_columns(pl.col("user_id", "item_id").cast(pl.String)).rows()


def test_names_of_the_package_need_no_mapping_and_whole_numbers_are_ids():
    log = pd.DataFrame({"user_id": [1, 1, 1], "item_id": [5, 6, 7], "timestamp": [10, 20, 30]}, index=[9, 9, 9])
    split = leave_one_out(read_frames(log), min_interactions=0)
    assert split.train["items"].to_list() == [["5"]] and split.test["item_id"].to_list() == ["7"]
    assert split.items["title"].to_list() == ["5", "6", "7"]


@pytest.mark.parametrize(
    ("frames", "options", "words"),
    [
        ({"interactions": [1, 2]}, {}, "frames: interactions: is a list, expected a pandas or Polars frame"),
        (
            {"interactions": pl.DataFrame(CLICKS)},
            {"columns": {**COLUMNS, "item_id": "skku"}},
            "frames: interactions: has no column 'skku', the closest is 'sku'; its columns are ['customer', 'sku', "
            "'day', 'stars']; say which is the item_id with columns",
        ),
        (
            {"interactions": pl.DataFrame(CLICKS).with_columns(sku=pl.Series(["a", "b", "", "c"]))},
            {"columns": COLUMNS},
            "frames: interactions: row 2 has no sku",
        ),
        (
            {"interactions": pd.DataFrame(CLICKS | {"customer": ["7", 8, "7", "7"]})},
            {"columns": COLUMNS},
            "frames: interactions: a column has values of several types",
        ),
        (
            {"interactions": {"interaction": pl.DataFrame(CLICKS)}},
            {},
            "frames: has the entry 'interaction'; did you mean 'interactions'?",
        ),
        ({"interactions": {"items": pl.DataFrame(PRODUCTS)}}, {}, "has no entry 'interactions', it has ['items']"),
        (
            {"interactions": {"interactions": pl.DataFrame(CLICKS)}, "items": pl.DataFrame(PRODUCTS)},
            {},
            "items and users stand in the dictionary",
        ),
        ({"interactions": pl.DataFrame(CLICKS)[:0]}, {"columns": COLUMNS}, "frames: holds no interactions"),
    ],
)
def test_what_cannot_be_used_is_named(frames, options, words):
    with pytest.raises(InputError) as error:
        read_frames(**frames, **options)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def data_set(tmp_path):
    """A folder as a repository of the Hub is: files, and a card that names the configurations."""
    folder = tmp_path / "shop"
    folder.mkdir()
    tables = {"clicks": CLICKS, "items": PRODUCTS, "users": CUSTOMERS}
    for name, columns in tables.items():
        pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")
    card = "---\nconfigs:\n"
    card += "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in tables)
    (folder / "README.md").write_text(card + "---\n")
    return folder


def read(folder, **options):
    options = LogSource(**options)
    return read_log("hub", find_files("hub", folder, options), options)


def test_configurations_of_a_data_set(data_set):
    assert contents(read(data_set, interactions="clicks/train", **MAPPINGS)) == (
        INTERACTIONS,
        ITEMS,
        [("8", "Oslo"), ("7", "")],
    )
    with pytest.raises(InputError, match=r"interactions: .*shop has no configuration 'click', it has .*mean 'clicks'"):
        read(data_set, interactions="click", **MAPPINGS)
    with pytest.raises(
        InputError, match=r"configuration 'clicks' has the splits \['train'\]; name one: clicks/\.\.\."
    ):
        read(data_set, interactions="clicks/test", **MAPPINGS)
    alone = read(data_set, interactions="clicks", items="none", users="none", columns=COLUMNS)
    assert alone.users is None and alone.catalogue()["title"].to_list() == ["a", "b", "c"]


def test_splits_of_a_data_set(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    pl.DataFrame(CLICKS).write_parquet(folder / "train.parquet")
    pl.DataFrame(CLICKS)[:2].write_parquet(folder / "test.parquet")
    assert len(read(folder, interactions="train", columns=COLUMNS).interactions) == 4
    assert len(read(folder, interactions="default/test", columns=COLUMNS).interactions) == 2
    with pytest.raises(InputError, match=r"interactions: .* has the splits \['train', 'test'\]; name one: default/"):
        read(folder, columns=COLUMNS)


def test_the_recipe_reads_a_data_set_and_knows_it_by_its_content(data_set, run_stage, tmp_path):
    config = tmp_path / "prepare.yaml"
    settings = {"format": "hub", "source": str(data_set), "core": 0, "interactions": "clicks", "missing_items": "id"}
    config.write_text(json.dumps(settings | MAPPINGS))
    run_stage("prepare", tmp_path / "run", config=config)
    split = Split.load(tmp_path / "run" / "data")
    assert split.train["items"].to_list() == [["b"], ["a"]] and split.test["item_id"].to_list() == ["c"]
    assert list(read_manifest(tmp_path / "run" / "data")["inputs"]) == ["shop"]
    pl.DataFrame(CLICKS)[:3].write_parquet(data_set / "clicks.parquet")
    run_stage("prepare", tmp_path / "run", config=config)
    assert Split.load(tmp_path / "run" / "data").statistics["interactions"] == 3


def test_a_name_is_looked_for_on_the_hub_with_its_revision(data_set, monkeypatch):
    asked = []

    def snapshot(name, revision, repo_type):
        asked.append((name, revision, repo_type))
        return str(data_set)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    options = LogSource(interactions="clicks", columns=COLUMNS, items="none")
    files = find_files("hub", "me/shop@v1", options)
    assert asked == [("me/shop", "v1", "dataset")] and files.source == "me/shop@v1" and files.inputs == [data_set]
    find_files("hub", "me/shop", options)
    assert asked[1] == ("me/shop", None, "dataset")
    local_folder("me/model")
    assert asked[2] == ("me/model", None, "model")
