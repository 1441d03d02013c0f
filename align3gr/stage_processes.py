"""Stages that a study runs: in processes of their own, on links to stages that are finished elsewhere."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align3gr.pipeline import option_words


def call(command: Sequence[str]) -> int:
    """Runs a command and waits for it; a SIGTERM ends the command first, then this process.

    An interrupt from a keyboard reaches both by itself. A signal that is sent to this process alone would leave a
    training behind that nobody sees, and that works on the folder which the next one goes on with.

    Returns:
        The exit status.
    """
    if threading.current_thread() is not threading.main_thread():  # others cannot take signals
        return subprocess.call(command)
    child: subprocess.Popen[bytes] | None = None
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        if child is not None:
            child.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with subprocess.Popen(command) as child:
            if stopped:  # while it started
                child.terminate()
            status = child.wait()
    except BaseException:  # an interrupt that the command did not hear, or not yet
        if child is not None:
            child.terminate()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    return status


def run_stage(
    name: str,
    config: str | Path,
    run_dir: str | Path,
    options: Mapping[str, Any],
    accelerate_config: str | None = None,
) -> int:
    """Runs a stage as a person would, `align3gr NAME --config CONFIG --run_dir RUN_DIR ...`, and waits for it.

    Args:
        name: of the stage.
        config: its YAML file.
        run_dir: folder of the run.
        options: that differ from the file; the seed among them.
        accelerate_config: launches it through accelerate with this.

    Returns:
        The exit status; what the stage said stands on the terminal.
    """
    launcher = [] if accelerate_config is None else ["--accelerate_config", accelerate_config]
    words = ["--config", str(config), "--run_dir", str(run_dir), *option_words(options)]
    return call([sys.executable, "-m", "align3gr.cli", name, *launcher, *words])


def link_stage(target: Path, source: Path) -> None:
    """A link to the folder of a finished stage, relative, so that both can be moved together; a link is replaced."""
    target.unlink(missing_ok=True)
    target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()), target_is_directory=True)
