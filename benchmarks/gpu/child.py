"""One part in a process of its own: what it allocates is gone with it, and its end is nobody else's.

python -m benchmarks.gpu.child PART FILE [--tiny]
"""

import argparse
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "polars", "numpy", "triton")


def run_part(name: str, tiny: bool, path: Path | None = None) -> dict[str, Any]:
    """Status ("done", "incomplete", "skipped" or "failed"), reason, seconds, figures and notes of a part.

    A package that is missing skips the part; any other error fails it. Both keep the figures taken before.
    """
    start = time.perf_counter()
    status, reason = "failed", ""
    values: dict[str, Any] = {}
    notes: dict[str, str] = {}
    try:
        from benchmarks.gpu.figures import Figures, Skipped, one_line
        from benchmarks.gpu.setting import Setting

        part = importlib.import_module(f"benchmarks.gpu.{name}")
        figures = Figures(path)
        values, notes = figures.values, figures.notes
        try:
            part.measure(Setting.here(tiny), figures)
            status = "incomplete" if notes else "done"
        except Skipped as skipped:
            status, reason = "skipped", str(skipped)
        except ModuleNotFoundError as error:
            status, reason = "skipped", str(error)
        except Exception as error:
            traceback.print_exc()
            status, reason = "failed", one_line(error)
    except ImportError as error:  # also what an older version of a package lacks
        traceback.print_exc()
        status, reason = "skipped", str(error).splitlines()[0]
    return {
        "status": status,
        "reason": reason,
        "seconds": time.perf_counter() - start,
        "figures": values,
        "notes": notes,
    }


def environment() -> dict[str, Any]:
    """What the figures were taken with."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    found: dict[str, Any] = {"python": platform.python_version(), "versions": versions, "device": "CPU"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("file", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    if options.tiny:  # on a CPU, where one thread is what the other benchmarks measure
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    result = run_part(options.part, options.tiny, options.file)
    try:
        result["environment"] = environment()
    except ImportError as error:
        result["reason"] = result["reason"] or str(error)
    options.file.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
