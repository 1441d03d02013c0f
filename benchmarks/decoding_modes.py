"""The other ways to decode beside the beam search, on the model of `benchmarks/decoding.py`, in one process.

    python benchmarks/decoding_modes.py        # some minutes on 2 cores
    python benchmarks/decoding_modes.py --json PATH

* every item scored: `ExhaustiveSearch` against the beam, by the size of the catalogue;
* a common beginning of all prompts computed once, 60 of 120 tokens;
* draws: `StochasticBeamSearch` with the widths of the beam (exact draws search wider, which depends on the model);
* T5: the tree in one decoder row against `generate` with `prefix_allowed_tokens_fn`.

One thread, process CPU time, variants interleaved, medians. The last line is one JSON object.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from decoding import (
    BEAMS,
    CODES,
    LEVEL_TOKENS,
    LEVELS,
    VOCABULARY,
    Peer,
    Setting,
    cpu_seconds,
    make_model,
    make_search,
)
from rich.console import Console
from rich.table import Table
from transformers import T5Config, T5ForConditionalGeneration

from align3gr.decoding import ConstrainedBeamSearch, ExhaustiveSearch, SCIDTrie, StochasticBeamSearch


def measure_exhaustive(console: Console) -> list[dict[str, float]]:
    model = make_model()
    table = Table("items", "beam s", "every item s", "ratio")
    rows = []
    for items in (200, 2_000, 20_000):
        setting = Setting.random(items, batch=4, length=80)
        beam = make_search(model, setting.codes)
        every = ExhaustiveSearch(model, beam.trie, LEVEL_TOKENS)
        inputs = setting.input_ids, setting.mask
        seconds = cpu_seconds(
            {"beam": (partial(beam.search, *inputs), 3), "every": (partial(every.search, *inputs), 1)}, rounds=2
        )
        rows.append({"items": items} | seconds)
        ratio = seconds["every"] / seconds["beam"]
        table.add_row(f"{items:,}", f"{seconds['beam']:.3f}", f"{seconds['every']:.3f}", f"{ratio:.1f}")
    console.print("4 prompts of 80 tokens")
    console.print(table)
    return rows


def measure_prefix(console: Console) -> dict[str, float]:
    model = make_model()
    setting = Setting.random(20_000, batch=16, length=120)
    setting.input_ids[:, :60] = setting.input_ids[0, :60]
    search = make_search(model, setting.codes)
    prefix = search.prefix(setting.input_ids[0, :60].tolist())
    inputs = setting.input_ids, setting.mask
    whole, cut = search.search(*inputs).top(BEAMS), search.search(*inputs, prefix=prefix).top(BEAMS)
    seconds = cpu_seconds(
        {
            "whole prompts": (partial(search.search, *inputs), 2),
            "prefix computed": (partial(search.search, *inputs, prefix=prefix), 2),
        },
        rounds=5,
    )
    figures = {"ratio": seconds["whole prompts"] / seconds["prefix computed"]}
    figures["max_score_diff"] = float((whole.scores - cut.scores).abs().max())
    console.print("60 of 120 tokens in common, batch 16:", seconds, figures)
    return seconds | figures


def measure_draws(console: Console) -> dict[str, float]:
    model = make_model()
    setting = Setting.random(20_000, batch=16, length=80)
    beam = make_search(model, setting.codes)
    draws = StochasticBeamSearch(model, beam.trie, LEVEL_TOKENS, BEAMS, widths=(BEAMS,) * LEVELS)
    inputs = setting.input_ids, setting.mask
    variants = {"beams": (partial(beam.search, *inputs), 2), "draws": (partial(draws.search, *inputs), 2)}
    seconds = cpu_seconds(variants, rounds=4)
    console.print("20 draws with kept widths against 20 beams:", seconds)
    return seconds


def measure_t5(console: Console) -> dict[str, float]:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=128,
        d_kv=64,
        d_ff=1024,
        num_layers=4,
        num_heads=6,
        decoder_start_token_id=0,
        attn_implementation="sdpa",
    )
    model = T5ForConditionalGeneration(config).eval()
    setting = Setting.random(20_000, batch=16, length=80)
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(setting.codes, (CODES,) * LEVELS), LEVEL_TOKENS, BEAMS)
    peer = Peer(model, setting.codes)
    _, scores = peer(setting)
    ours = search.search(setting.input_ids, setting.mask).top(BEAMS)
    seconds = cpu_seconds(
        {
            "generate": (partial(peer, setting), 1),
            "ours": (partial(search.search, setting.input_ids, setting.mask), 3),
        },
        rounds=3,
    )
    figures = {"ratio": seconds["generate"] / seconds["ours"]}
    figures["max_score_diff"] = float((ours.scores - scores).abs().max())
    console.print("T5 of TIGER's size (4 + 4 layers x 128), batch 16, prompt 80, beam 20:", seconds, figures)
    return seconds | figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    figures: dict[str, Any] = {
        "prefix": measure_prefix(console),
        "t5": measure_t5(console),
        "draws": measure_draws(console),
        "exhaustive": measure_exhaustive(console),
    }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
