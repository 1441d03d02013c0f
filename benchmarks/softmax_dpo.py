"""Softmax-DPO training step: one shared prompt against one full sequence a completion.

    python benchmarks/softmax_dpo.py [--full] [--lengths 4 16 64] [--json PATH]

A step is forward, loss and backward, without the optimizer. All variants run interleaved in one process on one
thread; times are medians of process CPU time. Memory is the growth of the peak resident set over one step, gradients
included, in a child forked before any step has run, so that no variant finds memory that another has left behind.
The last line is one JSON object; `token_limit` is the ratio of the tokens computed.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from align3gr.dpo.shared_prefix import naive_logps, sequence_batch, shared_prefix_logps, tree_batch
from align3gr.dpo.softmax_dpo_loss import softmax_dpo_loss

PROMPTS, PROMPT_LENGTH, REJECTED, LEVELS, CODEBOOK = 4, 120, 20, 4, 256
SMALL: dict[str, Any] = {"vocab_size": 3100, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
LARGE: dict[str, Any] = {"vocab_size": 34048, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}

Step = Callable[[], Tensor]
Rows = tuple[list[list[int]], list[list[list[int]]]]


def build_model(sizes: dict[str, Any], lora: bool = False) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=8))
    if lora:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        return get_peft_model(model, LoraConfig(r=16, target_modules=targets, init_lora_weights=False))
    return model


def build_rows(
    vocabulary: int, hard: bool, prompts: int = PROMPTS, length: int = PROMPT_LENGTH, rejected: int = REJECTED
) -> Rows:
    """Random prompts with one chosen completion and the rejected ones; hard ones share two or three of four codes."""
    rng = np.random.default_rng(0)
    first = vocabulary - LEVELS * CODEBOOK
    trunks = rng.integers(1, vocabulary, (prompts, length)).tolist()
    completions = []
    for _ in trunks:
        codes = rng.integers(0, CODEBOOK, (1 + rejected, LEVELS))
        if hard:
            shared = np.arange(LEVELS) < rng.integers(2, LEVELS, 1 + rejected)[:, None]
            codes = np.where(shared, codes[0], codes)
        completions.append((codes + first + CODEBOOK * np.arange(LEVELS)).tolist())
    return trunks, completions


def full_logps(model: Any, input_ids: Tensor) -> Tensor:
    """The usual way: logits at every position of every sequence, then those of the completion picked out."""
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
    labels = input_ids[:, 1:]
    logps = logits.gather(-1, labels[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return logps[:, -LEVELS:].sum(-1).view(PROMPTS, 1 + REJECTED)


def build_step(model: Any, loss: Callable[[], Tensor]) -> Step:
    """Clears the gradients, runs forward and backward and gives the loss."""

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value.detach()

    return run


def build_steps(model: Any, vocabulary: int) -> dict[str, Step]:
    """The variants by name."""
    rows, hard_rows = build_rows(vocabulary, hard=False), build_rows(vocabulary, hard=True)
    sequences = torch.tensor([p + c for p, completions in zip(*rows, strict=True) for c in completions])
    naive, tree = sequence_batch(*rows), tree_batch(*rows)
    hard, merged = tree_batch(*hard_rows), tree_batch(*hard_rows, merge=True)
    chosen = sequence_batch(rows[0], [completions[:1] for completions in rows[1]])
    reference = 30 * torch.randn(PROMPTS, 1 + REJECTED, generator=torch.Generator().manual_seed(0))

    step = partial(build_step, model)

    def preference(logps: Tensor) -> Tensor:
        ratios = logps - reference
        return softmax_dpo_loss(
            ratios[:, 0], ratios[:, 1:], torch.ones(PROMPTS, REJECTED, dtype=torch.bool), 0.1
        ).mean()

    return {
        "full sequences": step(lambda: preference(full_logps(model, sequences))),
        "full sequences, completion logits": step(lambda: preference(naive_logps(model, naive))),
        "shared prompt": step(lambda: preference(shared_prefix_logps(model, tree))),
        "hard stage, shared prompt": step(lambda: preference(shared_prefix_logps(model, hard))),
        "hard stage, merged": step(lambda: preference(shared_prefix_logps(model, merged))),
        "SFT step, completion logits": step(lambda: -naive_logps(model, chosen).mean()),
    }


def peak_memory(step: Step) -> float:
    """MB by which the peak resident set of a forked child grows over one step."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before = _status("VmRSS")  # a child starts with its peak at its current size
        step()
        os.write(writer, str(_status("VmHWM") - before).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        grown = answer.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the child that measures memory failed")
    return float(grown) / 1024


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])  # kB


def median_times(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each variant, interleaved; short ones run several times a round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            repeats = 1 if name.startswith("full") else 3
            for _ in range(repeats):
                started = time.process_time()
                step()
                times[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def gradient_difference(model: Any, step: Step, other: Step) -> float:
    """Largest relative distance of the gradients of any weight."""
    gradients = []
    for run in (step, other):
        run()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*gradients, strict=True))


def measure(title: str, sizes: dict[str, Any], rounds: int, console: Console, lora: bool = False) -> dict[str, float]:
    model = build_model(sizes, lora)
    steps = build_steps(model, sizes["vocab_size"])
    memory = {name: peak_memory(step) for name, step in steps.items()}
    difference = gradient_difference(model, steps["shared prompt"], steps["full sequences"])
    times = median_times(steps, rounds)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    model_text = f"{title}: {millions:.0f}M parameters, vocabulary {sizes['vocab_size']:,}"
    rows_text = f"{PROMPTS} prompts of {PROMPT_LENGTH} tokens, 1 + {REJECTED} completions of {LEVELS}"
    table = Table(title=f"{model_text}\n{rows_text}")
    for column in ("step", "CPU ms", "peak MB", "times faster than full sequences"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, value in times.items():
        table.add_row(name, f"{value:,.0f}", f"{memory[name]:,.0f}", f"{times['full sequences'] / value:.1f}")
    console.print(table)
    shared = times["shared prompt"]
    sequence = PROMPT_LENGTH + LEVELS - 1
    return {
        "vs_full": times["full sequences"] / shared,
        "vs_completion_only": times["full sequences, completion logits"] / shared,
        "token_limit": (1 + REJECTED) * sequence / (PROMPT_LENGTH + (1 + REJECTED) * (LEVELS - 1)),
        "memory_ratio": memory["full sequences"] / memory["shared prompt"],
        "grad_rel_diff": difference,
        "vs_sft_completion_only": shared / times["SFT step, completion logits"],
        "merged_hard_gain": times["hard stage, shared prompt"] / times["hard stage, merged"],
    }


def measure_lengths(lengths: list[int], console: Console) -> dict[int, float]:
    """How many times faster one shared prompt is than full sequences with the logits of completions alone."""
    model = build_model(SMALL)
    rng = np.random.default_rng(0)
    table = Table(
        title=f"Completions of other lengths: 1 prompt of {PROMPT_LENGTH} tokens, 1 + {REJECTED} completions"
    )
    for column in ("tokens", "full sequences, CPU ms", "shared prompt, CPU ms", "times faster"):
        table.add_column(column, justify="right")
    ratios = {}
    for length in lengths:
        prompt = rng.integers(1, SMALL["vocab_size"], (1, PROMPT_LENGTH)).tolist()
        completions = rng.integers(1, SMALL["vocab_size"], (1, 1 + REJECTED, length)).tolist()
        naive, tree = sequence_batch(prompt, completions), tree_batch(prompt, completions)
        steps = {
            "full": build_step(model, lambda naive=naive: naive_logps(model, naive).mean()),
            "shared": build_step(model, lambda tree=tree: shared_prefix_logps(model, tree).mean()),
        }
        times = median_times(steps, rounds=3)
        ratios[length] = times["full"] / times["shared"]
        table.add_row(str(length), f"{times['full']:,.0f}", f"{times['shared']:,.0f}", f"{ratios[length]:.1f}")
    console.print(table)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="also a 60M model with a vocabulary of 34,048, full and LoRA"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[], help="also completions of these lengths")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    figures: dict[str, object] = dict(measure("Softmax-DPO step", SMALL, rounds=5, console=console))
    if options.full:
        figures["large"] = measure("Softmax-DPO step", LARGE, rounds=3, console=console)
        figures["large_lora"] = measure("Softmax-DPO step, LoRA", LARGE, rounds=3, console=console, lora=True)
    if options.lengths:
        figures["lengths"] = measure_lengths(options.lengths, console)
    line = json.dumps(figures)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
