"""How time and memory grow with the catalogue, the users and the log.

    python benchmarks/scaling.py                   # 10k and 100k items and users, 0.2M and 2M interactions
    python benchmarks/scaling.py --full            # and a million of each with 20M interactions
    python benchmarks/scaling.py --json FILE       # the figures as JSON, too

Each part runs in a process of its own on one thread: CPU seconds, and its peak resident memory without what the
libraries take before it begins (with it for `prepare`, which is the recipe). The exponent is that of the best-fitting
power of the size; 1 is growth in proportion. Parts: `prepare`, the stage on a Parquet log; `tokenize`, a step of
training, then codes for everybody and unique ones for the items; `trie`, building, saving and loading; `decode`, beam
search with the model of `benchmarks/decoding.py`.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
# Items, users, interactions.
SIZES = ((10_000, 10_000, 200_000), (100_000, 100_000, 2_000_000), (1_000_000, 1_000_000, 20_000_000))
WORDS = ("red", "blue", "warm", "light", "solid", "soft", "new", "old", "case", "strap", "shoe", "lamp", "tea", "pen")
SEMANTIC, COLLABORATIVE, CLUSTERS = 128, 64, 500


def write_log(folder: Path, items: int, users: int, interactions: int) -> None:
    """A Parquet log in the layout `tables`: popular items more often, every user and item at least five times."""
    import polars as pl

    rng = np.random.default_rng(0)
    item = (items * rng.random(interactions) ** 1.5).astype(np.int64)
    item[: 5 * items] = np.tile(np.arange(items), 5)
    user = rng.integers(0, users, interactions)
    user[-5 * users :] = np.tile(np.arange(users), 5)
    rng.shuffle(item)
    frame = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": np.arange(interactions)})
    folder.mkdir(parents=True)
    frame.write_parquet(folder / "interactions.parquet")
    words = np.array(WORDS)[rng.integers(0, len(WORDS), (items, 8))]
    texts = pl.Series([" ".join(row) for row in words])
    pl.DataFrame({"item_id": np.arange(items), "title": texts.str.slice(0, 20), "text": texts}).write_parquet(
        folder / "items.parquet"
    )


def prepare(items: int, users: int, interactions: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="align3gr-") as temporary:
        folder = Path(temporary)
        # By another process: what it takes to make a log is not what the stage takes.
        code = "import sys; from pathlib import Path; from benchmarks.scaling import write_log;"
        code += "write_log(Path(sys.argv[1]), *map(int, sys.argv[2:]))"
        words = [sys.executable, "-c", code, str(folder / "raw"), str(items), str(users), str(interactions)]
        subprocess.run(words, check=True, cwd=ROOT)
        command = [sys.executable, str(ROOT / "recipes" / "prepare.py"), "--run_dir", str(folder / "run")]
        command += ["--format", "tables", "--source", str(folder / "raw")]
        before = os.times()
        # Through a shell that starts it as a child: a process begins with the peak memory of the one it replaces.
        subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *command], check=True, capture_output=True)
        after = os.times()
        statistics = json.loads((folder / "run" / "data" / "statistics.json").read_text(encoding="utf-8"))
        manifest = json.loads((folder / "run" / "data" / "manifest.json").read_text(encoding="utf-8"))
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        kept = statistics["interactions"] / interactions
        return {"prepare_s": seconds, "prepare_peak_mb": manifest["peak_memory_mb"], "kept": kept}


def tokenize(items: int, users: int, interactions: int) -> dict[str, float]:
    """Features around common centres, an untrained model whose code books start at them, as those of phase 2 do."""
    import torch

    from align3gr.scid import DualSCIDConfig, DualSCIDModel, FeatureTable, RQVAEConfig, assign_codes

    def table(rows: int, seed: int) -> FeatureTable:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(CLUSTERS, SEMANTIC + COLLABORATIVE, generator=generator)
        values = centres[torch.randint(CLUSTERS, (rows,), generator=generator)]
        values += 0.5 * torch.randn(values.shape, generator=generator)
        return FeatureTable(values[:, :SEMANTIC].contiguous(), values[:, SEMANTIC:].contiguous())

    torch.manual_seed(0)
    books = RQVAEConfig(codebook_sizes=(256, 256, 256), codebook_dim=32)
    config = DualSCIDConfig(SEMANTIC, COLLABORATIVE, SEMANTIC, COLLABORATIVE, item_rqvae=books, user_rqvae=books)
    model = DualSCIDModel(config)
    everything = {"item": table(items, 0), "user": table(users, 1)}
    with torch.no_grad():
        for side, rows in everything.items():
            sample = rows.rows(torch.arange(20_000) % len(rows))
            vectors = getattr(model, f"embed_{side}s")(sample)
            getattr(model, f"{side}_rqvae").initialize_codebooks(vectors, 0)
    batch = torch.arange(1024)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        sides = [everything[side].rows(batch % len(everything[side])) for side in ("user", "item")]
        output = model(*sides, quantize_users=sides[0], quantize_items=sides[1])
        (output.u2i_loss + output.user_rq_loss + output.item_rq_loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step_s, _ = _cpu(lambda: [step() for _ in range(10)])
    codes_s, codes = _cpu(partial(assign_codes, model, everything["user"], everything["item"]))
    assert len(np.unique(codes.items, axis=0)) == items
    return {"step_ms": 100 * step_s, "codes_s": codes_s, "moved": codes.collisions.moved / items}


def trie(items: int, users: int, interactions: int) -> dict[str, float]:
    from align3gr.decoding import SCIDTrie
    from benchmarks.decoding import CODES, LEVELS, Setting

    codes = Setting.random(items, 1, 8).codes
    build_s, made = _cpu(partial(SCIDTrie.from_codes, codes, (CODES,) * LEVELS))
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder, "trie.safetensors"))
        load_s, _ = _cpu(partial(SCIDTrie.load, Path(folder, "trie.safetensors")))
    return {"build_s": build_s, "load_s": load_s, "trie_mb": made.num_bytes / 1e6}


def decode(items: int, users: int, interactions: int) -> dict[str, float]:
    from benchmarks.decoding import Setting, make_model, make_search, rank

    setting = Setting.random(items, 16, 80)
    search = make_search(make_model(), setting.codes)
    rank(search, setting)
    seconds, _ = _cpu(lambda: [rank(search, setting) for _ in range(4)])
    return {"users_per_s": 64 / seconds}


PARTS: dict[str, Callable[[int, int, int], dict[str, float]]] = {
    "prepare": prepare,
    "tokenize": tokenize,
    "trie": trie,
    "decode": decode,
}


def _cpu(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def run_part(name: str, sizes: tuple[int, int, int]) -> dict[str, float]:
    """One part at one size, in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.scaling", "--part", name, *map(str, sizes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", '"$@"; exit $?', "sh", *words]
    done = subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the least-squares line through the logarithms.

    >>> round(exponent([10, 100, 1000], [2.0, 20.0, 200.0]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the largest size, too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", type=int, help="items, users and interactions of one size alone")
    parser.add_argument("--part", nargs=4, metavar=("PART", "ITEMS", "USERS", "INTERACTIONS"), help=argparse.SUPPRESS)
    parser.add_argument("--json", help="file to write")
    options = parser.parse_args()
    if options.part:
        name, sizes = options.part[0], tuple(map(int, options.part[1:]))
        import torch  # what the libraries take stands apart

        import align3gr.decoding.recommender  # noqa: F401
        import benchmarks.decoding  # noqa: F401

        torch.set_num_threads(1)
        before = _peak_mb()
        figures = PARTS[name](*sizes)
        print(json.dumps(figures | ({} if name == "prepare" else {f"{name}_peak_mb": _peak_mb() - before})))
        return
    from rich.console import Console
    from rich.table import Table

    chosen = [tuple(options.sizes)] if options.sizes else list(SIZES if options.full else SIZES[:2])
    rows = []
    for sizes in chosen:
        row: dict[str, float] = dict(zip(("items", "users", "interactions"), sizes, strict=True))
        for name in options.parts:
            row |= run_part(name, sizes)
        rows.append(row)
    table = Table("", *(f"{row['items']:,} items" for row in rows), "exponent")
    exponents = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if len(rows) > 1 and name not in ("items", "users", "interactions", "kept", "moved"):
            exponents[name] = exponent([int(row["interactions"]) for row in rows], values)
        shown = [f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}" for value in values]
        table.add_row(name, *shown, f"{exponents[name]:.2f}" if name in exponents else "")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    result = {"sizes": rows, "exponents": {name: value for name, value in exponents.items() if math.isfinite(value)}}
    print(json.dumps(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
