"""Starts what a person would type; nothing that is started outlives its test, and nothing can hang it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.conftest import ROOT

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file"]


def launch_command(config: str | None) -> list[str]:
    """What stands before the script: a launch of two processes, or Python alone."""
    return [sys.executable] if config is None else [*LAUNCH, f"{ROOT}/accelerate_configs/{config}.yaml"]


def start(command: Sequence[object], output: Path, **variables: str) -> subprocess.Popen:
    """In a session of its own, printing into a file: a pipe that nobody reads would stop the processes."""
    with output.open("w") as file:
        return subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables,
            start_new_session=True,
        )


def kill(process: subprocess.Popen) -> None:
    """The process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command: Sequence[object], output: Path, seconds: float = 420, **variables: str) -> tuple[int, str]:
    """The exit status and all that was printed, which stays in `output`; a run that takes too long is killed."""
    process = start(command, output, **variables)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no end after {seconds} s:\n{output.read_text()[-3000:]}") from None
    finally:
        kill(process)
    return process.returncode, output.read_text()


def kill_when(seen: Callable[[], object], process: subprocess.Popen, seconds: float = 240) -> None:
    """Kills the process, with all that it has started, as soon as `seen()` is true."""
    until = time.monotonic() + seconds
    try:
        while not seen():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until, f"nothing to be seen after {seconds} s"
            time.sleep(0.005)
    finally:
        kill(process)
