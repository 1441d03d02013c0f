"""RF-DPO in two processes, launched as a person would: rows and policies of one process; killed and taken up again."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import load_from_disk
from safetensors.torch import load_file
from torch.testing import assert_close

from align3gr.pipeline import read_manifest
from tests.conftest import ROOT, SMOKE
from tests.launch.test_launch import LAUNCHES
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
    assert read_manifest(two / "rf_dpo")["processes"] == 2


@pytest.fixture(scope="module")
def alone(smoke_run, tmp_path_factory) -> Path:
    """Whole batches of 8 in one process; the last one of an epoch would be filled up in several. Read only."""
    return train(prepared(smoke_run, tmp_path_factory.mktemp("one")), None, 8)


def train(run_dir: Path, config: str | None, batch: int) -> Path:
    options = ["--max_steps", 3, "--per_device_train_batch_size", batch, "--run_dir", run_dir]
    status, printed = run([*launch_command(config), *RECIPE, *options], run_dir / "output.txt")
    assert status == 0, printed[-3000:]
    return run_dir / "rf_dpo"


@pytest.mark.parametrize("config", LAUNCHES)
def test_every_launch_trains_the_policies_of_one_process(config, alone, smoke_run, tmp_path):
    if config.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -c constraints.txt -e '.[deepspeed]'")
    found = train(prepared(smoke_run, tmp_path), config, 4)
    assert read_manifest(found)["processes"] == 2
    start = load_file(smoke_run / "sft" / "model" / "model.safetensors")
    for stage in ("0-disliked", "1-neutral"):
        ours, theirs = (load_file(folder / stage / "policy" / "model.safetensors") for folder in (found, alone))
        assert ours.keys() == theirs.keys()
        for name, weights in theirs.items():
            assert_close(ours[name], weights, rtol=0, atol=5e-6)
        assert max((weights - start[name]).abs().max() for name, weights in ours.items()) > 1e-4


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
