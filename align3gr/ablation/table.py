"""The table of an ablation: mean and spread over seeds, and what each row adds to the one before."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align3gr.ablation.cells import CELL_FILE, AblationArguments, Cell
from align3gr.evaluation import PER_USER_FILE, compare, seeds_test

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
COLUMN = "seen_allowed"


def write_table(folder: Path, arguments: AblationArguments, cells: Sequence[Cell]) -> None:
    """Writes `table.md` and `table.json`: all rows, those without cells too.

    Args:
        folder: of the table.
        arguments: what the table is of.
        cells: all its cells, finished or not.
    """
    rows = [_row(name, [cell for cell in cells if cell.row == name]) for name in arguments.rows]
    by_name = {row["name"]: row for row in rows}
    for row in rows[1:]:
        _compare(row, by_name[arguments.against(row["name"])])
    lines = [f"| | {' | '.join(METRICS)} | masked recall@10 | seeds | recall@10 against | minutes a cell |"]
    lines.append("|---|" + "---:|" * (len(METRICS) + 2) + "---|---:|")
    lines += [_line(row, len(arguments.seeds)) for row in rows]
    missing = [
        f"{row['name']} ({len(row['seeds'])} of {len(arguments.seeds)} seeds)"
        for row in rows
        if _is_short(row, arguments)
    ]
    text = f"Judged on {arguments.split} targets, seen items allowed; mean ± standard deviation over seeds.\n\n"
    text += "\n".join(lines) + "\n"
    if missing:
        text += f"\nNot finished: {', '.join(missing)}.\n"
    if arguments.split == "validation" and any(row["seeds"] for row in rows):
        best = max((row for row in rows if row["seeds"]), key=lambda row: row["mean"]["recall@10"])
        text += f"\nBest on validation: {best['name']}.\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("table.md", text), ("table.json", json.dumps(_plain(rows), indent=2) + "\n")):
        partial = folder / f"{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)


def _row(name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    done = [(cell, cell.result) for cell in cells]
    found = {cell.seed: (cell.folder, result) for cell, result in done if result is not None}
    row: dict[str, Any] = {"name": name, "seeds": sorted(found), "cells": found, "mean": {}, "std": {}}
    if found:
        values = {metric: _values(row, metric) for metric in METRICS}
        values["masked recall@10"] = np.array(
            [found[seed][1]["metrics"]["seen_masked"]["recall@10"] for seed in row["seeds"]]
        )
        row["mean"] = {metric: float(value.mean()) for metric, value in values.items()}
        row["std"] = {metric: float(value.std(ddof=1)) if len(value) > 1 else None for metric, value in values.items()}
        seconds = [result["train_seconds"] + result["judge_seconds"] for _, result in found.values()]
        row["minutes"] = float(np.mean(seconds)) / 60
    return row


def _values(row: dict[str, Any], metric: str, seeds: Sequence[int] | None = None) -> np.ndarray:
    chosen = row["seeds"] if seeds is None else seeds
    return np.array([row["cells"][seed][1]["metrics"][COLUMN][metric] for seed in chosen])


def _compare(row: dict[str, Any], before: dict[str, Any]) -> None:
    """Over the seeds that both have: the difference, and tests over seeds and over the users of each seed."""
    seeds = [seed for seed in row["seeds"] if seed in before["seeds"]]
    if not seeds:
        return
    test = seeds_test(_values(row, "recall@10", seeds), _values(before, "recall@10", seeds))
    p_users = [
        compare(
            row["cells"][seed][0] / PER_USER_FILE,
            before["cells"][seed][0] / PER_USER_FILE,
            row["name"],
            before["name"],
            metric="recall@10",
        ).p_value
        for seed in seeds
    ]
    row["difference"] = {"against": before["name"], "recall@10": test.difference, "seeds": seeds, "p_users": p_users}
    if np.isfinite(test.t_p_value):
        row["difference"]["p_seeds"] = test.t_p_value


def _line(row: dict[str, Any], seeds: int) -> str:
    cells = []
    for metric in (*METRICS, "masked recall@10"):
        if metric not in row["mean"]:
            cells.append("-")
            continue
        spread = row["std"][metric]
        cells.append(f"{row['mean'][metric]:.4f}" + ("" if spread is None else f" ± {spread:.4f}"))
    against = "-"
    if "difference" in row:
        difference = row["difference"]
        p = [f"p {difference['p_seeds']:.2g} over seeds"] if difference.get("p_seeds") is not None else []
        p.append("p " + ", ".join(f"{value:.2g}" for value in difference["p_users"]) + " over the users of each seed")
        against = f"{difference['against']}: {difference['recall@10']:+.4f} ({'; '.join(p)})"
    minutes = f"{row['minutes']:.1f}" if "minutes" in row else "-"
    return f"| {row['name']} | {' | '.join(cells)} | {len(row['seeds'])} of {seeds} | {against} | {minutes} |"


def _is_short(row: dict[str, Any], arguments: AblationArguments) -> bool:
    return len(row["seeds"]) < len(arguments.seeds)


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what cannot be JSON: the results of the cells stand in their folders."""
    return [
        {name: value for name, value in row.items() if name != "cells"}
        | {"cells": [str(Path(folder.parent.name, folder.name, CELL_FILE)) for folder, _ in row["cells"].values()]}
        for row in rows
    ]
