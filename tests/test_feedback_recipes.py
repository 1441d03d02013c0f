"""The recipes of real feedback: a stage of the smoke run, a log that becomes the next round, and no leaks."""

import json
import math
import shutil

import numpy as np
import polars as pl
import pytest

from align3gr.data import Split, read_feedback, train_levels
from align3gr.errors import InputError
from align3gr.pipeline import read_manifest, start_model
from tests.test_cli import align3gr


def copy_stages(source, run_dir, names=("data", "scid", "sft")):
    for name in names:
        shutil.copytree(source / name, run_dir / name)
    return run_dir


def served_log(split: Split, users: int = 60, shown: int = 6) -> pl.DataFrame:
    """Lists shown after the data ends: the third item is clicked, the last one disliked."""
    rng = np.random.default_rng(5)
    rows = []
    for request, user in enumerate(split.users["user_id"].head(users)):
        for rank, item in enumerate(rng.choice(split.items["item_id"], shown, replace=False), start=1):
            rows.append((user, item, 10**17 + request, "impression", request, rank))
            if rank in (3, shown):
                rows.append((user, item, 10**17 + request, "click" if rank == 3 else "dislike", request, rank))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event", "request_id", "rank"], orient="row")


def test_the_stage_learns_from_ratings_and_is_judged_by_liked_targets(smoke_run):
    record = json.loads((smoke_run / "rf_dpo" / "curriculum.json").read_text())
    assert record["settings"]["metric"] == "seen_allowed_liked/recall@10"
    assert [stage["name"] for stage in record["stages"]] == ["disliked", "neutral"]
    split = Split.load(smoke_run / "data")
    levels = train_levels(split)
    report = json.loads((smoke_run / "rf_dpo" / "feedback.json").read_text())
    assert report["train"] == {
        "disliked": int((levels == 0).sum()),
        "neutral": int((levels == 1).sum()),
        "liked": int((levels == 2).sum()),
        "unknown": 0,
    }
    for stage in record["stages"]:
        # The policy is its own reference at the start.
        assert 0 < stage["first_loss"] <= math.log(1 + 20) + 1e-3
        statistics = stage["statistics"]
        assert statistics["rows"] == 48 <= statistics["eligible"] <= statistics["liked"]
        assert statistics["generated_share"] + statistics["logged_share"] == pytest.approx(1)
        assert sum(statistics["prefix_lengths"].values()) == pytest.approx(1)
        assert {"recall@10", "seen_allowed_liked/recall@10", "seen_allowed_disliked/recall@10"} <= set(
            stage["metrics"]
        )
    inputs = read_manifest(smoke_run / "rf_dpo")["inputs"]
    assert "sp_dpo/model" in inputs and "data/validation.parquet" in inputs and "data/test.parquet" not in inputs


def test_a_log_becomes_the_next_round(smoke_run, run_stage, tmp_path):
    run_dir = copy_stages(smoke_run, tmp_path / "run")
    split = Split.load(run_dir / "data")
    log = served_log(split)
    stranger = log.head(1).with_columns(user_id=pl.lit("nobody"))
    held_out = split.test.head(1).select("user_id", "item_id", "timestamp").with_columns(event=pl.lit("purchase"))
    pl.concat([log, stranger, held_out], how="diagonal").write_parquet(tmp_path / "events.parquet")
    done = align3gr("feedback", "--log", tmp_path / "events.parquet", "--run_dir", run_dir)
    assert done.returncode == 0, done.stderr
    assert "unknown users            1" in done.stdout and "held out            1" in done.stdout
    statistics = json.loads((run_dir / "feedback" / "statistics.json").read_text())
    assert (statistics["liked"], statistics["disliked"], statistics["neutral"]) == (60, 60, 240)
    path = run_dir / "feedback" / "feedback.parquet"
    table = read_feedback(path)
    assert table.height == 360 and table["request_id"].n_unique() == 60
    before = path.stat().st_mtime_ns
    done = align3gr("feedback", "--log", tmp_path / "events.parquet", "--run_dir", run_dir)
    assert done.returncode == 0 and path.stat().st_mtime_ns == before  # nothing changed, nothing is done

    # From the served model on, with the log alone: no train interaction is liked or disliked by itself.
    served = tmp_path / "served"
    shutil.copytree(smoke_run / "rf_dpo" / "model", served)
    run_stage("rf_dpo", run_dir, start_from=served, feedback="none", feedback_table=path)
    record = json.loads((run_dir / "rf_dpo" / "curriculum.json").read_text())
    assert [stage["statistics"]["liked"] for stage in record["stages"]] == [60, 60]
    assert all(stage["statistics"]["same_request_share"] > 0.1 for stage in record["stages"])
    assert (run_dir / "rf_dpo" / "model" / "model.safetensors").is_file()
    with pytest.raises(InputError, match="is what this stage made before and would replace"):
        start_model(run_dir, str(run_dir / "rf_dpo" / "model"))
    assert start_model(run_dir, "sft") == run_dir / "sft" / "model"


def test_exchanged_targets_change_no_row(smoke_run, run_stage, tmp_path):
    """Rows and what was generated for them, and for test targets every artefact of the stage."""
    made = {}
    for name, exchanged in (("as_is", ()), ("test", ("test",)), ("both", ("validation", "test"))):
        run_dir = copy_stages(smoke_run, tmp_path / name)
        for split in exchanged:
            path = run_dir / "data" / f"{split}.parquet"
            targets = pl.read_parquet(path)
            order = np.random.default_rng(1).permutation(targets.height)
            columns = (targets[column].gather(order) for column in ("item_id", "rating"))
            targets.with_columns(*columns).write_parquet(path)
        (run_dir / "data" / "manifest.json").unlink()
        served_log(Split.load(run_dir / "data")).write_parquet(tmp_path / "events.parquet")
        config = tmp_path / "feedback.yaml"
        config.write_text(f"log: {tmp_path / 'events.parquet'}\n")
        run_stage("feedback", run_dir, config=config)
        table = run_dir / "feedback" / "feedback.parquet"
        # One stage, so that validation has nothing to say about the rows.
        run_stage("rf_dpo", run_dir, start_from="sft", stages=["disliked"], feedback_table=table)
        files = [path for folder in ("feedback", "rf_dpo") for path in (run_dir / folder).rglob("*") if path.is_file()]
        skipped = ("manifest.json", "curriculum.json", "state.json")
        made[name] = {str(path.relative_to(run_dir)): path.read_bytes() for path in files if path.name not in skipped}
    assert len(made["as_is"]) > 10
    assert [path for path in made["as_is"] if made["as_is"][path] != made["test"].get(path)] == []
    rows = [path for path in made["as_is"] if "rows" in path or "candidates" in path or path.startswith("feedback/")]
    assert len(rows) >= 6 and all(made["as_is"][path] == made["both"][path] for path in rows)


def test_a_log_that_is_not_there_ends_in_one_line(tmp_path):
    done = align3gr("feedback", "--run_dir", "r", "--log", "no.parquet", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: --log no.parquet: not found" in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ["easy"]}, "stages: got 'easy', expected one of disliked, neutral, mixed"),
        ({"liked_from": 1}, "disliked_to: got 1.0, expected less than liked_from=1.0"),
        ({"feedback": "none"}, "feedback: 'none' leaves nothing to learn from; name a feedback_table"),
        ({"stop_tolerance": 0.1}, "stop_tolerance: needs evaluations inside a stage"),
        ({"candidates": 0}, "candidates: got 0, expected at least 1"),
        ({}, "run/data/items.parquet: not found"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(options, message, tmp_path, run_stage):
    with pytest.raises(InputError, match=message):
        run_stage("rf_dpo", tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []
