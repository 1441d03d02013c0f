"""`align3gr estimate`: options, and the figures as JSON or as tables."""

import argparse
from dataclasses import asdict
from typing import Any

from align3gr.errors import InputError
from align3gr.estimate.memory import adapter_bytes, memory
from align3gr.estimate.setting import LOSSES, NEW_TOKENS, OPTIMIZERS, PRECISIONS, LoRA, Setting, count
from align3gr.estimate.shape import MODULES, PRESETS, ModelShape, cache_bytes
from align3gr.estimate.work import duration, flop_per_token

_NUMBERS = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size")
_MORE_NUMBERS = ("num_kv_heads", "head_dim")
_ADAPTER = ("lora_r", "lora_target_modules", "lora_dropout", "new_tokens")
_RATE = ("tokens_per_second", "mfu", "peak_tflops")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command; those that a recipe has, too, are called as there."""
    shape = parser.add_argument_group("model, by name or by numbers")
    shape.add_argument("--model", help=f"folder or Hub id with a config.json, or one of {', '.join(PRESETS)}")
    for name in (*_NUMBERS, *_MORE_NUMBERS):
        shape.add_argument(f"--{name}", type=int)
    shape.add_argument("--tie_embeddings", action="store_true", help="one matrix for input and output")
    codes = parser.add_argument_group("SCID tokens")
    three = [256, 256, 256]
    codes.add_argument("--item_codes", type=int, nargs="+", default=three, help="codes of each level (256 256 256)")
    codes.add_argument("--user_codes", type=int, nargs="*", default=three, help="the same of users; none if empty")
    codes.add_argument("--grown", action="store_true", help="the model's vocabulary holds these tokens already")
    adapter = parser.add_argument_group("adapter")
    adapter.add_argument("--use_lora", action="store_true", help="an adapter in place of all weights")
    adapter.add_argument("--lora_r", type=int, help="rank (8)")
    adapter.add_argument(
        "--lora_target_modules", nargs="+", metavar="MODULE", help=f"all-linear, or {', '.join(MODULES)}"
    )
    adapter.add_argument("--lora_dropout", type=float, help="dropout in front of the adapter (0.05)")
    adapter.add_argument("--new_tokens", choices=NEW_TOKENS, help="how rows of SCID tokens train (the first)")
    step = parser.add_argument_group("step")
    step.add_argument("--precision", choices=PRECISIONS, default="bf16", help="bf16: as bf16: true in a recipe (bf16)")
    step.add_argument("--optim", choices=list(OPTIMIZERS), default="adamw_torch", help="optimizer (adamw_torch)")
    step.add_argument("--per_device_train_batch_size", type=int, default=16, help="sequences at once (16)")
    step.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches a step (1)")
    step.add_argument("--max_length", type=int, default=512, help="tokens of a sequence, with padding (512)")
    step.add_argument("--gradient_checkpointing", action="store_true", help="compute a block's activations again")
    step.add_argument("--loss", choices=LOSSES, default="tiled", help="full logits, or TRL's tiles (tiled)")
    step.add_argument("--no_padding", action="store_true", help="all sequences have the same length")
    step.add_argument("--zero_stage", type=int, choices=range(4), default=0, help="0: one process or DDP (0)")
    step.add_argument("--num_processes", type=int, default=1, help="devices (1)")
    search = parser.add_argument_group("beam search")
    search.add_argument("--users", type=int, default=64, help="prompts in one search (64)")
    search.add_argument("--prompt_length", type=int, default=120, help="tokens of a prompt (120)")
    search.add_argument("--num_beams", type=int, default=20, help="beams (20)")
    time = parser.add_argument_group("time: how much, and how fast a device is")
    time.add_argument("--rows", type=int, help="sequences, those of all epochs together")
    time.add_argument("--tokens", type=int, help="tokens with padding, in place of rows")
    time.add_argument("--tokens_per_second", type=float, help="measured rate of one device")
    time.add_argument("--mfu", type=float, help="share of the peak that is reached, such as 0.4")
    time.add_argument("--peak_tflops", type=float, help="the device's peak in TFLOP/s, such as 989 (H100, bf16)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, sizes in bytes")


def estimate(options: argparse.Namespace) -> dict[str, Any]:
    """The figures, sizes in bytes.

    Raises:
        InputError: options that do not go together, or a model that cannot be read.
    """
    new_tokens = sum(options.item_codes) + sum(options.user_codes)
    for name in ("item_codes", "user_codes"):
        if any(size < 1 for size in getattr(options, name)):
            raise InputError(f"--{name}: got {getattr(options, name)}, expected 1 or more codes at each level")
    for name in ("users", "prompt_length", "num_beams"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name}: got {getattr(options, name)}, expected 1 or more")
    shape, setting = _shape(options), _setting(options, new_tokens)
    if options.grown and new_tokens >= shape.vocab_size:
        raise InputError(f"--grown: {new_tokens} SCID tokens do not fit a vocabulary of {shape.vocab_size}")
    shape = shape if options.grown else shape.grown(new_tokens)
    counted, held, flop = count(shape, setting), memory(shape, setting), flop_per_token(shape, setting)
    cache, expanded = cache_bytes(
        shape, options.users, options.prompt_length, options.item_codes, options.num_beams, setting.itemsize
    )
    step = setting.tokens * setting.accumulation * setting.processes
    figures: dict[str, Any] = {
        "shape": asdict(shape) | {"new_tokens": new_tokens},
        "setting": asdict(setting),
        "parameters": {"total": counted.frozen + counted.trainable, "trainable": counted.trainable} | asdict(counted),
        "memory": {
            "weights": held.weights,
            "gradients": held.gradients,
            "optimizer": held.optimizer,
            "communication": held.communication,
            "step": held.step,
            "activations": asdict(held.activations) | {"saved": held.activations.saved, "peak": held.activations.peak},
            "total": held.total,
        },
        "search": {"cache": cache, "cache_of_generate": expanded},
        "flop": {"token": flop.model, "token_computed": flop.computed, "step": flop.model * step},
    }
    if setting.lora is not None:
        figures["adapter_file"] = adapter_bytes(shape, setting)
    rows = _rows(options)
    if rows is not None:
        figures["time"] = asdict(
            duration(shape, setting, rows, options.tokens_per_second, options.mfu, options.peak_tflops)
        )
    return figures


def _shape(options: argparse.Namespace) -> ModelShape:
    given = {
        name: getattr(options, name) for name in (*_NUMBERS, *_MORE_NUMBERS) if getattr(options, name) is not None
    }
    if options.model is None:
        missing = [f"--{name}" for name in _NUMBERS if name not in given]
        if missing:
            raise InputError(
                f"--model: give a preset, a folder or a Hub id, or a whole shape with {' '.join(missing)}"
            )
        return ModelShape(**given, tie_embeddings=options.tie_embeddings)
    if given or options.tie_embeddings:
        name = next(iter(given), "tie_embeddings")
        raise InputError(f"--{name}: has no effect beside --model {options.model}; leave one of them out")
    return PRESETS.get(options.model) or ModelShape.from_pretrained(options.model)


def _setting(options: argparse.Namespace, new_tokens: int) -> Setting:
    lora = None
    if options.use_lora:
        dropout = 0.05 if options.lora_dropout is None else options.lora_dropout
        if not 0 <= dropout < 1:
            raise InputError(f"--lora_dropout: got {dropout}, expected a number in [0, 1)")
        lora = LoRA(
            8 if options.lora_r is None else options.lora_r,
            tuple(options.lora_target_modules or ["all-linear"]),
            options.new_tokens or NEW_TOKENS[0],
            dropout > 0,
        )
    else:
        for name in _ADAPTER:
            if getattr(options, name) is not None:
                raise InputError(f"--{name}: has no effect without --use_lora; add it, or leave {name} out")
    return Setting(
        lora,
        new_tokens,
        options.precision,
        options.optim,
        options.per_device_train_batch_size,
        options.max_length,
        options.gradient_accumulation_steps,
        options.gradient_checkpointing,
        options.zero_stage,
        options.num_processes,
        options.loss,
        not options.no_padding,
    )


def _rows(options: argparse.Namespace) -> int | None:
    if options.rows is not None and options.tokens is not None:
        raise InputError("--rows: give it or --tokens, one of them")
    if options.rows is None and options.tokens is None:
        for name in _RATE:
            if getattr(options, name) is not None:
                raise InputError(f"--{name}: has no effect without --rows or --tokens; add one of them")
        return None
    return options.rows if options.tokens is None else -(-options.tokens // options.max_length)


def tables(figures: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The figures for people: titles, and rows of a name and a value."""
    parameters, held, setting = figures["parameters"], figures["memory"], figures["setting"]
    kept = held["activations"]
    sizes = [
        ("weights", held["weights"]),
        ("gradients", held["gradients"]),
        ("optimizer", held["optimizer"]),
        ("gradients in DDP's buckets", held["communication"]),
        ("activations: blocks" + (" (inputs only)" if setting["checkpointing"] else ""), kept["blocks"]),
        ("activations: one block computed again", kept["recomputed"]),
        ("activations: last norm, head, log-probabilities", kept["head"]),
        ("bf16 copies of weights", kept["copies"]),
        ("logits and gradients of the loss", kept["workspace"]),
        ("fp32 gradients of the step, activations gone", held["step"]),
    ]
    memory_rows = [(name, _size(size)) for name, size in sizes if size] + [("together, at most", _size(held["total"]))]
    rest = [("cache of a beam search", _size(figures["search"]["cache"]))]
    rest += [("the same with generate", _size(figures["search"]["cache_of_generate"]))]
    if "adapter_file" in figures:
        rest += [("adapter on disk", _size(figures["adapter_file"]))]
    rest += [
        ("FLOP a token", f"{figures['flop']['token']:.3g}"),
        ("the same with what is computed again", f"{figures['flop']['token_computed']:.3g}"),
        ("FLOP a step", f"{figures['flop']['step']:.3g}"),
    ]
    if "time" in figures:
        time = figures["time"]
        rest += [("steps", f"{time['steps']:,}"), ("tokens", f"{time['tokens']:,}")]
        rest += [("tokens/s of a device", f"{time['tokens_per_second']:,.0f}"), ("hours", f"{time['hours']:.3g}")]
    numbers = [(name, f"{parameters[name]:,}") for name in ("total", "trainable")]
    number = setting["processes"]
    devices = f"Memory of each of {number} devices" if number > 1 else "Memory of the device"
    zero = f", ZeRO-{setting['zero_stage']}" if setting["zero_stage"] else ""
    return [("Parameters", numbers), (devices + zero, memory_rows), ("Search, disk, work", rest)]


def _size(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
