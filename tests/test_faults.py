"""What breaks from outside: a disk that is full, a checkpoint that was cut off, a folder that cannot be made."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from align3gr import Recommender
from align3gr.checkpoints import last_checkpoint
from align3gr.errors import InputError
from align3gr.recipe import run_recipe
from tests.conftest import ROOT, SMOKE


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps(state_at(step)))
    (path / "config.json").write_text('{"hidden_size": 8}')
    save_file({"weight": torch.zeros(64)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"exp_avg": torch.zeros(64)}, path / name)
    return path


def state_at(step: int) -> dict[str, int]:
    return {"global_step": step, "max_steps": 20}


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json", "trainer_state.json")


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_was_cut_off_is_passed_over(name, tmp_path, caplog):
    good, bad = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-of-mine").mkdir()
    assert last_checkpoint(tmp_path) == (bad, state_at(10))
    content = (bad / name).read_bytes()
    for broken in (content[: len(content) // 2], b"", b"\0" * len(content), b"\xff" * len(content)):
        caplog.clear()
        (bad / name).write_bytes(broken)
        assert last_checkpoint(tmp_path) == (good, state_at(9))
        assert "an earlier checkpoint is used" in caplog.text and "checkpoint-10" in caplog.text
    shutil.rmtree(good)
    assert last_checkpoint(tmp_path) == (None, {})


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_without_one_of_its_files_is_passed_over(name, tmp_path, caplog):
    """A Trainer would go on with a fresh optimizer, another schedule or other dropout, and say nothing."""
    good, bad = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    (bad / name).unlink()
    if name == "config.json":  # a Trainer can do without
        assert last_checkpoint(tmp_path)[0] == bad
        return
    assert last_checkpoint(tmp_path) == (good, state_at(9))
    assert "checkpoint-10" in caplog.text and "an earlier checkpoint is used" in caplog.text


def test_of_the_last_step_the_weights_are_enough_and_all_shards_are_needed(tmp_path):
    path = checkpoint(tmp_path, 20)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).unlink()
    assert last_checkpoint(tmp_path) == (path, state_at(20))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    assert last_checkpoint(tmp_path) == (None, {})
    shutil.copy(path / "model-00001-of-00002.safetensors", path / "model-00002-of-00002.safetensors")
    assert last_checkpoint(tmp_path) == (path, state_at(20))


def test_a_checkpoint_of_deepspeed_has_its_own_files(tmp_path):
    path = checkpoint(tmp_path, 10)
    for name in ("optimizer.pt", "scheduler.pt"):
        (path / name).unlink()
    (path / "global_step10").mkdir()
    torch.save({"state": torch.zeros(64)}, path / "global_step10" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert last_checkpoint(tmp_path) == (path, state_at(10))
    (path / "global_step10" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"PK")
    assert last_checkpoint(tmp_path) == (None, {})


def test_a_full_disk_is_named_whatever_a_library_makes_of_it(capsys):
    def fails_within() -> None:
        try:
            raise OSError(28, "No space left on device", "runs/x/model.safetensors")
        except OSError as error:
            raise RuntimeError("serialisation failed") from error

    def fails_with_text() -> None:
        raise ValueError("I/O error: File too large (os error 27)")

    for fails, words in ((fails_within, "runs/x/model.safetensors"), (fails_with_text, "File too large")):
        with pytest.raises(SystemExit) as ended:
            run_recipe(fails)
        assert ended.value.code == 2
        assert f"{words}" in (said := capsys.readouterr().err) and said.count("\n") == 1 and "free some space" in said

    def another() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run_recipe(another)


def limit_files(size: int) -> None:
    """No file of this process can be larger, as on a disk that is nearly full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.long
@pytest.mark.parametrize("name", ["prepare", "embed", "scid", "sft", "sp_dpo"])
def test_a_stage_on_a_full_disk_keeps_what_was_there_and_goes_on(name, smoke_run, tmp_path, run_stage):
    stages = {"prepare": "data", "embed": "embeddings", "scid": "scid", "sft": "sft", "sp_dpo": "sp_dpo"}
    for earlier in list(stages)[: list(stages).index(name)]:
        shutil.copytree(smoke_run / stages[earlier], tmp_path / stages[earlier])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    largest = max(path.stat().st_size for path in (smoke_run / stages[name]).rglob("*"))
    command = [sys.executable, ROOT / "recipes" / f"{name}.py", "--config", SMOKE / f"{name}.yaml"]
    done = subprocess.run(
        [*command, "--run_dir", tmp_path],
        preexec_fn=partial(limit_files, largest // 2),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "free some space" in last and "Traceback" not in done.stderr
    assert not (tmp_path / stages[name]).exists()
    assert {path: path.read_bytes() for path in before} == before
    run_stage(name, tmp_path)
    files = {path.relative_to(tmp_path) for path in (tmp_path / stages[name]).rglob("*")}
    assert files == {path.relative_to(smoke_run) for path in (smoke_run / stages[name]).rglob("*")}
    for path in (tmp_path / stages[name]).rglob("*.safetensors"):
        assert path.read_bytes() == (smoke_run / path.relative_to(tmp_path)).read_bytes()


COMMANDS = {
    "recommend": ["--model", "sft/model", "--input", "data/train.parquet", "--output", "out.csv", "--device", "cpu"],
    "scid-report": ["--codes", "scid/item_codes.parquet", "--output", "codes"],
    "report": ["."],
}


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_on_a_full_disk_ends_in_one_line_and_goes_on_later(name, smoke_run, tmp_path):
    shutil.copytree(smoke_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def start(limit: int) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "align3gr.cli", name, *COMMANDS[name]],
            preexec_fn=partial(limit_files, limit),
            capture_output=True,
            text=True,
            cwd=tmp_path / "run",
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            timeout=300,
        )

    done = start(500)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "File too large" in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    again = start(10_000_000)
    assert again.returncode == 0, again.stderr[-3000:]
    assert not list((tmp_path / "run").rglob("*.partial")) and not list((tmp_path / "run").rglob("*.parts"))


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path, run_stage):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run_dir: cannot write .*file/run/data\.partial: Not a directory"):
        run_stage("prepare", tmp_path / "file" / "run")


def test_a_model_and_the_codes_of_another_training_are_told_apart(smoke_run, tmp_path):
    model = smoke_run / "sft" / "model"
    assert Recommender.from_pretrained(model, device="cpu", scid=smoke_run / "scid").assigner is not None
    shutil.copytree(smoke_run / "scid", tmp_path / "scid")
    codes = pl.read_parquet(tmp_path / "scid" / "item_codes.parquet")
    codes.with_columns(pl.col("codes").reverse()).write_parquet(tmp_path / "scid" / "item_codes.parquet")
    with pytest.raises(InputError, match=r"scid: gives item 'item_000' the SCID .*, the model knows it as"):
        Recommender.from_pretrained(model, device="cpu", scid=tmp_path / "scid")


@pytest.fixture
def of_other_codes(smoke_run, tmp_path) -> Path:
    """A run up to its SCIDs, and beside it a model that was trained on others of the same sizes."""
    for name in ("data", "embeddings", "scid", "sft"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    shutil.copytree(smoke_run / "sft" / "model", tmp_path / "model")
    codes = pl.read_parquet(tmp_path / "model" / "item_codes.parquet")
    codes.with_columns(pl.col("codes").reverse()).write_parquet(tmp_path / "model" / "item_codes.parquet")
    return tmp_path / "model"


def test_preference_training_does_not_start_from_a_model_of_other_codes(of_other_codes, run_stage):
    run_dir = of_other_codes.parent / "run"
    with pytest.raises(InputError, match=r"scid: gives item 'item_000' the SCID .*, the model knows it as .*"):
        run_stage("rf_dpo", run_dir, start_from=of_other_codes)
    codes = pl.read_parquet(of_other_codes / "item_codes.parquet")
    codes.reverse().write_parquet(of_other_codes / "item_codes.parquet")
    with pytest.raises(InputError, match=r"items: the model's catalogue holds 80 items, .*in another order"):
        run_stage("rf_dpo", run_dir, start_from=of_other_codes)
    codes.with_columns(pl.col("codes").list.head(2)).write_parquet(of_other_codes / "item_codes.parquet")
    with pytest.raises(InputError, match="expected 3 integers"):
        run_stage("rf_dpo", run_dir, start_from=of_other_codes)
    assert not list(run_dir.glob("rf_dpo*"))


def test_fine_tuning_does_not_start_from_a_model_of_other_codes(of_other_codes, smoke_run, run_stage):
    run_dir = of_other_codes.parent / "run"
    with pytest.raises(InputError, match=r"base_model: .*model knows item 'item_000' as .*, this run as .*differ"):
        run_stage("sft", run_dir, base_model=of_other_codes)
    assert (run_dir / "sft" / "manifest.json").is_file() and not list(run_dir.glob("sft.*"))
    run_stage("sft", run_dir, base_model=smoke_run / "sft" / "model", max_steps=1)  # of the same codes
