"""Softmax-DPO in two processes on the CPU, launched as a person would: the steps and weights of one process."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.conftest import ROOT
from tests.launch.test_launch import LAUNCHES
from tests.launching import launch_command, run

pytestmark = pytest.mark.long


def train(output: Path, way: str, config: str | None = None) -> tuple[dict, dict]:
    command = [*launch_command(config), ROOT / "tests/launch/train_dpo.py", output, way]
    status, printed = run(command, output / "output.txt")
    assert status == 0, printed[-3000:]
    return json.loads((output / "launch.json").read_text()), load_file(output / "weights.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process does, by way."""
    results: dict[str, tuple[dict, dict]] = {}

    def run(way: str) -> tuple[dict, dict]:
        if way not in results:
            results[way] = train(tmp_path_factory.mktemp(way), way)
        return results[way]

    return run


# Every way under DDP; under DeepSpeed what it handles in a way of its own.
WAYS = {"cpu_ddp": ["full", "lora", "ref_model"], "zero2": ["lora"], "zero3": ["full", "lora"]}


@pytest.mark.parametrize(("config", "way"), [(config, way) for config in LAUNCHES for way in WAYS[config]])
def test_two_processes_take_the_steps_of_one(way, config, alone, tmp_path):
    """Rows in memory (full, ref_model) and on disk; the reference precomputed (full, lora) and run along."""
    if config.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -c constraints.txt -e '.[deepspeed]'")
    if (config, way) == ("zero3", "lora"):
        way = "lora_saved_modules"  # PEFT's trained token rows do not train under ZeRO-3
    expected_facts, expected = alone(way)
    facts, weights = train(tmp_path, way, config)
    assert (facts["world_size"], expected_facts["world_size"]) == (2, 1)
    assert (facts["distributed_type"], facts["zero_stage"]) == LAUNCHES[config]
    (alone_draws,), (first_draws, second_draws) = expected_facts["drawn"], facts["drawn"]
    assert first_draws == alone_draws and second_draws != first_draws  # dropout differs between processes
    first = facts["logs"][0]
    if way == "ref_model":
        assert abs(first["preference_loss"] - first["uniform_loss"]) > 0.01
    else:
        assert first["preference_loss"] == pytest.approx(first["uniform_loss"], abs=1e-4)
    assert len(facts["logs"]) == 3
    for ours, theirs in zip(facts["logs"], expected_facts["logs"], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)
    last = facts["logs"][2]
    assert abs(last["preference_loss"] - last["uniform_loss"]) > 1e-3  # the policy has left its reference
    assert set(weights) == set(expected)
    for name, values in expected.items():
        assert_close(weights[name], values, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
