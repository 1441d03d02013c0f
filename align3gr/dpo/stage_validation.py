"""Validation inside a stage: a stage that does harm is stopped before its end."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

# Under these names a validation stands in the trainer's log, and so in its checkpoints.
VALIDATION = "validation"
STOPPED = "validation_stopped"


class StageValidation(TrainerCallback):
    """Validates every few steps and stops the stage when it has fallen too far below its start.

    What was found is kept in the trainer's log. A checkpoint carries it, so a run that goes on from one knows what was
    validated before and whether the stage was stopped.

    Args:
        stage: Name of the stage.
        validate: Gives the metric of the policy as it is now, higher is better; called in every process.
        every: Steps between validations; none at the last step, which the curriculum validates.
        start: The metric at the start of the stage.
        tolerance: How far below `start` it may fall.
    """

    def __init__(self, stage: str, validate: Callable[[], float], every: int, start: float, tolerance: float):
        self.stage, self.validate, self.every = stage, validate, every
        self.start, self.tolerance = start, tolerance

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every or state.global_step >= state.max_steps:
            return
        value = self.validate()
        stopped = value < self.start - self.tolerance
        state.log_history.append({"step": state.global_step, VALIDATION: value, STOPPED: stopped})
        logger.info("stage %s, step %d: %.4f, at its start %.4f", self.stage, state.global_step, value, self.start)
        if stopped:
            logger.warning(
                "stage %s: stopped at step %d of %d, %.4f is more than %g below %.4f",
                self.stage,
                state.global_step,
                state.max_steps,
                value,
                self.tolerance,
                self.start,
            )
            control.should_training_stop = True


def validations(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Step and metric of each validation in a trainer's log."""
    return [{"step": entry["step"], "value": entry[VALIDATION]} for entry in log_history if VALIDATION in entry]


def stopped_at(log_history: Sequence[dict[str, Any]]) -> int | None:
    """The step at which a validation stopped the stage, or None."""
    return next((int(entry["step"]) for entry in log_history if entry.get(STOPPED)), None)
