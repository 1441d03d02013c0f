"""Constrained beam search against `generate` with `prefix_allowed_tokens_fn`, on the same model in the same process.

    python benchmarks/decoding.py            # the setting of the first table, under 5 minutes on 2 cores
    python benchmarks/decoding.py --grid     # other catalogues, up to 10 million items, prompt lengths, batch sizes
    python benchmarks/decoding.py --trie     # the trie alone: build, change, load, memory, up to 10 million items
    python benchmarks/decoding.py --filters  # allowed and denied items alone
    python benchmarks/decoding.py --full     # all of it

How it measures: one thread, process CPU time, variants interleaved round by round, medians. Memory is the growth of
the peak resident set over one call in a forked child that has not run any variant before (`/proc/self/clear_refs`
resets the peak), so caches and allocator pools of one variant cannot hide the need of another. Truth for the recall of
the beams is the score of every item (`ExhaustiveSearch`). The model is a random Llama, whose flat distributions are
hard for a beam. The last line is one JSON object.
"""

import argparse
import copy
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.decoding.trie import SCIDTrie

LEVELS, CODES, BEAMS, VOCABULARY = 3, 256, 20, 3100
WIDTHS = (20, 48, 20)  # flat distributions lose most of their best items at the second of three levels
LEVEL_TOKENS = torch.arange(1000, 1000 + LEVELS * CODES).view(LEVELS, CODES)


@dataclass
class Setting:
    """A catalogue, and prompts of one batch."""

    codes: Tensor  # (items, levels), distinct
    input_ids: Tensor  # (batch, length)
    mask: Tensor  # (batch, length)

    @classmethod
    def random(cls, items: int, batch: int, length: int, shortest: int | None = None, seed: int = 0) -> "Setting":
        generator = torch.Generator().manual_seed(seed)
        keys = torch.randperm(CODES**LEVELS, generator=generator)[:items]
        codes = torch.stack([keys // CODES**level % CODES for level in range(LEVELS)], dim=1)
        input_ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
        lengths = torch.randint(shortest or length, length + 1, (batch, 1), generator=generator)
        return cls(codes, input_ids, (torch.arange(length) >= length - lengths).long())


class Peer:
    """`generate` with the usual dictionary trie."""

    def __init__(self, model: PreTrainedModel, codes: Tensor):
        self.model = model
        self.tokens = torch.stack([LEVEL_TOKENS[level][codes[:, level]] for level in range(LEVELS)], dim=1).tolist()
        self.root: dict[int, Any] = {}
        for row in self.tokens:
            node = self.root
            for token in row:
                node = node.setdefault(token, {})

    def __call__(self, setting: Setting) -> tuple[Tensor, Tensor]:
        """Token ids `(batch, beams, levels)` and scores `(batch, beams)`."""
        batch, length = setting.input_ids.shape
        if self.model.config.is_encoder_decoder:  # its answer begins with the decoder's start token
            length = 1

        def allowed(_: int, sequence: Tensor) -> list[int]:
            node = self.root
            for token in sequence[length:].tolist():
                node = node[token]
            return list(node)

        output = self.model.generate(
            setting.input_ids,
            attention_mask=setting.mask,
            prefix_allowed_tokens_fn=allowed,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            max_new_tokens=LEVELS,
            length_penalty=0.0,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
        )
        return output.sequences[:, length:].view(batch, BEAMS, LEVELS), output.sequences_scores.view(batch, BEAMS)


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def in_bf16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    half = copy.deepcopy(model).bfloat16()
    half.set_attn_implementation("eager")  # the faster of the two for bf16 on a CPU
    return half


def make_search(model: LlamaForCausalLM, codes: Tensor, **options: Any) -> ConstrainedBeamSearch:
    trie = SCIDTrie.from_codes(codes, (CODES,) * LEVELS)
    return ConstrainedBeamSearch(model, trie, LEVEL_TOKENS, **({"num_beams": BEAMS} | options))


def rank(search: ConstrainedBeamSearch, setting: Setting) -> list[list[int]]:
    return search.search(setting.input_ids, setting.mask).top(BEAMS).items.tolist()


def cpu_seconds(variants: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Median process CPU seconds of each variant; each runs its number of times in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run, _ in list(variants.values()):
        run()
    for _ in range(rounds):
        for name, (run, repeats) in variants.items():
            for _ in range(repeats):
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(run: Callable[[], object]) -> float:
    """Growth of the peak resident set of one call in a forked child, in MB."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _resident("VmRSS")
            run()
            os.write(writer, str(_resident("VmHWM") - before).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return float(answer) / 1024


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def true_best(model: LlamaForCausalLM, setting: Setting, k: int) -> list[list[int]]:
    """The `k` most probable items of each row: every item scored."""
    trie = SCIDTrie.from_codes(setting.codes, (CODES,) * LEVELS)
    return ExhaustiveSearch(model, trie, LEVEL_TOKENS).search(setting.input_ids, setting.mask).top(k).items.tolist()


def gemm_ratio(size: int = 1024) -> float:
    """How much faster this machine multiplies in bf16 than in fp32: what bf16 can win at most."""
    factor = torch.randn(size, size)
    half = factor.bfloat16()
    seconds = cpu_seconds({"fp32": (lambda: factor @ factor, 3), "bf16": (lambda: half @ half, 3)}, rounds=5)
    return seconds["fp32"] / seconds["bf16"]


def overlap(lists: list[list[int]], others: list[list[int]]) -> float:
    """Mean share of a list that stands in the other."""
    return statistics.mean(len(set(a) & set(b)) / len(b) for a, b in zip(lists, others, strict=True))


def same_as_generate(model: LlamaForCausalLM, settings: list[Setting]) -> tuple[bool, float]:
    """Whether all ordered lists are the peer's, and the largest difference of a score."""
    same, difference = True, 0.0
    for setting in settings:
        tokens, scores = Peer(model, setting.codes)(setting)
        ours = make_search(model, setting.codes).search(setting.input_ids, setting.mask).top(BEAMS)
        codes = setting.codes[ours.items]  # (batch, beams, levels)
        answers = torch.stack([LEVEL_TOKENS[level][codes[..., level]] for level in range(LEVELS)], dim=-1)
        same &= torch.equal(answers, tokens)
        difference = max(difference, float((ours.scores - scores).abs().max()))
    return same, difference


def invalid_items(model: LlamaForCausalLM) -> int:
    """Items shown that are outside the catalogue, shown twice or denied; small catalogues are where searches slip."""
    wrong = 0
    for items in (1, 7, 19, 300, 20_000):
        setting = Setting.random(items, batch=8, length=40, shortest=10, seed=items)
        candidates = make_search(model, setting.codes).search(setting.input_ids, setting.mask)
        allowed = candidates.top(BEAMS).items.tolist()
        deny = [[item for item in row if item >= 0][::2] for row in allowed]
        for rows, denied in ((allowed, [[]] * 8), (candidates.top(BEAMS, denied=deny).items.tolist(), deny)):
            for row, hidden in zip(rows, denied, strict=True):
                shown = [item for item in row if item != -1]
                wrong += sum(not 0 <= item < items or item in hidden for item in shown) + len(shown) - len(set(shown))
    return wrong


def measure(console: Console) -> dict[str, Any]:
    model = make_model()
    setting = Setting.random(items=20_000, batch=16, length=80)
    half = in_bf16(model)
    peer, ours = Peer(model, setting.codes), make_search(model, setting.codes)
    ours_half, wide = make_search(half, setting.codes), make_search(model, setting.codes, widths=WIDTHS)
    variants: dict[str, tuple[Callable[[], object], int]] = {
        "generate": (partial(peer, setting), 1),
        "ours, fp32": (partial(rank, ours, setting), 3),
        "ours, bf16": (partial(rank, ours_half, setting), 3),
        f"ours, {list(WIDTHS)}": (partial(rank, wide, setting), 3),
    }
    memory = {name: peak_memory(run) for name, (run, _) in variants.items()}
    seconds = cpu_seconds(variants, rounds=5)
    slow, fp32, bf16, tapered = (seconds[name] for name in variants)

    same, difference = same_as_generate(model, [setting, Setting.random(20_000, 16, 80, shortest=40, seed=1)])
    many = Setting.random(20_000, batch=64, length=80, seed=0)
    exact, rounded = rank(ours, many), rank(ours_half, many)
    truth = true_best(model, setting, BEAMS)
    recall, recall_wide = (overlap(rank(each, setting), truth) for each in (ours, wide))

    table = Table("variant", "users/s", "ratio", "peak memory MB", "of the true best 20")
    for name in variants:
        found = {"ours, fp32": f"{recall:.1%}", list(variants)[-1]: f"{recall_wide:.1%}"}.get(name, "")
        table.add_row(name, f"{16 / seconds[name]:.1f}", f"{slow / seconds[name]:.1f}", f"{memory[name]:.0f}", found)
    console.print("20,000 items, 3 x 256, batch 16, prompt 80, beam 20, Llama 256 x 4 layers, vocabulary 3,100")
    console.print(table)
    gemm = gemm_ratio()
    console.print(
        f"bf16 over fp32: {fp32 / bf16:.2f}, of products of 1,024 x 1,024 matrices on this machine: {gemm:.2f}"
    )
    names = list(variants)
    return {
        "fp32_ratio": slow / fp32,
        "bf16_ratio": slow / bf16,
        "gemm_bf16_ratio": gemm,
        "bf16_overlap": overlap(rounded, exact),
        "same_lists": same,
        "max_score_diff": difference,
        "memory_ratio": memory[names[0]] / memory[names[1]],
        "invalid_items": invalid_items(model),
        "tapered_recall_gain": recall_wide - recall,
        "tapered_cost": tapered / fp32,
        "widths": list(WIDTHS),
        "users_per_second": {name: 16 / value for name, value in seconds.items()},
        "peak_mb": memory,
    }


def measure_grid(console: Console) -> list[dict[str, float | None]]:
    """The same ratios for other catalogues, prompt lengths and batch sizes; `generate` where its trie fits."""
    model = make_model()
    half = in_bf16(model)
    table = Table("items", "prompt", "batch", "generate users/s", "fp32 users/s", "ratio", "bf16 over fp32")
    rows = []
    grid = (
        (2_000, 80, 16),
        (200_000, 80, 16),
        (10_000_000, 80, 16),
        (20_000, 40, 16),
        (20_000, 160, 16),
        (20_000, 80, 1),
    )
    for items, length, batch in grid:
        setting = Setting.random(items, batch, length)
        variants: dict[str, tuple[Callable[[], object], int]] = {
            "fp32": (partial(rank, make_search(model, setting.codes), setting), 3),
            "bf16": (partial(rank, make_search(half, setting.codes), setting), 3),
        }
        if items <= 200_000:
            variants["generate"] = (partial(Peer(model, setting.codes), setting), 1)
        seconds = cpu_seconds(variants, rounds=2)
        generate = seconds.get("generate", math.nan)
        row: dict[str, float | None] = {"items": items, "prompt": length, "batch": batch}
        row |= {"fp32_users_per_second": batch / seconds["fp32"], "bf16_over_fp32": seconds["fp32"] / seconds["bf16"]}
        ratio = generate / seconds["fp32"]
        rows.append(row | {"ratio": None if math.isnan(ratio) else ratio})
        figures = batch / generate, batch / seconds["fp32"], ratio, seconds["fp32"] / seconds["bf16"]
        table.add_row(f"{items:,}", str(length), str(batch), *(f"{value:.1f}" for value in figures))
    console.print(table)
    return rows


def measure_filters(console: Console) -> dict[str, Any]:
    """What allowed and denied sets cost, and how long a list of 10 is with the 20 best items of each prompt denied."""
    setting = Setting.random(items=20_000, batch=16, length=80)
    search = make_search(make_model(), setting.codes)
    plain = partial(search.search, setting.input_ids, setting.mask)
    deny, allow = plain().top(BEAMS).items.tolist(), torch.randperm(20_000)[:2_000].tolist()
    runs = {"none": plain, "20 denied": partial(plain, denied=deny), "2,000 allowed": partial(plain, allowed=allow)}
    seconds = cpu_seconds({name: (run, 3) for name, run in runs.items()}, rounds=3)
    lengths = {
        "denied afterwards": float((plain().top(10, denied=deny).items >= 0).sum(1).float().mean()),
        "denied in the search": float((plain(denied=deny).top(10).items >= 0).sum(1).float().mean()),
    }
    console.print("seconds for 16 prompts", seconds, "mean length of a list of 10", lengths)
    return {"seconds": seconds, "mean_length": lengths}


def measure_trie(console: Console) -> list[dict[str, float]]:
    """Building and changing the index, its size, and the time of one step of 320 beams at the last level."""
    names = ("build_s", "add_1000_s", "remove_1000_s", "load_s", "mb", "build_peak_mb", "step_ms")
    table = Table("items", "levels", *names)
    rows = []
    for items, levels in ((20_000, 3), (1_000_000, 3), (1_000_000, 4), (10_000_000, 4)):
        codes = torch.randint(0, CODES, (items, levels), generator=torch.Generator().manual_seed(0))
        build = partial(SCIDTrie.from_codes, codes, (CODES,) * levels)
        peak = peak_memory(build)
        build_s, trie = _timed(build)
        with tempfile.TemporaryDirectory() as folder:
            trie.save(Path(folder, "trie.safetensors"))
            load_s, _ = _timed(partial(SCIDTrie.load, Path(folder, "trie.safetensors")))
        add_s, _ = _timed(partial(trie.with_items, codes[:1000]))
        remove_s, _ = _timed(partial(trie.without, torch.arange(1000)))
        nodes = torch.randint(0, trie.num_nodes[-2], (16, BEAMS), generator=torch.Generator().manual_seed(0))
        step_ms = cpu_seconds({"step": (partial(_trie_step, trie, nodes), 20)}, rounds=1)["step"] * 1e3
        figures = dict(
            zip(names, (build_s, add_s, remove_s, load_s, trie.num_bytes / 1e6, peak, step_ms), strict=True)
        )
        rows.append({"items": items, "levels": levels} | figures)
        table.add_row(f"{items:,}", str(levels), *(f"{value:.2f}" for value in figures.values()))
    console.print(table)
    return rows


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Process CPU seconds of one call, and what it returned."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def _trie_step(trie: SCIDTrie, nodes: Tensor) -> Tensor:
    return trie.codes(trie.levels, trie.children(trie.levels - 1, nodes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also other settings, and the trie alone")
    parser.add_argument("--grid", action="store_true", help="the other settings alone")
    parser.add_argument("--trie", action="store_true", help="the trie alone, up to 10 million items")
    parser.add_argument("--filters", action="store_true", help="allowed and denied items alone")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    figures: dict[str, Any] = {} if options.grid or options.trie or options.filters else measure(console)
    if options.full or options.grid:
        figures["grid"] = measure_grid(console)
    if options.full or options.trie:
        figures["trie"] = measure_trie(console)
    if options.full or options.filters:
        figures["filters"] = measure_filters(console)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
