"""What breaks from outside: a disk that is full, a checkpoint that was cut off, a folder that cannot be made."""

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
    (path / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    save_file({"weight": torch.zeros(64)}, path / "model.safetensors")
    torch.save({"exp_avg": torch.zeros(64)}, path / "optimizer.pt")
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_checkpoint_that_was_cut_off_is_passed_over(name, tmp_path, caplog):
    good, bad = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert last_checkpoint(tmp_path) == (bad, {"global_step": 10})
    content = (bad / name).read_bytes()
    (bad / name).write_bytes(content[: len(content) // 2])
    assert last_checkpoint(tmp_path) == (good, {"global_step": 9})
    assert "an earlier checkpoint is used" in caplog.text and "checkpoint-10" in caplog.text
    shutil.rmtree(good)
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
@pytest.mark.parametrize("name", ["embed", "sft", "sp_dpo"])
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
