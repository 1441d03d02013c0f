"""No artefact made before the evaluation depends on a target that it must not see."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from align3gr.data import SyntheticMarket, SyntheticMarketConfig

MARKET = SyntheticMarketConfig(num_users=200, num_items=80, num_categories=8, num_brands=4, seed=3)


def raw_tables(folder: Path, place: int | None = None) -> Path:
    """A market's tables; with a place (-1 the last, -2 the one before), that item is exchanged between users."""
    tables = SyntheticMarket(MARKET).tables()
    if place is not None:
        log = tables.interactions.sort("user_id", "timestamp", maintain_order=True).with_row_index("row")
        rows = log.group_by("user_id", maintain_order=True).agg(pl.col("row").get(place))["row"].to_numpy()
        items = log["item_id"].to_numpy().copy()
        items[rows] = np.random.default_rng(0).permutation(items[rows])
        tables.interactions = log.drop("row").with_columns(pl.Series("item_id", items))
    tables.save(folder)
    return folder


def artefacts(run_dir: Path, folders: tuple[str, ...]) -> dict[str, bytes]:
    """Contents of the files of some stages, without manifests and the clock of the curriculum."""
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for folder in folders
        for path in sorted((run_dir / folder).rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "curriculum.json", "state.json")
    }


def run_stages(run_stage, run_dir: Path, source: Path, names: tuple[str, ...]) -> None:
    # Market options of the smoke file do not apply to tables.
    config = run_dir.with_suffix(".yaml")
    config.write_text("format: tables\n")
    run_stage("prepare", run_dir, config=config, source=source)
    for name in names:
        run_stage(name, run_dir)


@pytest.mark.long
def test_permuted_test_targets_change_nothing_before_the_evaluation(run_stage, tmp_path):
    names = ("embed", "scid", "sft", "sp_dpo")
    run_stages(run_stage, tmp_path / "a", raw_tables(tmp_path / "raw_a"), names)
    run_stages(run_stage, tmp_path / "b", raw_tables(tmp_path / "raw_b", place=-1), names)
    folders = ("embeddings", "scid", "sft", "sp_dpo")
    before, after = (artefacts(tmp_path / run, folders) for run in "ab")
    assert len(before) > 25 and list(before) == list(after)
    assert [name for name in before if before[name] != after[name]] == []
    data = [artefacts(tmp_path / run, ("data",)) for run in "ab"]
    # Only the test targets differ; that they do shows that the exchange took place.
    assert [name for name in data[0] if data[0][name] != data[1][name]] == ["data/test.parquet"]


@pytest.mark.long
def test_permuted_validation_targets_change_nothing_before_model_selection(run_stage, tmp_path):
    names = ("embed", "scid", "sft")
    run_stages(run_stage, tmp_path / "a", raw_tables(tmp_path / "raw_a"), names)
    run_stages(run_stage, tmp_path / "b", raw_tables(tmp_path / "raw_b", place=-2), names)
    before, after = (artefacts(tmp_path / run, ("embeddings", "scid", "sft")) for run in "ab")
    assert [name for name in before if before[name] != after[name]] == []
    data = [artefacts(tmp_path / run, ("data",)) for run in "ab"]
    assert [name for name in data[0] if data[0][name] != data[1][name]] == ["data/validation.parquet"]


@pytest.mark.long
def test_a_leak_would_be_seen(run_stage, tmp_path):
    """The check itself: items of the train split that change do change the artefacts."""
    run_stages(run_stage, tmp_path / "a", raw_tables(tmp_path / "raw_a"), ("embed", "scid"))
    run_stages(run_stage, tmp_path / "b", raw_tables(tmp_path / "raw_b", place=-3), ("embed", "scid"))
    before, after = (artefacts(tmp_path / run, ("embeddings", "scid")) for run in "ab")
    assert {"embeddings/items.parquet", "scid/item_codes.parquet"} <= {n for n in before if before[n] != after[n]}


def test_permuted_targets_of_a_split_by_time_change_nothing_else(run_stage, tmp_path):
    """Items exchanged between users after the boundary; reviews stay with their rows."""
    options = {"split": "time", "validation_from": 0.7, "test_from": 0.85, "core": 0}
    config = tmp_path / "time.yaml"
    config.write_text("format: tables\n" + "".join(f"{name}: {value}\n" for name, value in options.items()))
    tables = SyntheticMarket(MARKET).tables()
    log = tables.interactions.with_columns(later=pl.col("timestamp") >= pl.col("timestamp").quantile(0.72))
    items, rows = log["item_id"].to_numpy().copy(), log["later"].arg_true().to_numpy()
    items[rows] = np.random.default_rng(0).permutation(items[rows])
    for name, column in (("a", log["item_id"]), ("b", pl.Series("item_id", items))):
        tables.interactions = log.drop("later").with_columns(column)
        tables.save(tmp_path / f"raw_{name}")
        run_stage("prepare", tmp_path / name, config=config, source=tmp_path / f"raw_{name}")
    data = [artefacts(tmp_path / run, ("data",)) for run in "ab"]
    assert "data/reviews.parquet" in data[0]
    changed = [name for name in data[0] if data[0][name] != data[1][name]]
    assert changed == ["data/test.parquet", "data/validation.parquet"]
