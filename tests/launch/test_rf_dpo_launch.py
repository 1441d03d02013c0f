"""RF-DPO in two processes, launched as a person would: the rows of one process; and killed and taken up again."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import load_from_disk

from tests.conftest import ROOT, SMOKE
from tests.launching import kill_when, launch_command, run, start

pytestmark = pytest.mark.long

RECIPE = [ROOT / "recipes/rf_dpo.py", "--config", SMOKE / "rf_dpo.yaml", "--start_from", "sft", "--part_prompts", "16"]


def prepared(smoke_run: Path, run_dir: Path) -> Path:
    for name in ("data", "scid", "sft"):
        shutil.copytree(smoke_run / name, run_dir / name)
    return run_dir


def test_two_processes_score_reviews_once_and_make_the_rows_of_one(smoke_run, run_stage, tmp_path, monkeypatch):
    pytest.importorskip("vaderSentiment")
    two = prepared(smoke_run, tmp_path / "two")
    command = [*launch_command("cpu_ddp"), *RECIPE, "--run_dir", two, "--feedback", "reviews"]
    status, printed = run(command, tmp_path / "output.txt", ALIGN3GR_CACHE=str(tmp_path / "cache"))
    assert status == 0, printed[-3000:]
    monkeypatch.setenv("ALIGN3GR_CACHE", str(tmp_path / "cache"))
    one = prepared(smoke_run, tmp_path / "one")
    run_stage("rf_dpo", one, start_from="sft", part_prompts=16, feedback="reviews")
    first, second = (load_from_disk(str(run / "rf_dpo" / "0-disliked" / "rows" / "dataset")) for run in (one, two))
    columns = ["prompt_ids", "chosen_ids", "rejected_ids", "num_generated"]
    assert first.select_columns(columns).to_list() == second.select_columns(columns).to_list() and len(first) >= 8
    reports = [json.loads((run / "rf_dpo" / "feedback.json").read_text()) for run in (one, two)]
    assert reports[0] == reports[1] and reports[0]["agreement"]["reviews"] > 1000
    assert json.loads((two / "rf_dpo" / "manifest.json").read_text())["processes"] == 2


# The curriculum is that of self-play, whose tests kill it everywhere.
@pytest.mark.parametrize("sign", ["0-disliked/trainer/checkpoint-*"])
def test_killed_in_a_stage_it_ends_with_the_same_policy(sign, smoke_run, run_stage, tmp_path):
    whole = prepared(smoke_run, tmp_path / "whole")
    run_stage("rf_dpo", whole, start_from="sft", part_prompts=16)
    run_dir = prepared(smoke_run, tmp_path / "run")
    command = [*launch_command(None), *RECIPE, "--run_dir", run_dir]
    stage = start(command, tmp_path / "output.txt", ALIGN3GR_CACHE=str(tmp_path))
    kill_when(lambda: list((run_dir / "rf_dpo.partial").glob(sign)), stage)
    run_stage("rf_dpo", run_dir, start_from="sft", part_prompts=16)
    for folder in ("0-disliked/policy", "1-neutral/policy", "model"):
        weights = [(run / "rf_dpo" / folder / "model.safetensors").read_bytes() for run in (whole, run_dir)]
        assert weights[0] == weights[1], folder
