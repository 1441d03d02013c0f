"""Taking up an interrupted training: the last whole checkpoint, and its weights."""

import json
import logging
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from accelerate.utils import is_peft_model
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)


def last_checkpoint(folder: str | Path) -> tuple[Path | None, dict[str, Any]]:
    """The latest complete checkpoint of a Trainer and its state; the file of the state is written last.

    A checkpoint with a file that was cut off, by a full disk or a broken copy, is passed over with a warning.
    """
    found = Path(folder).glob("checkpoint-*")
    for checkpoint in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning("%s is incomplete, an earlier checkpoint is used", checkpoint)
            continue
        damaged = next((path for path in sorted(checkpoint.rglob("*")) if not _is_whole(path)), None)
        if damaged is None:
            return checkpoint, state
        logger.warning("%s is damaged, an earlier checkpoint is used", damaged)
    return None, {}


def _is_whole(path: Path) -> bool:
    """Whether a file of tensors has its end; contents are not read."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except SafetensorError:
            return False
    return path.suffix not in (".pt", ".pth") or is_zipfile(path)


def is_finished(state: dict[str, Any]) -> bool:
    """Whether a checkpoint's state is that of the last step.

    The Trainer would take one step too many when it resumes from there (transformers 5.23): take the weights instead.
    """
    return bool(state) and state["global_step"] >= state["max_steps"]


def restore_weights(model: Any, folder: str | Path) -> None:
    """Loads the weights of a saved model or adapter into the model at hand."""
    if is_peft_model(model):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    else:
        model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())


def take_up(trainer: Any) -> list[dict[str, Any]]:
    """Trains, from the last checkpoint if there is one, and gives the log; the model ends with the weights to keep.

    These are the best ones where the trainer loads the best model at the end.
    """
    checkpoint, state = last_checkpoint(trainer.args.output_dir)
    if checkpoint and (is_finished(state) or _stopped_early(state)):
        best = state.get("best_model_checkpoint") if trainer.args.load_best_model_at_end else None
        restore_weights(trainer.accelerator.unwrap_model(trainer.model), best or checkpoint)
        return state["log_history"]
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.state.log_history


def _stopped_early(state: dict[str, Any]) -> bool:
    callback = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    if not isinstance(callback, dict):
        return False
    counter = callback["attributes"]["early_stopping_patience_counter"]
    return bool(counter >= callback["args"]["early_stopping_patience"])


def gathered_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The weights of a model that ZeRO-3 or FSDP has divided, on the first process; None where each holds them all.

    All processes must call it.
    """
    if trainer.is_deepspeed_enabled and trainer.accelerator.deepspeed_config["zero_optimization"]["stage"] == 3:
        return trainer.accelerator.get_state_dict(trainer.deepspeed)
    if trainer.is_fsdp_enabled:
        return trainer.accelerator.get_state_dict(trainer.model)
    return None
