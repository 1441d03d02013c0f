"""Time and peak memory of `recipes/prepare.py` on a generated log in the layout of Amazon 2023, reviews and all.

    python benchmarks/prepare.py --lines 10000000

The log is made first (in the temporary folder, gzip or not); the recipe then runs in a process of its own.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).parent.parent
LINES_AT_A_TIME = 200_000
WORDS = [
    "solid",
    "strings",
    "buzz",
    "tone",
    "warm",
    "bright",
    "cable",
    "case",
    "strap",
    "returned",
    "perfect",
    "value",
]


def write_category(folder: Path, lines: int, packed: bool, seed: int = 0) -> None:
    """Write Log.jsonl(.gz) and meta_Log.jsonl: seven lines a user and thirty an item on average."""
    rng = np.random.default_rng(seed)
    users, items = max(lines // 7, 10), max(lines // 30, 10)
    texts = pl.Series([" ".join(rng.choice(WORDS, size=length)) for length in rng.integers(5, 60, size=4096)])
    # A tenth with markup, as the real ones have.
    texts = pl.Series([text + "<br />&#34;" if row % 10 == 0 else text for row, text in enumerate(texts)])
    folder.mkdir(parents=True)
    with gzip.open(folder / "Log.jsonl.gz", "wb", 1) if packed else (folder / "Log.jsonl").open("wb") as stream:
        for start in range(0, lines, LINES_AT_A_TIME):
            count = min(LINES_AT_A_TIME, lines - start)
            item = (items * rng.random(count) ** 1.5).astype(int)
            user = (users * rng.random(count) ** 1.3).astype(int)
            frame = pl.DataFrame(
                {
                    "rating": rng.integers(1, 6, size=count).astype(float),
                    "title": texts.gather(rng.integers(len(texts), size=count)).str.slice(0, 20),
                    "text": texts.gather(rng.integers(len(texts), size=count)),
                    "asin": pl.Series(item).cast(pl.String).str.pad_start(10, "B"),
                    "parent_asin": pl.Series(item).cast(pl.String).str.pad_start(10, "B"),
                    "user_id": pl.Series(user).cast(pl.String).str.pad_start(28, "A"),
                    "timestamp": 1_500_000_000_000 + rng.integers(10**11, size=count),
                    "verified_purchase": rng.random(count) < 0.9,
                }
            )
            stream.write(frame.write_ndjson().encode())
    with (folder / "meta_Log.jsonl").open("w", encoding="utf-8") as meta:
        for item in range(items):
            words = [str(word) for word in rng.choice(WORDS, size=14)]
            record = {
                "parent_asin": str(item).rjust(10, "B"),
                "title": " ".join(words[:4]).title(),
                "main_category": "Musical Instruments",
                "categories": ["Musical Instruments", words[4].title(), words[5].title()],
                "store": words[6].title(),
                "features": [],
                "description": [" ".join(words[7:])],
            }
            meta.write(json.dumps(record) + "\n")


def prepare(folder: Path, run_dir: Path, core: int = 5) -> dict:
    """Manifest and statistics of one run of the recipe."""
    command = [sys.executable, str(ROOT / "recipes" / "prepare.py"), "--run_dir", str(run_dir)]
    command += ["--format", "amazon-2023", "--source", str(folder), "--core", str(core)]
    # Through a shell that starts it as a child: a process begins with the peak memory of the one that it replaces.
    subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *command], check=True)
    data = run_dir / "data"
    statistics = json.loads((data / "statistics.json").read_text(encoding="utf-8"))
    return json.loads((data / "manifest.json").read_text(encoding="utf-8")) | {"statistics": statistics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--plain", action="store_true", help="no gzip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="align3gr-") as temporary:
        folder = Path(temporary)
        write_category(folder / "raw", options.lines, not options.plain)
        size = sum(path.stat().st_size for path in (folder / "raw").iterdir())
        made = prepare(folder / "raw", folder / "run")
        kept = made["statistics"]["interactions"]
        print(f"{options.lines:,} lines, {size / 2**20:,.0f} MiB: {made['seconds']:.0f} s, ", end="")
        print(f"peak memory {made['peak_memory_mb']:,} MiB, {kept:,} interactions in the 5-core")


if __name__ == "__main__":
    main()
