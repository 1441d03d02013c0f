"""What a curriculum has on disk: its record, and the policy that is best so far."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from align3gr.checkpoints import restore_weights
from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

RECORD_FILE = "curriculum.json"
LOG_FILE = "log.json"
# Settings of the trainer that a continued run must share with the one it continues.
_FIXED_ARGS = (
    "seed",
    "beta",
    "num_rejected",
    "preference_coefficient",
    "sft_coefficient",
    "length_normalization",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "bf16",
)

Evaluate = Callable[[Any], dict[str, float]]


class CurriculumRun:
    """State of a run: the record on disk, and the policy in memory, which between stages is the best so far."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        args: SoftmaxDPOConfig,
        metric: str,
        evaluate: Evaluate,
        keep_policies: bool = False,
    ):
        self.model, self.tokenizer, self.folder, self.args = model, tokenizer, folder, args
        self.metric, self._evaluate = metric, evaluate
        self.keep_policies = keep_policies
        self.process = PartialState()
        self.record: dict[str, Any] = {}
        self.divided_by: Any = None  # the DeepSpeed configuration under which stages train

    def begin(self, settings: dict[str, Any]) -> None:
        """Start a record with the metrics of the policy as given, or take up the one in the folder."""
        arguments = self.args.to_dict()
        settings = json.loads(json.dumps(settings | {"args": {name: arguments[name] for name in _FIXED_ARGS}}))
        path = self.folder / RECORD_FILE
        if path.is_file():
            self.record = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name, value in settings.items() if self.record["settings"].get(name) != value]
            if changed:
                raise InputError(
                    f"{path}: holds a run with other {', '.join(changed)}; choose another output_dir, or remove it"
                )
            restore_weights(self.model, self._best_policy())
            return
        self._save(self.folder / "initial" / "policy")
        metrics = self.metrics()
        self.record = {"settings": settings, "initial": {"metrics": metrics}, "stages": [], "best": "initial"}
        self.record |= {"best_value": metrics[self.metric], "finished": False}
        self._write()

    def metrics(self) -> dict[str, float]:
        """Validation metrics of the policy, those of the first process everywhere."""
        training = self.model.training
        self.model.eval()
        metrics = broadcast_object_list([self._evaluate(self.model)])[0]
        self.model.train(training)
        if self.metric not in metrics:
            raise InputError(f"metric={self.metric!r} is not among those of evaluate: {', '.join(sorted(metrics))}")
        return {name: float(value) for name, value in metrics.items()}

    def value(self) -> float:
        """The metric that decides, of the policy as it is now."""
        return self.metrics()[self.metric]

    def keep_losses(self, folder: Path, log: Sequence[Mapping[str, Any]]) -> None:
        """Writes the losses of a stage into its `log.json`: the trainer's own log goes with its checkpoints."""
        if self.process.is_main_process:
            lines = [{name: line[name] for name in ("step", "epoch", "loss")} for line in log if "loss" in line]
            whole_file(folder / LOG_FILE, json.dumps(lines, indent=1) + "\n")

    def decide(self, folder: Path, entry: dict[str, Any], started: float) -> None:
        """Evaluate the trained policy, and keep it or go back to the best one."""
        entry["metrics"] = self.metrics()
        value, best = entry["metrics"][self.metric], self.record["best_value"]
        kept = value > best  # the same value is no evidence, and the earlier policy is nearer to its data
        entry |= {"decision": "kept" if kept else "rolled back", "seconds": time.perf_counter() - started}
        if self.process.is_main_process:
            logger.info(
                "stage %s: %s %.4f, best before %.4f: %s", entry["name"], self.metric, value, best, entry["decision"]
            )
        self._save(folder / "policy")
        if kept:
            self.record |= {"best": folder.name, "best_value": value}
        else:
            restore_weights(self.model, self._best_policy())
        self.record_stage(entry)

    def record_stage(self, entry: dict[str, Any]) -> None:
        self.record["stages"].append(entry)
        self._write()
        self._sweep()

    def finish(self) -> dict[str, Any]:
        """Put the best policy into `best` and drop the working copies."""
        if not self.record["finished"]:
            self._save(self.folder / "best")
            self.record["finished"] = True
            self._write()
        self._sweep()
        return self.record

    def _sweep(self) -> None:
        """Removes what no decided stage needs again: its checkpoints, and policies that are neither best nor kept."""
        if not self.process.is_main_process:
            return
        for number, stage in enumerate(self.record["stages"]):
            shutil.rmtree(self.folder / f"{number}-{stage['name']}" / "trainer", ignore_errors=True)
        for policy in self.folder.glob("*/policy"):
            wanted = self.keep_policies and policy.parent.name != "initial"
            if not wanted and policy != self._best_policy():
                shutil.rmtree(policy)

    def _best_policy(self) -> Path:
        return self.folder / "best" if self.record["finished"] else self.folder / self.record["best"] / "policy"

    def _save(self, folder: Path) -> None:
        """Write policy and tokenizer; the folder appears whole or not at all."""
        if self.process.is_main_process:
            with whole_folder(folder) as partial:
                self.model.save_pretrained(partial)
                self.tokenizer.save_pretrained(partial)
        self.process.wait_for_everyone()

    def _write(self) -> None:
        if self.process.is_main_process:
            whole_file(self.folder / RECORD_FILE, json.dumps(self.record, indent=2) + "\n")
        self.process.wait_for_everyone()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which takes its name (and the place of an older one) only when all is written."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed here
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def whole_file(path: Path, text: str) -> None:
    """Writes a file that is there whole or, after a kill, as it was before."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
