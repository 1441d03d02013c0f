"""Whole runs: killed and resumed, repeated, launched, and as good as they must be."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMOKE, without_times
from tests.launching import kill_when, run, start

pytestmark = pytest.mark.long


def copy_stages(source: Path, run_dir: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        shutil.copytree(source / name, run_dir / name)
    return run_dir


def start_stage(stage: str, run_dir: Path) -> subprocess.Popen:
    command = [sys.executable, ROOT / "recipes" / f"{stage}.py", "--config", SMOKE / f"{stage}.yaml"]
    return start([*command, "--run_dir", run_dir], run_dir / "output.txt")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_fine_tuning_killed_in_the_middle_ends_with_the_same_model(smoke_run, tmp_path, run_stage):
    run_dir = copy_stages(smoke_run, tmp_path / "run", ("data", "embeddings", "scid"))
    trainer = run_dir / "sft.partial" / "trainer"
    kill_when(lambda: list(trainer.glob("checkpoint-*/trainer_state.json")), start_stage("sft", run_dir))
    assert not (run_dir / "sft").exists()
    run_stage("sft", run_dir)
    assert weights(run_dir / "sft" / "model") == weights(smoke_run / "sft" / "model")


@pytest.mark.parametrize(
    "sign",
    ["initial/policy", "0-easy/rows", "0-easy/trainer/checkpoint-*", "0-easy/policy", "1-medium/rows", "2-hard/rows"],
)
def test_preference_training_killed_anywhere_ends_with_the_same_policy(sign, smoke_run, tmp_path, run_stage):
    run_dir = copy_stages(smoke_run, tmp_path / "run", ("data", "embeddings", "scid", "sft"))
    kill_when(lambda: list((run_dir / "sp_dpo.partial").glob(sign)), start_stage("sp_dpo", run_dir))
    run_stage("sp_dpo", run_dir)
    assert weights(run_dir / "sp_dpo" / "model") == weights(smoke_run / "sp_dpo" / "model")
    for stage in ("0-easy", "1-medium", "2-hard"):
        assert weights(run_dir / "sp_dpo" / stage / "policy") == weights(smoke_run / "sp_dpo" / stage / "policy")
    files = {str(p.relative_to(run_dir)) for p in (run_dir / "sp_dpo").rglob("*")}
    assert files == {str(p.relative_to(smoke_run)) for p in (smoke_run / "sp_dpo").rglob("*")}


def test_one_seed_gives_one_table(smoke_run, tmp_path):
    command = [sys.executable, "-m", "align3gr.cli", "run", "--config", "recipes/smoke/pipeline.yaml"]
    status, printed = run([*command, "--run_dir", tmp_path / "run"], tmp_path / "output.txt")
    assert status == 0, printed[-2000:]
    first, second = (without_times(run / "evaluation") for run in (smoke_run, tmp_path / "run"))
    assert first == second
    assert "| SFT |" in printed


def test_a_stage_launched_by_accelerate_in_one_process_is_the_same_stage(smoke_run, tmp_path):
    run_dir = copy_stages(smoke_run, tmp_path / "run", ("data", "embeddings", "scid"))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    command = [*launch, "recipes/sft.py", "--config", "recipes/smoke/sft.yaml", "--run_dir", run_dir]
    status, printed = run(command, run_dir / "output.txt")
    assert status == 0, printed[-2000:]
    assert weights(run_dir / "sft" / "model") == weights(smoke_run / "sft" / "model")


def test_fine_tuning_reaches_60_percent_of_the_best_possible_recall(tmp_path, run_stage):
    run_dir = tmp_path / "run"
    for name in ("prepare", "embed", "scid", "sft", "evaluate"):
        run_stage(name, run_dir, config=ROOT / "recipes" / "synthetic" / f"{name}.yaml")
    results = json.loads((run_dir / "evaluation" / "results.json").read_text())
    recall = {name: columns["seen_allowed"]["recall@10"] for name, columns in results.items()}
    assert recall["SFT"] >= 0.6 * recall["best possible"]
    assert recall["SFT"] > recall["five latest, then item-kNN"] > recall["popularity"]
