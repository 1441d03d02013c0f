"""Launch settings as accelerate itself reads them: what cannot run without GPUs is at least understood as meant."""

import os
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import get_free_port, prepare_multi_gpu_env

from align3gr.cli import _accelerate
from align3gr.errors import InputError
from tests.conftest import ROOT

# Name: type, processes, machines, precision.
EXPECTED = {
    "cpu_ddp": (DistributedType.MULTI_GPU, 2, 1, "no"),
    "single_gpu": (DistributedType.NO, 1, 1, "bf16"),
    "ddp": (DistributedType.MULTI_GPU, 4, 1, "bf16"),
    "fsdp2": (DistributedType.FSDP, 4, 1, "bf16"),
    "zero2": (DistributedType.DEEPSPEED, 4, 1, None),
    "zero3": (DistributedType.DEEPSPEED, 4, 1, None),
    "multi_node": (DistributedType.MULTI_GPU, 8, 2, "bf16"),
}


def launch_arguments(name: str, *words: str):
    """What `accelerate launch` makes of a configuration and these words."""
    file = str(ROOT / "accelerate_configs" / f"{name}.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", file, *words, "script.py"])
    return _validate_launch_command(arguments)[0]


def test_every_configuration_is_listed_here_and_in_the_docs():
    names = {path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    page = (ROOT / "docs" / "launching.md").read_text()
    assert names == set(EXPECTED)
    assert [name for name in EXPECTED if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_what_is_meant(name):
    file = ROOT / "accelerate_configs" / f"{name}.yaml"
    config = load_config_from_file(str(file))  # refuses unknown keys
    read = (config.distributed_type, config.num_processes, config.num_machines, config.mixed_precision)
    assert read == EXPECTED[name]
    arguments = launch_arguments(name)
    kind, processes, machines, _ = EXPECTED[name]
    assert (arguments.num_processes, arguments.num_machines or 1) == (processes, machines)
    # The launcher that accelerate takes: none of them is the simple one, which starts one process, but for one GPU.
    launchers = (arguments.multi_gpu, arguments.use_deepspeed, arguments.use_fsdp)
    expected = [DistributedType.MULTI_GPU, DistributedType.DEEPSPEED, DistributedType.FSDP]
    assert launchers == tuple(kind == each for each in expected)
    # MULTI_CPU runs one process; FSDP and DeepSpeed with use_cpu are plain DDP. Neither says so.
    assert config.use_cpu is (name == "cpu_ddp")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_name_finds_its_file(name):
    assert _accelerate(name)[-2:] == ["--config_file", str(ROOT / "accelerate_configs" / f"{name}.yaml")]


def test_an_unknown_name_lists_all():
    known = ", ".join(sorted(EXPECTED))
    with pytest.raises(InputError, match=f"zero9: no such file; built in are {known}"):
        _accelerate("zero9")


def test_every_option_of_a_plugin_is_one_of_the_launcher():
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for name, plugin in (("fsdp2", "fsdp_config"), ("zero2", "deepspeed_config"), ("zero3", "deepspeed_config")):
        options = yaml.safe_load((ROOT / "accelerate_configs" / f"{name}.yaml").read_text())[plugin]
        # A misspelt one would be passed on and never read.
        assert [option for option in options if option not in known] == []


def test_fsdp_of_version_2_divides_and_saves_whole_models(monkeypatch):
    environment = prepare_multi_gpu_env(launch_arguments("fsdp2"))
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    for option, value in environment.items():
        if option.startswith("FSDP_"):
            monkeypatch.setenv(option, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy"  # CPUOffloadPolicy is the one that offloads


@pytest.mark.parametrize("rank", [0, 1])
def test_two_machines_meet_at_the_first_one(rank):
    words = ("--machine_rank", str(rank), "--main_process_ip", "127.0.0.1")
    arguments = launch_arguments("multi_node", *words)
    environment = prepare_multi_gpu_env(arguments)
    assert (arguments.nproc_per_node, arguments.nnodes, arguments.node_rank) == ("4", "2", rank)
    # accelerate 1.15 takes same_network from the command line only; both ways end at this address.
    assert arguments.rdzv_endpoint == "127.0.0.1:29500" and arguments.rdzv_backend == "static"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.long
def test_launches_of_two_machines_join(tmp_path):
    script = tmp_path / "who.py"
    script.write_text(
        "from align3gr.processes import launched, leave\n"
        "process = launched()\n"
        "process.wait_for_everyone()\n"
        "print('joined', process.process_index, process.num_processes)\n"
        "leave()\n"
    )
    file = str(ROOT / "accelerate_configs" / "multi_node.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2"]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(get_free_port())]
    machines = [
        subprocess.Popen(
            [*command, "--machine_rank", rank, str(script)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    ]
    said = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert [f"joined {rank} 2" in said[rank] for rank in (0, 1)] == [True, True]
