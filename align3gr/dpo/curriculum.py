"""Progressive preference training, easy to hard: one trainer a stage, the best policy kept.

The reference of a stage is the policy it starts from: the end of the best stage before it. A stage that lowers the
validation metric is rolled back. What has been decided stands in `curriculum.json`, written in one go when a stage is
done; everything else can be made again from it. So a run that was killed anywhere and started again ends with the same
weights: finished stages are not run again, an unfinished one goes on with its rows and its last checkpoint.

    <output_dir>/curriculum.json     settings, metrics and decision of every stage
                 0-easy/rows/        the stage's preference data (datasets) with its reference, and statistics
                 0-easy/trainer/     checkpoints of its trainer, until the stage is decided
                 0-easy/policy/      what the stage ended with, if all policies are kept
                 best/               the kept policy and tokenizer, once all stages are done
"""

import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ExportableState

from align3gr.checkpoints import LogWithCheckpoint, check_checkpoint, is_finished, last_checkpoint, restore_weights
from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.dpo.curriculum_run import CurriculumRun, Evaluate, whole_file, whole_folder
from align3gr.dpo.curriculum_stage import CurriculumStage, check_names
from align3gr.dpo.preference_rows import REFERENCE_COLUMNS
from align3gr.dpo.self_play import PreferenceRows
from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
from align3gr.dpo.softmax_dpo_trainer import SoftmaxDPOTrainer
from align3gr.dpo.stage_validation import StageValidation, stopped_at, validations
from align3gr.dpo.undivided_policy import divided, is_zero3, take_over
from align3gr.errors import InputError
from align3gr.tracking import StageTracking, follow
from align3gr.undivided import undivided

logger = logging.getLogger(__name__)

_STATISTICS_FILE = "statistics.json"
_DATASET_FOLDER = "dataset"

MakeRows = Callable[[Any, CurriculumStage, int], PreferenceRows]


class ProgressiveCurriculum(TrainerCallback, ExportableState):
    """Watches one stage: names it in the log and checks that it starts from its own reference.

    At the first step policy and reference are the same, so the preference loss must be the mean of `log(1 + N)`. A
    stale reference, a wrong adapter or active dropout all show here, and nowhere else.

    Args:
        stage: Name of the stage.
        tolerance: Largest accepted distance of the first loss from that value.

    Raises:
        RuntimeError: (in training) The first loss is further away.
    """

    def __init__(self, stage: str, tolerance: float = 1e-3):
        self.stage = stage
        self.tolerance = tolerance
        self.first_loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.logging_first_step = True  # the check reads the log of the first step
        logger.info("stage %s: %d steps from step %d", self.stage, state.max_steps, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.global_step != 1 or not logs or "preference_loss" not in logs:
            return
        self.first_loss = logs["preference_loss"]
        if not abs(self.first_loss - logs["uniform_loss"]) <= self.tolerance:
            raise RuntimeError(
                f"stage {self.stage}: the first preference loss is {self.first_loss:.4f}, but a policy equal to its "
                f"reference has {logs['uniform_loss']:.4f}; the reference is not the policy at the start of the "
                "stage, or dropout is on"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "args": {"stage": self.stage, "tolerance": self.tolerance},
            "attributes": {"first_loss": self.first_loss},
        }


def run_curriculum(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    stages: Sequence[CurriculumStage],
    make_rows: MakeRows,
    evaluate: Evaluate,
    output_dir: str | Path,
    args: SoftmaxDPOConfig,
    metric: str = "recall@10",
    min_rows: int = 1,
    callbacks: Sequence[TrainerCallback] = (),
    keep_policies: bool = False,
    validate_steps: int | None = None,
    stop_tolerance: float = 0.0,
    likelihood: CatalogueLikelihood | None = None,
    tracking: StageTracking | None = None,
) -> dict[str, Any]:
    """Train through the stages and leave the best policy in `model` and in `<output_dir>/best`.

    Run again on the same folder, it continues. In a launch of several processes all must make the call; `make_rows`
    and `evaluate` are called in every one, what the first one gets is taken, and it alone writes.

    Args:
        model: The fine-tuned policy, plain or with a LoRA adapter; trained in place.
        tokenizer: Saved with the policy.
        stages: In the order of training.
        make_rows: `make_rows(model, stage, seed)` gives the stage's rows and statistics, from the policy as it is at
            the start of the stage. Called once a stage; the rows are kept on disk.
        evaluate: `evaluate(model)` gives validation metrics, higher is better.
        output_dir: Folder of the run.
        args: Common arguments of the stages' trainers; `output_dir` and `seed` are derived from it for each stage.
        metric: The metric of `evaluate` that decides.
        min_rows: A stage with fewer rows is skipped.
        callbacks: Further callbacks for every stage's trainer.
        keep_policies: Keep what each stage ended with, rolled back or not, in `<n>-<name>/policy`.
        validate_steps: Evaluate also inside a stage, each time after so many steps.
        stop_tolerance: A stage is stopped as soon as such an evaluation is further below its start.
        likelihood: Of a model that is normalised over its catalogue (`search.likelihood`).
        tracking: Gets the logs of all stages, one behind the other, and the validation metrics between them.

    Returns:
        The contents of `curriculum.json`.

    Raises:
        InputError: The model is no causal LM, the folder holds a run with other settings, `evaluate` does not give
            `metric`, ZeRO-3 is to be validated inside a stage, or a checkpoint is that of other settings.
        RuntimeError: A stage does not start from its own reference (see `ProgressiveCurriculum`).
    """
    _check_arguments(stages, args)
    if model.config.is_encoder_decoder:
        raise InputError(
            f"start_from: the model is an encoder-decoder ({model.config.model_type}); Softmax-DPO takes causal LMs"
        )
    run = CurriculumRun(model, tokenizer, Path(output_dir), args, metric, evaluate, keep_policies)
    with undivided() as run.divided_by:
        if validate_steps and is_zero3(run.divided_by):
            # What a search gathers of the weights cannot be trained any more: it runs in inference mode.
            raise InputError("validate_steps: a policy that ZeRO-3 divides cannot be validated inside a stage; set 0")
        run.begin(
            {"stages": [asdict(stage) for stage in stages], "metric": metric, "min_rows": min_rows}
            | {"stops": [validate_steps, stop_tolerance] if validate_steps else None}
        )
        if tracking and not tracking.resumed:
            tracking.log_validation(run.record["initial"]["metrics"], 0)
        for number, stage in enumerate(stages[len(run.record["stages"]) :], start=len(run.record["stages"])):
            started = time.perf_counter()
            folder = run.folder / f"{number}-{stage.name}"
            seed = stage_seed(args.seed, number)
            rows, statistics = _stage_rows(folder / "rows", partial(make_rows, model, stage, seed))
            entry: dict[str, Any] = {"name": stage.name, "rows": len(rows), "statistics": statistics}
            if len(rows) < min_rows:
                logger.warning(
                    "stage %s: %d rows are fewer than %d, the stage is skipped", stage.name, len(rows), min_rows
                )
                run.record_stage(entry | {"decision": "skipped"})
                continue
            watched = list(callbacks)
            if validate_steps:
                start = run.record["best_value"]  # of the policy that the stage starts from
                watched.append(StageValidation(stage.name, run.value, validate_steps, start, stop_tolerance))
            if tracking:
                tracking.begin_part(number, sum(entry.get("steps", 0) for entry in run.record["stages"]))
            log = _train(run, stage, folder, seed, rows, watched, likelihood, tracking)
            run.keep_losses(folder, log)
            losses = [line["loss"] for line in log if "loss" in line]
            entry |= {"first_loss": losses[0], "last_loss": losses[-1], "steps": log[-1]["step"]}
            entry["statistics"] = _read_statistics(folder / "rows")  # now with what the reference says
            if validate_steps:
                entry |= {"validations": validations(log), "stopped_at": stopped_at(log)}
            run.decide(folder, entry, started)
            if tracking:
                tracking.log_validation(entry["metrics"], entry["steps"])
        return run.finish()


def stage_seed(seed: int, number: int) -> int:
    """Seed of the stage with this number, from 0, in a run with this seed; `make_rows` gets it.

    Args:
        seed: of the run.
        number: of the stage, from 0.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _check_arguments(stages: Sequence[CurriculumStage], args: SoftmaxDPOConfig) -> None:
    check_names(stages)
    if not args.disable_dropout:
        raise InputError("disable_dropout=False hides whether a stage starts from its own reference; leave it on")
    if args.save_only_model:
        raise InputError("save_only_model=True leaves no optimizer to resume from; leave it off")


def _stage_rows(folder: Path, make: Callable[[], PreferenceRows]) -> tuple[Dataset, dict[str, Any]]:
    """The stage's rows from disk, made first if they are not there; on disk all processes can read their cache."""
    process = PartialState()
    # The first process looks: it may have written the folder before another one gets here.
    if not broadcast_object_list([folder.exists()])[0]:
        rows, statistics = make()
        if process.is_main_process:
            with whole_folder(folder) as unfinished:
                if rows:  # `datasets` does not read an empty dataset back
                    Dataset.from_list(rows).save_to_disk(unfinished / _DATASET_FOLDER)
                (unfinished / _STATISTICS_FILE).write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
        process.wait_for_everyone()
    dataset = folder / _DATASET_FOLDER
    return load_from_disk(dataset) if dataset.exists() else Dataset.from_list([]), _read_statistics(folder)


def _read_statistics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _STATISTICS_FILE).read_text(encoding="utf-8"))


def _record_start(folder: Path, rows: Dataset) -> None:
    """Adds to the stage's statistics how well its policy tells chosen from rejected at the start.

    The reference log-probabilities say it, at no cost: the reference is the policy at the start. It is the measure of
    difficulty, the lower the harder.
    """
    chosen, rejected = (np.asarray(rows[name]) for name in REFERENCE_COLUMNS)
    places = np.arange(rejected.shape[1])
    there = places < np.array([len(completions) for completions in rows["rejected_ids"]])[:, None]  # then padding
    lower = rejected < chosen[:, None]
    statistics = _read_statistics(folder)
    statistics["start_accuracy"] = float(lower[there].mean())
    statistics["start_rank"] = float(1 + (~lower & there).sum() / len(rows))
    if "num_beam" in rows.column_names:  # generated ones stand before the drawn ones
        drawn = there & (places >= np.array(rows["num_beam"])[:, None])
        for name, some in (("beam", there & ~drawn), ("filler", drawn)):
            statistics[f"start_accuracy_{name}"] = float(lower[some].mean()) if some.any() else None
    whole_file(folder / _STATISTICS_FILE, json.dumps(statistics, indent=2) + "\n")


def _train(
    run: CurriculumRun,
    stage: CurriculumStage,
    folder: Path,
    seed: int,
    rows: Dataset,
    callbacks: Sequence[TrainerCallback],
    likelihood: CatalogueLikelihood | None,
    tracking: StageTracking | None,
) -> list[dict[str, Any]]:
    """Train one stage, from its last checkpoint if there is one; gives the trainer's log."""
    args = copy.copy(run.args)
    args.output_dir, args.seed = str(folder / "trainer"), seed
    for name in ("learning_rate", "num_train_epochs", "beta"):
        if getattr(stage, name) is not None:
            setattr(args, name, getattr(stage, name))
    checkpoint, state = last_checkpoint(folder / "trainer")
    if checkpoint:
        check_checkpoint(checkpoint, state, run.model, args)
        if is_finished(state) or stopped_at(state["log_history"]):
            restore_weights(run.model, checkpoint)
            return state["log_history"]
    # Rounding of half precision depends on the padding of a batch, which differs between reference and training.
    watch = ProgressiveCurriculum(stage.name, tolerance=2e-2 if args.bf16 or args.fp16 else 1e-3)
    with divided(run.model, run.divided_by) as policy:
        trainer = SoftmaxDPOTrainer(
            policy,
            args=args,
            train_dataset=rows,
            processing_class=run.tokenizer,
            callbacks=[watch, *callbacks, LogWithCheckpoint()],
            likelihood=likelihood,
        )
        follow(trainer, f"stage {stage.name}", tracking)
        if run.process.is_main_process:
            _record_start(folder / "rows", trainer.train_dataset)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if policy is not run.model:
            take_over(run.model, trainer)
    # Takes the launcher's and the mixed-precision wrappers off, so that the next stage does not wrap them again.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    if trainer.is_deepspeed_enabled:
        # accelerate 1.15 refuses a second trainer with DeepSpeed in one process, and has no public way out.
        AcceleratorState._reset_state()
    return trainer.state.log_history
