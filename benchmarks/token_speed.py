"""Speed of the token level: training of an RQ-VAE, assignment of codes, U2I loss, start of the code books.

    python benchmarks/tokenize.py            # under 5 minutes on 2 cores
    python benchmarks/tokenize.py --full     # also a million items

How it measures: one thread, process CPU time, variants interleaved round by round, medians of the rounds' ratios. Rows
are as many and as wide as those of Yelp with MiniLM texts and PPMI (20,033 x 448), drawn from a mixture. A step is
forward, loss, backward and AdamW on 1,024 rows. FLOP are those of the matrix products that run (PyTorch's counter);
the GEMM rate is that of the products of the two widest layers, at the same number of rows. Memory is the growth of the
peak resident set in a forked child. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from align3gr.scid import FeatureTable, RQVAEModel, resolve_collisions, u2i_loss
from align3gr.scid.configuration_rqvae import RQVAEConfig
from align3gr.scid.features import quantize_all

ROWS, WIDTH, BATCH, SIZES = 20_033, 448, 1024, (256, 256, 256)
LAYERS = {"LC-Rec, LETTER": (2048, 1024, 512, 256, 128, 64), "TIGER": (512, 256, 128)}
Run = Callable[[], object]


def mixture(rows: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    """Rows around 2,000 centres of 32 dimensions, as embeddings of a catalogue are. Shape: `(rows, width)`."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2000, 32, generator=generator) @ torch.randn(32, width, generator=generator) / 32**0.5
    noise = torch.randn(rows, width, generator=generator)
    return F.normalize(centres[torch.randint(2000, (rows,), generator=generator)] + 0.5 * noise, dim=1)


def build(layers: tuple[int, ...], table: Tensor) -> RQVAEModel:
    torch.manual_seed(0)
    model = RQVAEModel(RQVAEConfig(input_dim=table.shape[1], hidden_dims=layers, codebook_sizes=SIZES))
    model.initialize_codebooks(table[:4000])
    return model.train()


def training_steps(model: RQVAEModel, table: Tensor, bf16: bool) -> Iterator[None]:
    """Ours: the whole table where the model is, rows of a batch taken at once, a fused optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    while True:
        for rows in torch.randperm(len(table)).split(BATCH)[:-1]:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(table[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def usual_steps(model: RQVAEModel, table: Tensor) -> Iterator[None]:
    """The usual loop: a data loader that stacks the rows of a batch one by one, fp32."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    while True:
        for (features,) in DataLoader(TensorDataset(table), BATCH, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            loss = model(features).loss
            loss.backward()
            optimizer.step()
            yield


def rounds_of(variants: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round, interleaved, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> float:
    """Median of the rounds' ratios: what disturbs a round disturbs both sides."""
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))


def flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def gemms(layers: tuple[int, ...], rows: int, dtype: torch.dtype) -> tuple[Run, int]:
    """The products of the first two layers, and their FLOP."""
    widths = (WIDTH, *layers[:2])
    pairs = [
        (torch.randn(rows, a).to(dtype), torch.randn(a, b).to(dtype)) for a, b in zip(widths, layers, strict=False)
    ]
    pairs = pairs[:2]
    return lambda: [a @ b for a, b in pairs], sum(2 * rows * b.numel() for _, b in pairs)


def measure_training(layers: tuple[int, ...], table: Tensor, rounds: int) -> dict[str, float]:
    """Rates in GFLOP/s, share of the GEMM rate, and the ratios to the usual loop."""
    model = build(layers, table)
    loops = {
        "ours": training_steps(model, table, False),
        "ours bf16": training_steps(model, table, True),
        "usual": usual_steps(model, table),
    }
    step = flops(lambda: next(loops["ours"]))
    variants: dict[str, Run] = {name: (lambda loop=loop: next(loop)) for name, loop in loops.items()}
    gemm = {name: gemms(layers, BATCH, dtype) for name, dtype in (("gemm", torch.float32), ("bf16", torch.bfloat16))}
    variants |= {name: run for name, (run, _) in gemm.items()}
    seconds = rounds_of(variants, rounds)
    return {
        "gemm_fraction": step / gemm["gemm"][1] * ratio(seconds, "gemm", "ours"),
        "bf16_ratio": ratio(seconds, "usual", "ours bf16"),
        "bf16_over_fp32": ratio(seconds, "ours", "ours bf16"),
        "fp32_over_usual": ratio(seconds, "usual", "ours"),
        "gflop_per_step": step / 1e9,
        "step_ms": 1e3 * statistics.median(seconds["ours"]),
        "gemm_gflops": gemm["gemm"][1] / statistics.median(seconds["gemm"]) / 1e9,
        "gemm_bf16_gflops": gemm["bf16"][1] / statistics.median(seconds["bf16"]) / 1e9,
    }


def assign(model: RQVAEModel, table: Tensor) -> tuple[Any, Any, Any]:
    return quantize_all(lambda features: features["semantic"], model, FeatureTable(semantic=table))


def measure_assignment(layers: tuple[int, ...], table: Tensor, rounds: int) -> dict[str, float]:
    """Codes of all rows in fp32, with what the stage reports about them."""
    model = build(layers, table).eval()
    gemm, gemm_flops = gemms(layers, 2048, torch.float32)
    variants: dict[str, Run] = {"assign": lambda: assign(model, table), "gemm": gemm}
    every = flops(variants["assign"])
    seconds = rounds_of(variants, rounds)
    return {
        "assign_items_per_s": len(table) / statistics.median(seconds["assign"]),
        "assign_gemm_fraction": every / gemm_flops * ratio(seconds, "gemm", "assign"),
    }


def looped_u2i(users: Tensor, items: Tensor, known: Tensor) -> Tensor:
    """Eq. (1) user by user, as it is written down."""
    losses = []
    for row in range(len(users)):
        scores = items @ users[row]
        negatives = ~known[row]
        negatives[row] = True
        losses.append(torch.logsumexp(scores[negatives], 0) - scores[row])
    return torch.stack(losses).mean()


def measure_u2i(batch: int, rounds: int) -> float:
    """How much faster the matrix form is, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(batch, 64, generator=generator).requires_grad_() for _ in range(2))
    known = torch.rand(batch, batch, generator=generator) < 0.01

    def run(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        users.grad = items.grad = None
        value = loss(users, items, known)
        value.backward()
        return value.detach()

    torch.testing.assert_close(run(u2i_loss), run(looped_u2i))
    variants: dict[str, Run] = {"loop": lambda: run(looped_u2i), "matrix": lambda: run(u2i_loss)}
    return ratio(rounds_of(variants, rounds), "loop", "matrix")


def init_seconds(layers: tuple[int, ...], table: Tensor, rounds: int) -> float:
    """k-means start of three code books on the latents of all rows."""
    model = build(layers, table)
    return statistics.median(rounds_of({"start": lambda: model.initialize_codebooks(table)}, rounds)["start"])


def measure_catalogue(items: int) -> dict[str, float]:
    """Codes of a catalogue in fp32, made unique; time and memory beside the table of features."""
    table = mixture(items)
    model = build(LAYERS["TIGER"], table).eval()

    def run() -> dict[str, float]:
        start = time.process_time()
        codes, latents, _ = assign(model, table)
        assigned = time.process_time()
        books = [book.detach().numpy() for book in model.quantizer.codebooks]
        unique, report = resolve_collisions(codes, latents, books)
        seconds = time.process_time() - start
        shared = items - len({tuple(row) for row in unique.tolist()})
        figures = {"items": items, "seconds": seconds, "items_per_s": items / seconds}
        return figures | {"assign_seconds": assigned - start, "collided": report.collided, "still_shared": shared}

    return in_child(run)


def in_child(run: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `run` returns in a forked child, and the growth of the child's peak resident set in MB."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = resident("VmRSS")
            figures = run()
            os.write(writer, json.dumps(figures | {"peak_mb": (resident("VmHWM") - before) / 1024}).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the child that measures memory failed")
    return json.loads(text)


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))  # kB


def measure(console: Console, rounds: int, catalogue: int) -> dict[str, Any]:
    table = mixture(ROWS)
    models = {}
    for name, layers in LAYERS.items():
        models[name] = measure_training(layers, table, rounds) | measure_assignment(layers, table, rounds)
    u2i = {batch: measure_u2i(batch, rounds) for batch in (256, 1024)}
    figures = {
        **{key: models["LC-Rec, LETTER"][key] for key in ("gemm_fraction", "bf16_ratio")},
        **{key: models["TIGER"][key] for key in ("assign_items_per_s", "assign_gemm_fraction")},
        "u2i_ratio": min(u2i.values()),
        "init_seconds": init_seconds(LAYERS["TIGER"], table, min(rounds, 3)),
        "u2i_ratios": u2i,
        "models": models,
        "catalogue": measure_catalogue(catalogue),
    }
    show(console, figures)
    return figures


def show(console: Console, figures: dict[str, Any]) -> None:
    table = Table("RQ-VAE, 3 x 256 x 32", *figures["models"], title=f"{ROWS:,} rows x {WIDTH}, batch {BATCH}")
    for key, title, form in (
        ("step_ms", "training step fp32, ms", "{:,.0f}"),
        ("gemm_fraction", "its products over the GEMM rate", "{:.2f}"),
        ("bf16_ratio", "ours bf16 over the usual loop fp32", "{:.2f}"),
        ("bf16_over_fp32", "ours bf16 over ours fp32", "{:.2f}"),
        ("fp32_over_usual", "ours fp32 over the usual loop", "{:.2f}"),
        ("gemm_gflops", "GEMM fp32, GFLOP/s", "{:,.0f}"),
        ("gemm_bf16_gflops", "GEMM bf16, GFLOP/s", "{:,.0f}"),
        ("assign_items_per_s", "codes assigned in fp32, items/s", "{:,.0f}"),
        ("assign_gemm_fraction", "its products over the GEMM rate", "{:.2f}"),
    ):
        table.add_row(title, *(form.format(model[key]) for model in figures["models"].values()))
    console.print(table)
    ratios = ", ".join(f"batch {batch}: {value:.1f}x" for batch, value in figures["u2i_ratios"].items())
    console.print(f"U2I loss, matrix form over a loop, forward and backward: {ratios}")
    console.print(f"k-means start of 3 x 256 on {ROWS:,} rows: {figures['init_seconds']:.2f} s")
    row = figures["catalogue"]
    console.print(
        f"{row['items']:,} items to unique codes: {row['seconds']:.1f} s ({row['assign_seconds']:.1f} s of it codes), "
        f"{row['items_per_s']:,.0f} items/s, peak {row['peak_mb']:,.0f} MB, {row['collided']:,} had collided"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also a million items")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument(
        "--items", type=int, default=100_000, help="items of the catalogue that is assigned as a whole"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    figures = measure(console, options.rounds, 1_000_000 if options.full else options.items)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
