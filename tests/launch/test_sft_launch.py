"""The trainers of the SFT stage in two processes, launched as a person would: steps, metrics and weights of one."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from align3gr.pipeline import read_manifest
from tests.conftest import ROOT, SMOKE
from tests.launching import launch_command, run

pytestmark = pytest.mark.long

# Answers of several lengths: a mean of the means of batches is another number than the mean of a step.
TASKS = ["sequential", "item_text=0.5", "asymmetric=0.5"]
WAYS: dict[str, dict[str, object]] = {
    "catalogue": {"normalizer": "catalogue"},
    "vocabulary": {"normalizer": "vocabulary"},
    "tree": {"objective": "tree"},
    "t5": {"config": SMOKE / "sft-tiger.yaml", "user_scid": False},
    "t5 over the vocabulary": {"config": SMOKE / "sft-tiger.yaml", "user_scid": False, "normalizer": "vocabulary"},
}
# SGD: Adam makes a full step of the rounding of a gradient near zero.
STEPS = {"max_steps": 4, "gradient_accumulation_steps": 2, "optim": "sgd", "max_grad_norm": 0, "warmup_steps": 0}
STEPS |= {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "validation_users": 9}


@pytest.mark.parametrize(
    ("way", "config"), [*((way, "cpu_ddp") for way in WAYS), ("tree", "zero2"), ("t5", "zero2"), ("t5", "zero3")]
)
def test_two_processes_take_the_steps_of_one(way, config, smoke_run, run_stage, tmp_path):
    if config.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -c constraints.txt -e '.[deepspeed]'")
    for name in ("one", "two", "start"):
        for folder in ("data", "scid"):
            shutil.copytree(smoke_run / folder, tmp_path / name / folder)
    options = {"config": SMOKE / "sft.yaml", "tasks": TASKS} | STEPS | WAYS[way]
    run_stage("sft", tmp_path / "one", per_device_train_batch_size=8, learning_rate=0.1, **options)
    run_stage("sft", tmp_path / "start", per_device_train_batch_size=8, learning_rate=1e-12, **options)
    words = [word for name, value in options.items() if name != "tasks" for word in (f"--{name}", value)]
    words += ["--tasks", *TASKS, "--per_device_train_batch_size", 4, "--learning_rate", 0.1]
    command = [*launch_command(config), ROOT / "recipes/sft.py", *words, "--run_dir", tmp_path / "two"]
    status, printed = run(command, tmp_path / "output.txt")
    assert status == 0, printed[-3000:]
    assert read_manifest(tmp_path / "two" / "sft")["processes"] == 2

    def log(name: str) -> list[dict]:
        return json.loads((tmp_path / name / "sft" / "log.json").read_text())

    def weights(name: str) -> dict:
        return load_file(Path(tmp_path, name, "sft", "model", "model.safetensors"))

    assert [entry["step"] for entry in log("one") if "loss" in entry] == [1, 2, 3, 4]
    for ours, theirs in zip(log("two"), log("one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    ours, theirs, before = weights("two"), weights("one"), weights("start")
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert_close(ours[name], values, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert max((values - before[name]).abs().max() for name, values in theirs.items()) > 1e-3
