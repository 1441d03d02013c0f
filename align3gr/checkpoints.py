"""Taking up an interrupted training: the last whole checkpoint, and its weights."""

import json
import logging
import re
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from accelerate.utils import is_peft_model
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from align3gr.errors import InputError

logger = logging.getLogger(__name__)

# What says in a model's config which shapes its weights have: of causal LMs, and of T5.
_LLAMA = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SHAPE = (*_LLAMA, "num_key_value_heads", "head_dim", "d_model", "d_ff", "num_layers", "num_heads")
_ADAPTER = ("r", "lora_alpha", "target_modules", "modules_to_save")


def last_checkpoint(folder: str | Path) -> tuple[Path | None, dict[str, Any]]:
    """The latest complete checkpoint of a Trainer and its state; the file of the state is written last.

    One with a file that is not there, or was cut off by a full disk or a broken copy, is passed over with a warning. A
    Trainer by itself goes on without the states of optimizer, schedule and random numbers where their files are not
    there, to other weights and without a word; so does one that was told to save weights alone.
    """
    found = (path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[1].isdigit())
    for checkpoint in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        state = _read_json(checkpoint / "trainer_state.json")
        if not {"global_step", "max_steps"} <= state.keys():
            logger.warning("%s is incomplete, an earlier checkpoint is used", checkpoint)
            continue
        if missing := _missing(checkpoint, state):
            logger.warning("%s has no %s, an earlier checkpoint is used", checkpoint, missing)
            continue
        damaged = next((path for path in sorted(checkpoint.rglob("*")) if not _is_whole(path)), None)
        if damaged is None:
            return checkpoint, state
        logger.warning("%s is damaged, an earlier checkpoint is used", damaged)
    return None, {}


def _read_json(path: Path) -> dict[str, Any]:
    """A dictionary; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _missing(checkpoint: Path, state: dict[str, Any]) -> str | None:
    """What a training needs to go on and the checkpoint lacks; DeepSpeed and FSDP keep it under names of their own."""
    names = [path.name for path in checkpoint.iterdir()]
    wanted = {"weights": r"(adapter_)?model.*\.safetensors|pytorch_model.*|global_step\d+"}
    if not is_finished(state):
        wanted |= {
            "state of the optimizer": r"optimizer.*|global_step\d+",
            "schedule": r"scheduler\.pt|global_step\d+",
        }
        wanted |= {"state of the random numbers": r"rng_state.*\.pth"}
    shards = _read_json(checkpoint / "model.safetensors.index.json").get("weight_map", {}).values()
    wanted |= {shard: re.escape(shard) for shard in shards}
    return next((what for what, name in wanted.items() if not any(re.fullmatch(name, each) for each in names)), None)


def _is_whole(path: Path) -> bool:
    """Whether a file of tensors has its end, and one of settings can be read; contents of tensors are not read."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except SafetensorError:
            return False
    if path.name in ("config.json", "adapter_config.json"):
        return bool(_read_json(path))
    return path.suffix not in (".pt", ".pth") or is_zipfile(path)


def is_finished(state: dict[str, Any]) -> bool:
    """Whether a checkpoint's state is that of the last step.

    The Trainer would take one step too many when it resumes from there (transformers 5.23): take the weights instead.
    """
    return bool(state) and state["global_step"] >= state["max_steps"]


def check_checkpoint(checkpoint: Path, state: dict[str, Any], model: Any, args: Any) -> None:
    """Refuses a checkpoint that a training with other settings left.

    The Trainer would go on from it at the rate that the checkpoint has, whatever is asked for now, or end in a list of
    shapes. A stage's manifest tells such runs apart; this is for folders that were copied or named by hand.

    Args:
        checkpoint: folder of the checkpoint.
        state: its state.
        model: what is to be trained, unwrapped.
        args: the `TrainingArguments` of now.

    Raises:
        InputError: the checkpoint is that of another model, adapter, learning rate or batch size.
    """
    now = _numbers(
        model.peft_config[model.active_adapter].to_dict() if is_peft_model(model) else model.config.to_dict()
    )
    path = checkpoint / ("adapter_config.json" if is_peft_model(model) else "config.json")
    before = _numbers(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else now
    scheduler = checkpoint / "scheduler.pt"
    if scheduler.is_file():
        rates = torch.load(scheduler, map_location="cpu", weights_only=True).get("base_lrs", [args.learning_rate])
        before, now = before | {"learning_rate": rates[0]}, now | {"learning_rate": args.learning_rate}
    if state.get("train_batch_size") and not args.auto_find_batch_size:
        before |= {"per_device_train_batch_size": state["train_batch_size"]}
        now |= {"per_device_train_batch_size": args.train_batch_size}
    for name in before:
        if before[name] != now.get(name):
            raise InputError(
                f"{checkpoint}: {name}: the checkpoint has {before[name]}, this training {now.get(name)}; train with "
                "the settings of the checkpoint, or remove it"
            )


def _numbers(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config makes a checkpoint fit, comparable."""
    values = {name: config[name] for name in (*_SHAPE, *_ADAPTER) if config.get(name) is not None}
    return {name: sorted(value) if isinstance(value, list | set) else value for name, value in values.items()}


def restore_weights(model: Any, folder: str | Path) -> None:
    """Loads the weights of a saved model or adapter into the model at hand."""
    if is_peft_model(model):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    else:
        model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())


class LogWithCheckpoint(TrainerCallback):
    """Writes a line of the log before each checkpoint.

    A Trainer's line is a mean since the line before, and what it has summed up is not in the checkpoint (transformers
    5.23): without this the log of a training that was interrupted would have another number at the first line behind.
    """

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


def take_up(trainer: Any) -> list[dict[str, Any]]:
    """Trains, from the last checkpoint if there is one, and gives the log; the model ends with the weights to keep.

    These are the best ones where the trainer loads the best model at the end.

    Raises:
        InputError: the checkpoint is that of another training.
    """
    checkpoint, state = last_checkpoint(trainer.args.output_dir)
    if checkpoint:
        check_checkpoint(checkpoint, state, trainer.accelerator.unwrap_model(trainer.model), trainer.args)
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
