"""Taking up an interrupted training: the last whole checkpoint, and its weights."""

import json
import logging
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from peft import load_peft_weights, set_peft_model_state_dict

logger = logging.getLogger(__name__)


def last_checkpoint(folder: str | Path) -> tuple[Path | None, dict[str, Any]]:
    """The latest complete checkpoint of a Trainer and its state; the file of the state is written last."""
    found = Path(folder).glob("checkpoint-*")
    for checkpoint in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            return checkpoint, json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning("%s is incomplete, an earlier checkpoint is used", checkpoint)
    return None, {}


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
