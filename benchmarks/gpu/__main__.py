"""Runs the parts one after the other, each in its own process and time, and writes the table; see benchmarks/gpu.sh.

    python -m benchmarks.gpu [--tiny] [--only beam preference] [--output FOLDER] [--seconds 570]

After every part, and every few seconds while one runs, the files hold all that was measured so far.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.targets import PARTS, Row

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 5.0
Results = dict[str, dict[str, Any]]


def run_child(
    name: str, seconds: float, tiny: bool, folder: Path, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """One part in a process of its own, killed with all it started when its time is over.

    Args:
        name: of the part.
        seconds: that it may take.
        tiny: its small form.
        folder: for the file by which it answers.
        tell: is called with what there is so far.
    """
    file = folder / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.gpu.child", name, str(file), *(["--tiny"] if tiny else [])]
    started = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    status = None
    try:
        while child.poll() is None:
            left = seconds - (time.monotonic() - started)
            if left <= 0:
                status = "out of time"
                break
            try:
                child.wait(min(POLL_SECONDS, left))
            except subprocess.TimeoutExpired:
                tell(_read(file) | {"status": "running"})
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    result = _read(file)
    if status is None and "status" not in result:
        status = "failed"
        result["reason"] = f"its process ended with {child.returncode}"
    if status == "out of time":
        result["reason"] = f"not finished after {seconds:.0f} s"
    if status is not None:
        result |= {"status": status, "seconds": time.monotonic() - started}
    return result


def _read(file: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"figures": {}, "notes": {}, "reason": "", "seconds": 0.0}
    return empty | (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def write(results: Results, output: Path, tiny: bool) -> None:
    """`gpu.json` and `gpu.md`, or `gpu-tiny` of both, replaced as a whole."""
    name = "gpu-tiny" if tiny else "gpu"
    output.mkdir(parents=True, exist_ok=True)
    texts = {
        "json": json.dumps({"tiny": tiny, "parts": with_targets(results)}, indent=2) + "\n",
        "md": markdown(results, tiny),
    }
    for ending, text in texts.items():
        partial = output / f"{name}.{ending}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(output / f"{name}.{ending}")


def with_targets(results: Results) -> Results:
    """The results with the target beside each figure that has one."""
    told: Results = {}
    for name, result in results.items():
        rows = PARTS[name].rows
        targets = {
            figure: {
                "target": rows[figure].target,
                "better": rows[figure].better,
                "reached": rows[figure].reached(value),
            }
            for figure, value in result["figures"].items()
            if rows[figure].target is not None
        }
        told[name] = result | {"targets": targets}
    return told


def markdown(results: Results, tiny: bool) -> str:
    """A table a part."""
    found = next((result["environment"] for result in results.values() if "environment" in result), None)
    lines = ["# Measured on one GPU", ""]
    if tiny:
        lines += ["Tiny models and few rows, to see that every part runs: the figures mean nothing.", ""]
    if found:
        versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        memory = f", {found['memory_gib']} GiB" if "memory_gib" in found else ""
        lines += [f"{found['device']}{memory}; Python {found['python']}, {versions}", ""]
    for name, part in PARTS.items():
        lines += [f"## {part.title}", ""]
        result = results.get(name)
        if result is None:
            lines += ["not run", ""]
            continue
        reason = f": {result['reason']}" if result["reason"] else ""
        lines += [f"`{name}`, {result['status']}{reason}, {result['seconds']:.0f} s", ""]
        if result["figures"]:
            lines += ["| | measured | target | reached |", "|---|---:|---:|---|"]
            lines += [_line(row, result["figures"][key]) for key, row in part.rows.items() if key in result["figures"]]
            lines.append("")
        lines += [f"- no figures of {what}: {why}" for what, why in result["notes"].items()]
        lines += [""] if result["notes"] else []
    return "\n".join(lines)


def _line(row: Row, value: Any) -> str:
    reached = {None: "", True: "yes", False: "no"}[row.reached(value)]
    target = "" if row.target is None else f"{row.better} {row.target:g}"
    return f"| {row.title} | {value:,.{row.digits}f} | {target} | {reached} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a few layers and rows, on the CPU too")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="some of the parts")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results"),
        help="folder of the files; $OUT where it is set, else benchmarks/results",
    )
    parser.add_argument("--seconds", type=float, default=570.0, help="for all parts together")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    results: Results = {}

    def tell(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        write(results, options.output, options.tiny)

    with tempfile.TemporaryDirectory() as folder:
        for name in [name for name in PARTS if name in options.only]:
            seconds = min(PARTS[name].seconds, deadline - time.monotonic())
            if seconds < 5:
                skipped = {"status": "skipped", "reason": "no time was left", "seconds": 0.0}
                tell(name, skipped | {"figures": {}, "notes": {}})
                continue
            print(f"{name}: up to {seconds:.0f} s", file=sys.stderr, flush=True)
            tell(name, run_child(name, seconds, options.tiny, Path(folder), lambda so_far: tell(name, so_far)))  # noqa: B023
    print(markdown(results, options.tiny))
    print(json.dumps({name: result["figures"] for name, result in results.items()}))


if __name__ == "__main__":
    main()
