"""What other settings, other codes or another launch left behind is never gone on from."""

import json
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from align3gr.checkpoints import take_up
from align3gr.errors import InputError
from align3gr.pipeline import read_manifest, stage
from align3gr.scid.dual_scid_trainer import DualSCIDTrainer
from tests.conftest import SMOKE
from tests.launching import run

EARLIER = {"scid": ("data", "embeddings"), "sft": ("data", "scid"), "sp_dpo": ("data", "scid", "sft")}


def prepared(smoke_run: Path, run_dir: Path, name: str) -> Path:
    for folder in EARLIER[name]:
        shutil.copytree(smoke_run / folder, run_dir / folder)
    return run_dir


@pytest.fixture
def interrupted(monkeypatch, run_stage):
    """Runs a stage until its first checkpoint is whole."""

    def interrupted(name: str, run_dir: Path, **options) -> None:
        def save(trainer, *args, **kwargs):
            saved(trainer, *args, **kwargs)
            raise KeyboardInterrupt

        saved = Trainer._save_checkpoint
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Trainer, "_save_checkpoint", save)
            run_stage(name, run_dir, **options)

    return interrupted


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def codes_the_other_way_round(run_dir: Path) -> None:
    path = run_dir / "scid" / "item_codes.parquet"
    pl.read_parquet(path).with_columns(pl.col("codes").reverse()).write_parquet(path)


def test_fine_tuning_with_other_settings_begins_anew_and_the_first_goes_on_later(
    smoke_run, tmp_path, run_stage, interrupted, caplog
):
    run_dir = prepared(smoke_run, tmp_path, "sft")
    interrupted("sft", run_dir)
    (first,) = (run_dir / "sft.partial" / "trainer").glob("checkpoint-*")
    others = {"learning_rate": {"learning_rate": 1e-3}, "hidden_size, learning_rate": {"hidden_size": 64}}
    for names, options in others.items():
        caplog.clear()
        interrupted("sft", run_dir, **options)
        assert caplog.text.count(f"an interrupted run with other {names} is put aside as sft.aside-") == 1
        # From step 0 on, with what was asked for.
        (again,) = (run_dir / "sft.partial" / "trainer").glob("checkpoint-*")
        assert again.name == first.name
        state = json.loads((again / "trainer_state.json").read_text())
        assert state["global_step"] == int(first.name.split("-")[1])
    assert json.loads((again / "config.json").read_text())["hidden_size"] == 64
    assert len(list(run_dir.glob("sft.aside-*"))) == 2
    run_stage("sft", run_dir)
    assert read_manifest(run_dir / "sft")["resumed"] is True
    assert weights(run_dir / "sft" / "model") == weights(smoke_run / "sft" / "model")
    assert (run_dir / "sft" / "log.json").read_bytes() == (smoke_run / "sft" / "log.json").read_bytes()
    assert len(list(run_dir.glob("sft.aside-*"))) == 2 and not (run_dir / "sft.partial").exists()


def test_fine_tuning_on_other_codes_begins_anew(smoke_run, tmp_path, interrupted, caplog):
    run_dir = prepared(smoke_run, tmp_path, "sft")
    interrupted("sft", run_dir)
    codes_the_other_way_round(run_dir)
    interrupted("sft", run_dir)
    assert "an interrupted run with other scid/item_codes.parquet is put aside" in caplog.text
    assert len(list((run_dir / "sft.partial" / "trainer").glob("checkpoint-*"))) == 1


def test_templates_that_were_edited_are_other_settings(smoke_run, tmp_path, interrupted, caplog):
    from align3gr.sft import mixture

    run_dir = prepared(smoke_run, tmp_path / "run", "sft")
    templates = tmp_path / "mine.yaml"
    shutil.copy(Path(mixture.__file__).parent / "templates" / "compact.yaml", templates)
    interrupted("sft", run_dir, templates=templates)
    templates.write_text(templates.read_text() + "\n# another wording\n")
    interrupted("sft", run_dir, templates=templates)
    assert "an interrupted run with other mine.yaml is put aside" in caplog.text


def test_preference_training_with_other_settings_or_codes_never_goes_on(
    smoke_run, tmp_path, run_stage, interrupted, caplog
):
    run_dir = prepared(smoke_run, tmp_path, "sp_dpo")
    interrupted("sp_dpo", run_dir)
    interrupted("sp_dpo", run_dir, learning_rate=3e-4)
    assert "an interrupted run with other learning_rate is put aside as sp_dpo.aside-" in caplog.text
    record = json.loads((run_dir / "sp_dpo.partial" / "curriculum.json").read_text())
    assert record["settings"]["args"]["learning_rate"] == 3e-4 and record["stages"] == []
    codes_the_other_way_round(run_dir)
    with pytest.raises(InputError, match=r"sft: was made from another .*item_codes\.parquet; run stage 'sft' again"):
        run_stage("sp_dpo", run_dir)


@pytest.mark.long
def test_the_token_level_with_other_settings_is_that_of_a_fresh_folder(
    smoke_run, tmp_path, run_stage, monkeypatch, caplog
):
    run_dir, fresh = (prepared(smoke_run, tmp_path / name, "scid") for name in ("run", "fresh"))
    evaluate, calls = DualSCIDTrainer.evaluate, []

    def third(trainer, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(trainer, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DualSCIDTrainer, "evaluate", third)
        run_stage("scid", run_dir)
    assert list((run_dir / "scid.partial").rglob("checkpoint-*"))
    for folder in (run_dir, fresh):
        run_stage("scid", folder, hidden_dim=16)
    assert caplog.text.count("scid.partial: an interrupted run with other hidden_dim left nothing to go on from") == 1
    files = {path.relative_to(run_dir): path.read_bytes() for path in (run_dir / "scid").rglob("*") if path.is_file()}
    for name in [name for name in files if name.name == "manifest.json"]:
        del files[name]
    assert files == {name: (fresh / name).read_bytes() for name in files} and len(files) > 5
    assert sorted(path.name for path in run_dir.iterdir()) == ["data", "embeddings", "scid"]


def test_checkpoints_of_another_launch_are_refused(tmp_path, monkeypatch):
    def begin(with_checkpoint: bool = False) -> None:
        with stage(tmp_path, "sft", {"rate": 1}, []) as work:
            if with_checkpoint:
                (work.folder / "trainer" / "checkpoint-1").mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    for words in ("2 processes", "2 processes (zero2)"):
        monkeypatch.setattr("align3gr.pipeline.description", lambda words=words: words)
        with pytest.raises(KeyboardInterrupt):  # nothing was trained yet, so there is nothing to refuse
            begin()
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        begin(with_checkpoint=True)
    monkeypatch.setattr("align3gr.pipeline.description", lambda: "2 processes (zero2)")
    with pytest.raises(InputError, match=r"sft\.partial: its checkpoints are those of a launch with 1 process, this "):
        begin()
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        begin()


@pytest.mark.long
def test_a_launch_that_is_picked_by_name_is_another_one(smoke_run, tmp_path, interrupted):
    """What it says of itself is that of `zero2.yaml`: four processes, and ZeRO-2."""
    pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -c constraints.txt -e '.[deepspeed]'")
    run_dir = prepared(smoke_run, tmp_path / "run", "sft")
    interrupted("sft", run_dir)
    options = ["--config", SMOKE / "sft.yaml", "--run_dir", run_dir]
    command = [sys.executable, "-m", "align3gr.cli", "sft", "--accelerate_config", "zero2", *options]
    status, printed = run(command, tmp_path / "output.txt")
    assert status != 0
    assert "are those of a launch with 1 process, this one has 4 processes (zero2)" in printed, printed[-3000:]
    assert list((run_dir / "sft.partial" / "trainer").glob("checkpoint-*"))


class Rows(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.arange(row, row + 3), "labels": torch.arange(row, row + 3)}


def trainer(folder: Path, hidden_size: int = 8, steps: int = 2, batch: int = 2, rate: float = 1e-3) -> Trainer:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": hidden_size, "intermediate_size": 16}
    config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=rate,
        save_steps=1,
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(LlamaForCausalLM(config), arguments, train_dataset=Rows())


OTHER = {
    "hidden_size": (16, "hidden_size"),
    "batch": (1, "per_device_train_batch_size"),
    "rate": (1e-2, "learning_rate"),
}


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("finished", [True, False])
def test_a_checkpoint_that_lies_in_the_wrong_folder_is_named(option, finished, tmp_path):
    value, name = OTHER[option]
    trainer(tmp_path).train()
    if not finished:
        shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(
        InputError, match=rf"checkpoint-{1 + finished}: {name}: the checkpoint has .*, this training {value};"
    ):
        take_up(trainer(tmp_path, **{option: value}))
    log = take_up(trainer(tmp_path))  # the same settings go on
    assert [line["step"] for line in log if "loss" in line] == [1, 2]
