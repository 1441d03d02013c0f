"""Self-play in two processes, launched as a person would: the rows of one process, and a kill anywhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.conftest import ROOT, SMOKE
from tests.launching import kill_when, launch_command, run, start

pytestmark = pytest.mark.long

STAGES = ("0-easy", "1-medium", "2-hard")


def prepared(smoke_run: Path, run_dir: Path) -> Path:
    for name in ("data", "embeddings", "scid", "sft"):
        shutil.copytree(smoke_run / name, run_dir / name)
    return run_dir


def command(run_dir: Path, config: str, *options: str) -> list[object]:
    recipe = [ROOT / "recipes/sp_dpo.py", "--config", SMOKE / "sp_dpo.yaml", "--part_prompts", "16"]
    return [*launch_command(config), *recipe, "--run_dir", run_dir, *options]


def finish(run_dir: Path, config: str) -> Path:
    status, printed = run(command(run_dir, config), run_dir / "output.txt")
    assert status == 0, printed[-3000:]
    return run_dir / "sp_dpo"


def record(folder: Path) -> dict:
    found = json.loads((folder / "curriculum.json").read_text())
    for stage in found["stages"]:
        stage.pop("seconds")
    return found


@pytest.fixture(scope="module")
def two(smoke_run, tmp_path_factory) -> Path:
    """The stage in two processes, undisturbed. Read only."""
    return finish(prepared(smoke_run, tmp_path_factory.mktemp("two")), "cpu_ddp")


def test_two_processes_make_the_rows_of_one(two, smoke_run, tmp_path, run_stage):
    run_stage("sp_dpo", prepared(smoke_run, tmp_path), part_prompts=16)
    one = tmp_path / "sp_dpo"
    parts = sorted(path.name for path in (one / "candidates" / "easy").glob("*.npy"))
    assert len(parts) == 3
    for part in parts:
        assert np.array_equal(*(np.load(run / "candidates" / "easy" / part) for run in (one, two)))
    rows = [load_from_disk(run / "0-easy" / "rows" / "dataset").to_list() for run in (one, two)]
    assert rows[0] == rows[1] and len(rows[0]) > 40
    statistics = [record(run)["stages"][0]["statistics"] for run in (one, two)]
    assert statistics[0] == statistics[1]
    assert record(two)["initial"] == record(one)["initial"]


# The other places are those of one process, and tested there.
@pytest.mark.parametrize("sign", ["candidates/easy/000000.npy", "0-easy/trainer/checkpoint-*/trainer_state.json"])
def test_killed_in_two_processes_ends_with_the_same_policy(sign, two, smoke_run, tmp_path):
    run_dir = prepared(smoke_run, tmp_path)
    launch = start(command(run_dir, "cpu_ddp"), run_dir / "output.txt")
    kill_when(lambda: list((run_dir / "sp_dpo.partial").glob(sign)), launch)
    again = finish(run_dir, "cpu_ddp")
    assert record(again) == record(two)
    for folder in ("model", *(f"{stage}/policy" for stage in STAGES)):
        assert (again / folder / "model.safetensors").read_bytes() == (two / folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def large(smoke_run, tmp_path_factory, run_stage) -> tuple[Path, Path]:
    """A model whose matrices ZeRO-3 divides, those of more than 100,000 numbers; and its stages in two processes."""
    sizes = {"hidden_size": 128, "intermediate_size": 1024, "num_train_epochs": 1}
    base = tmp_path_factory.mktemp("large")
    for name in ("data", "embeddings", "scid"):
        shutil.copytree(smoke_run / name, base / name)
    run_stage("sft", base, **sizes)
    return base, finish(prepared(base, tmp_path_factory.mktemp("two_large")), "cpu_ddp")


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_trains_the_stages_of_ddp(config, large, tmp_path):
    pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -c constraints.txt -e '.[deepspeed]'")
    base, two = large
    found = finish(prepared(base, tmp_path), config)
    assert [stage["decision"] for stage in record(found)["stages"]] == [
        stage["decision"] for stage in record(two)["stages"]
    ]
    start = load_file(base / "sft" / "model" / "model.safetensors")
    for stage in STAGES:
        ours, theirs = (load_file(run / stage / "policy" / "model.safetensors") for run in (found, two))
        assert ours.keys() == theirs.keys()
        for name, weights in theirs.items():
            assert_close(ours[name], weights, rtol=0, atol=5e-5)
        assert max((weights - start[name]).abs().max() for name, weights in ours.items()) > 1e-4


def test_zero3_validates_between_stages_alone(large, tmp_path):
    pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -c constraints.txt -e '.[deepspeed]'")
    run_dir = prepared(large[0], tmp_path)
    status, printed = run(command(run_dir, "zero3", "--validate_steps", "1"), run_dir / "output.txt")
    assert status != 0 and "error: validate_steps: a policy that ZeRO-3 divides" in printed
