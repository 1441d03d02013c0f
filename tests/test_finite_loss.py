"""A loss that is no number ends the training with the batch on disk and the weights as they were."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from align3gr.dpo import SoftmaxDPOTrainer
from align3gr.encoders.din_trainer import DINTrainer
from align3gr.errors import InputError
from align3gr.finite_loss import FiniteLoss
from align3gr.pipeline import stage
from align3gr.scid.dual_scid_trainer import DualSCIDTrainer
from align3gr.sft.encoder_decoder import EncoderDecoderTrainer
from align3gr.sft.trainer import RecommendingSFTTrainer
from tests.launching import launch_command, run


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, part):
        return {"loss": (self.weight * x + part["y"]).mean()}


class CheckedTrainer(FiniteLoss, Trainer):
    pass


def collate(rows):
    return {"x": torch.tensor(rows), "part": {"y": torch.zeros(len(rows))}}


def arguments(folder, **options) -> TrainingArguments:
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.1} | options
    return TrainingArguments(
        str(folder), report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False, **options
    )


def test_the_batch_is_kept_and_the_weights_are_those_of_the_step_before(tmp_path):
    rows = [1.0, 1.0, float("inf"), 1.0]
    options = {"save_steps": 1, "train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
    trainer = CheckedTrainer(Line(), arguments(tmp_path, **options), collate, rows)
    with pytest.raises(InputError, match=r"learning_rate: the loss of step 2 is inf at a rate of 0\.1; lower it"):
        trainer.train()
    assert load_file(tmp_path / "nonfinite-batch.safetensors")["x"].tolist() == [float("inf"), 1.0]
    assert load_file(tmp_path / "nonfinite-batch.safetensors")["part.y"].tolist() == [0.0, 0.0]
    facts = json.loads((tmp_path / "nonfinite-batch.json").read_text())
    assert facts == {"step": 2, "loss": "inf", "learning_rate": 0.1, "process": 0}
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert trainer.model.weight.item() == pytest.approx(0.9)  # one step of AdamW


class Root(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, part):
        return {"loss": (self.weight * x).abs().sqrt().mean()}  # 0 has a root, which has no slope


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_no_number_is_seen_behind_a_finite_loss_also_in_the_last_step(max_grad_norm, tmp_path):
    options = {"save_steps": 1, "train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
    settings = arguments(tmp_path, max_steps=2, max_grad_norm=max_grad_norm, **options)
    trainer = CheckedTrainer(Root(), settings, collate, [1.0, 4.0, 0.0, 1.0])
    with pytest.raises(InputError, match=r"learning_rate: the gradient of step 2 is nan at a rate of 0\.1; lower it"):
        trainer.train()
    assert load_file(tmp_path / "nonfinite-batch.safetensors")["x"].tolist() == [0.0, 1.0]
    facts = json.loads((tmp_path / "nonfinite-batch.json").read_text())
    assert facts == {"step": 2, "gradient": "nan", "learning_rate": 0.1, "process": 0}
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert trainer.model.weight.item() == pytest.approx(0.9)


def test_every_trainer_of_the_stages_checks():
    for trainer in (RecommendingSFTTrainer, EncoderDecoderTrainer, SoftmaxDPOTrainer, DualSCIDTrainer, DINTrainer):
        assert trainer.training_step is FiniteLoss.training_step
        assert trainer._get_grad_norm is FiniteLoss._get_grad_norm


def test_a_stage_that_ends_so_keeps_its_folder_and_says_so_once(smoke_run, tmp_path, run_stage):
    for name in ("data", "embeddings", "scid"):
        shutil.copytree(smoke_run / name, tmp_path / name)
    with pytest.raises(InputError, match=r"learning_rate: the loss of step \d+ is nan") as caught:
        run_stage("sft", tmp_path, learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0, num_train_epochs=5)
    batch = tmp_path / "sft.partial" / "trainer" / "nonfinite-batch.safetensors"
    assert str(batch) in str(caught.value) and load_file(batch)["input_ids"].ndim == 2
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize("name", ["nonfinite-batch.json", "nonfinite-batch-1.json"])
def test_the_batch_of_any_process_outlives_its_stage(name, tmp_path):
    with pytest.raises(InputError), stage(tmp_path, "sft", {}, []) as work:
        (work.folder / name).write_text("{}")
        raise InputError("learning_rate: the loss of step 1 is nan")
    assert (tmp_path / "sft.partial" / name).is_file()


IN_TWO = """
import sys
from pathlib import Path
from accelerate import PartialState
from align3gr.errors import InputError
from align3gr.processes import launched
from align3gr.recipe import run_recipe
from tests.test_finite_loss import CheckedTrainer, Line, arguments, collate


def main():
    assert launched().num_processes == 2
    rows = [1.0, 1.0, 1.0, float("inf"), 1.0, 1.0, 1.0, 1.0]  # step 2 is rows 2 and 3, one in each process
    options = {"save_steps": 1, "train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
    options |= {"per_device_train_batch_size": 1}
    try:
        CheckedTrainer(Line(), arguments(sys.argv[1], **options), collate, rows).train()
    except InputError as error:
        state = PartialState()
        Path(f"{sys.argv[1]}-{state.process_index}.txt").write_text(str(error))
        state.wait_for_everyone()  # the first one to leave makes the launcher end the other
        raise


run_recipe(main)
"""


@pytest.mark.long
def test_processes_stop_together_and_none_saves_what_the_other_has_ruined(tmp_path):
    (tmp_path / "train.py").write_text(IN_TWO)
    command = [*launch_command("cpu_ddp"), tmp_path / "train.py", tmp_path / "out"]
    status, printed = run(command, tmp_path / "output.txt")
    said = "learning_rate: the loss of step 2 is inf at a rate of 0.1"
    assert status != 0 and said in printed and "exitcode  : 2 " in printed, printed[-3000:]
    assert all(said in (tmp_path / f"out-{rank}.txt").read_text() for rank in range(2))
    assert f"the batch is kept in {tmp_path}/out/nonfinite-batch-1.safetensors" in printed
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"checkpoint-1", "nonfinite-batch-1.safetensors", "nonfinite-batch-1.json"}
    assert load_file(tmp_path / "out" / "nonfinite-batch-1.safetensors")["x"].tolist() == [float("inf")]
    facts = json.loads((tmp_path / "out" / "nonfinite-batch-1.json").read_text())
    assert facts == {"step": 2, "loss": "inf", "learning_rate": 0.1, "process": 1}
    weight = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")["weight"].item()
    assert weight == pytest.approx(0.9)  # one step of AdamW
