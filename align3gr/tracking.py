"""What a training says while it runs: a line of the log, and its curves in TensorBoard, Trackio or Weights & Biases.

The stages of a run stand together as one group, each with curves of its own under the same names (`train/loss`,
`eval/recall@10`), the parts of a stage (phases of the token level, easy to hard) one behind the other on one axis.
"""

import importlib.metadata
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from align3gr.errors import InputError
from align3gr.processes import launched
from align3gr.progress import SECONDS_BETWEEN_LINES, time_left

logger = logging.getLogger(__name__)

# Those that are grouped; the others of `report_to` are left to the Trainer.
TRACKERS = ("tensorboard", "trackio", "wandb")
FOLDER = "tracking"  # of the run: event files of TensorBoard, what wandb keeps on disk
PROJECT = "align3gr"
_TRAINERS_PROJECT = "huggingface"  # default of `TrainingArguments.project`
_ID_FILE = "tracking.json"


def check_report_to(names: Iterable[str]) -> None:
    """Refuses trackers that do not exist or are not installed, before anything is trained.

    Raises:
        InputError: it names the first of them.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(
                f"report_to: got '{name}', choose from none, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
            )
        if name not in get_available_reporting_integrations() or not _installed(name):
            raise InputError(f"report_to: {name} is not installed; pip install {name}, or leave it out")


def _installed(name: str) -> bool:
    """What counts as available to transformers, tensorboardX for one, is not always the package that is opened."""
    try:
        return name not in TRACKERS or bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


@dataclass
class ReportArguments:
    """`report_to` of a stage whose options are not `TrainingArguments`.

    Raises:
        InputError: it names another tracker than those that are grouped.
    """

    report_to: list[str] = field(
        default_factory=list, metadata={"help": f"Trackers of the curves: none, or some of {', '.join(TRACKERS)}."}
    )

    def __post_init__(self) -> None:
        given = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        self.report_to = [name for name in given if name != "none"]
        if unknown := set(self.report_to) - set(TRACKERS):
            raise InputError(f"report_to: got '{min(unknown)}', this stage takes none, {', '.join(TRACKERS)}")


class StageTracking(TrainerCallback):
    """Sends the log of a stage's trainers to the trackers; nothing is opened before the first line.

    Of a launch of several processes the first one alone sends. An interrupted stage goes on in the same curves.

    Args:
        names: some of `TRACKERS`.
        run_dir: folder of the run.
        stage: name of the stage, that of its curves.
        folder: where the stage works now.
        resumed: whether it goes on where an interrupted run stopped.
        settings: what the trackers are to show as the stage's configuration.
        group: name of the run; that of its folder if None.
        project: what wandb and Trackio collect runs in. The variable `WANDB_PROJECT` wins over the default.
        trackio: further options of `trackio.init`.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_dir: str | Path,
        stage: str,
        folder: Path,
        resumed: bool = False,
        settings: Mapping[str, Any] | None = None,
        group: str | None = None,
        project: str = PROJECT,
        trackio: Mapping[str, Any] | None = None,
    ) -> None:
        self.names = list(names) if names and launched().is_main_process else []
        self.run_dir, self.stage, self.folder, self.resumed = Path(run_dir), stage, folder, resumed
        self.settings = dict(settings or {})
        self.group = group or self.run_dir.resolve().name
        self.project, self.trackio = project, dict(trackio or {})
        self.part = self.first_step = self._last_step = 0
        self._trackers: dict[str, Any] | None = None

    def begin_part(self, part: int, first_step: int | None = None) -> None:
        """What is logged from now on belongs to this part, from 0, and its steps count from `first_step`.

        Args:
            part: number of the part.
            first_step: steps of the parts before it; those that were logged if None.
        """
        self.part = part
        self.first_step = self._last_step = self._last_step if first_step is None else first_step

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Sends numbers under their names in a Trainer's log, at a step of the part."""
        if not self.names:
            return
        self._last_step = self.first_step + step
        if self._trackers is None:
            self._trackers = self._open(self._last_step)
        numbers = {curve_name(name): value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers.values():
            tracker.log(numbers | {"train/part": self.part}, step=self._last_step)

    def log_validation(self, metrics: Mapping[str, float], step: int) -> None:
        """Sends metrics of the policy between two trainings, such as `recall@10`."""
        if self.names and self._trackers is None:  # of a part whose last step was logged before it was interrupted
            self._trackers = self._open(self.first_step + step + 1)
        self.log({f"eval_{name}": value for name, value in metrics.items()}, step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.log(logs or {}, state.global_step)

    def close(self) -> None:
        """Ends the curves; the last thing that a stage does."""
        for tracker in (self._trackers or {}).values():
            tracker.finish()
        self._trackers = None
        (self.folder / _ID_FILE).unlink(missing_ok=True)

    def _open(self, first: int) -> dict[str, Any]:
        """Starts the trackers of accelerate, each with its own way of saying which curves belong together.

        Args:
            first: the first step that is logged; what an interrupted run logged from there on is logged again.
        """
        from accelerate import tracking

        home = self.run_dir / FOLDER
        home.mkdir(parents=True, exist_ok=True)
        name = f"{self.group}/{self.stage}"
        opened: dict[str, Any] = {}
        if "tensorboard" in self.names:
            if not self.resumed:  # curves of an earlier training of this stage, which is replaced
                shutil.rmtree(home / self.stage, ignore_errors=True)
            again = first if self.resumed else None
            opened["tensorboard"] = tracking.TensorBoardTracker(self.stage, home, purge_step=again)
        if "trackio" in self.names:
            # A run is taken up by its name, so that of a new training of the same stage has to be another one.
            options = {"name": f"{name}-{self._id()[:4]}", "group": self.group, "resume": "allow", "embed": False}
            opened["trackio"] = tracking.TrackioTracker(self.project, **options, **self.trackio)
        if "wandb" in self.names:
            project = os.environ.get("WANDB_PROJECT", self.project)
            options = {"name": name, "group": self.group, "job_type": self.stage, "id": self._id(), "resume": "allow"}
            options |= {"dir": os.environ.get("WANDB_DIR", str(home))}
            opened["wandb"] = tracking.WandBTracker(project, **options)
        for kind, tracker in opened.items():
            tracker.start()
            if kind == "tensorboard":  # its own way makes another folder, which would stand there as a run
                tracker.tracker.add_text("settings", f"```\n{json.dumps(self.settings, indent=1, default=str)}\n```")
            else:
                tracker.store_init_configuration(json.loads(json.dumps(self.settings, default=str)))
        return opened

    def _id(self) -> str:
        """Tells this training from others of the same stage; kept in its folder for as long as it can go on."""
        path = self.folder / _ID_FILE
        if not path.is_file():
            path.write_text(json.dumps({"id": uuid.uuid4().hex[:16]}) + "\n", encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))["id"]


def curve_name(name: str) -> str:
    """The name of a curve for a name in a Trainer's log.

    >>> [curve_name(name) for name in ("loss", "eval_recall@10")]
    ['train/loss', 'eval/recall@10']
    """
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def track_stage(training: Any, run_dir: str | Path, stage: Any, settings: Mapping[str, Any]) -> StageTracking:
    """The tracking of a stage whose options are `TrainingArguments`; other trackers stay in their `report_to`.

    Args:
        training: `report_to`, `run_name`, `project`, and `trackio_space_id`, `trackio_bucket_id` and
            `hub_private_repo` for Trackio.
        run_dir: folder of the run.
        stage: the `align3gr.pipeline.Stage` that is being worked on.
        settings: of the stage.
    """
    ours = [name for name in training.report_to if name in TRACKERS]
    training.report_to = [name for name in training.report_to if name not in TRACKERS]
    given = {
        "space_id": training.trackio_space_id,
        "bucket_id": training.trackio_bucket_id,
        "private": training.hub_private_repo,
    }
    return StageTracking(
        ours,
        run_dir,
        stage.name,
        stage.folder,
        stage.resumed,
        settings,
        group=training.run_name,
        project=PROJECT if training.project == _TRAINERS_PROJECT else training.project,
        trackio={name: value for name, value in given.items() if value is not None},
    )


class ProgressLines(TrainerCallback):
    """A line of the log with step, loss and time left: every half minute, at each evaluation and at the end.

    Args:
        name: of the training.
    """

    def __init__(self, name: str) -> None:
        self.name, self._loss = name, ""
        self._started = self._written = time.monotonic()
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = self._written = time.monotonic()
        self._first = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._loss = f", loss {float(logs['loss']):.4f}"
        if judged := [f"{name.removeprefix('eval_')} {logs[name]:.4f}" for name in logs if name.startswith("eval_")]:
            self._write(state, f", {', '.join(judged[:3])}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._write(state, self._loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state, self._loss)

    def _write(self, state: Any, what: str) -> None:
        self._written = time.monotonic()
        missing = state.max_steps - state.global_step
        left = time_left(self._written - self._started, state.global_step - self._first, missing) if missing else ""
        if state.is_world_process_zero:
            logger.info(
                "%s: step %s of %s%s%s", self.name, f"{state.global_step:,}", f"{state.max_steps:,}", what, left
            )


def follow(trainer: Any, name: str, tracking: StageTracking | None = None) -> None:
    """Adds to a Trainer what it says while it trains; where it has no bar, lines take the place of its prints."""
    if trainer.args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressLines(name))
    if tracking is not None:
        trainer.add_callback(tracking)
