"""Training in several processes on the CPU, launched as a person would; the same steps as in one process."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.conftest import ROOT
from tests.launching import launch_command, run
from tests.sft.backbones import save_backbone

pytestmark = pytest.mark.long

# What the processes say they are. accelerate calls DDP on the CPU MULTI_CPU, whatever the file says.
LAUNCHES = {"cpu_ddp": ("MULTI_CPU", None), "zero2": ("DEEPSPEED", 2), "zero3": ("DEEPSPEED", 3)}
WAYS = ("full", "trainable_token_indices", "modules_to_save")
REFUSED = ("zero3", "trainable_token_indices")


def train(output: Path, base: Path, way: str, config: str | None = None) -> tuple[int, str]:
    command = [*launch_command(config), ROOT / "tests/launch/train.py", base, output, way]
    return run(command, output / "output.txt")


def result(output: Path) -> tuple[dict, dict]:
    facts = json.loads((output / "launch.json").read_text())
    return facts, load_file(next((output / "model").glob("*model.safetensors")))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    # ZeRO-3 divides matrices of more than 100,000 numbers (`stage3_param_persistence_threshold`).
    sizes = {"hidden_size": 64, "intermediate_size": 2048, "vocab_size": 2000}
    return save_backbone(tmp_path_factory.mktemp("base"), **sizes)


@pytest.fixture(scope="module", params=WAYS)
def alone(request, base, tmp_path_factory) -> tuple[str, dict, dict]:
    """The same steps in one process."""
    output = tmp_path_factory.mktemp("one")
    status, printed = train(output, base, request.param)
    assert status == 0, printed[-3000:]
    return request.param, *result(output)


@pytest.mark.parametrize("config", LAUNCHES)
def test_a_launch_takes_the_steps_of_one_process(config, alone, base, tmp_path):
    if config.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -c constraints.txt -e '.[deepspeed]'")
    way, expected_facts, expected = alone
    status, printed = train(tmp_path, base, way, config)
    if (config, way) == REFUSED:
        assert status != 0
        assert "new_tokens: trainable_token_indices does not train under ZeRO-3" in printed
        return
    assert status == 0, printed[-3000:]
    facts, weights = result(tmp_path)
    assert (facts["world_size"], expected_facts["world_size"]) == (2, 1)
    assert (facts["distributed_type"], facts["zero_stage"]) == LAUNCHES[config]
    assert facts["losses"] == pytest.approx(expected_facts["losses"], abs=2e-3)
    assert set(weights) == set(expected)
    for name, values in expected.items():
        assert_close(weights[name], values, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
