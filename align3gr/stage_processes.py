"""Stages that a study runs: in processes of their own, on links to stages that are finished elsewhere."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align3gr.pipeline import option_words


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
    return subprocess.call([sys.executable, "-m", "align3gr.cli", name, *launcher, *words], env=os.environ)


def link_stage(target: Path, source: Path) -> None:
    """A link to the folder of a finished stage, relative, so that both can be moved together; a link is replaced."""
    target.unlink(missing_ok=True)
    target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()), target_is_directory=True)
