"""The table of an ablation: mean and spread over seeds, and what each row adds to the one before."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align3gr.ablation.cells import CELL_FILE, AblationArguments, Cell
from align3gr.ablation.codes_table import codes_summary, codes_table
from align3gr.ablation.exports import cells_csv, rows_csv, settings_json
from align3gr.ablation.figure import Step, draw_steps, p_value, steps_table
from align3gr.ablation.stages_table import stages_table
from align3gr.evaluation import PER_USER_FILE, compare, seeds_test
from align3gr.record import NOT_FINISHED

# What of a table is published in its record, the page first.
PUBLISHED_FILES = ("table.md", "table.csv", "cells.csv", "settings.json", "figure.svg")
COLUMN = "seen_allowed"
# Heading -> column of the evaluation and metric.
METRICS = {name: (COLUMN, name) for name in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")}
METRICS |= {
    "masked recall@10": ("seen_masked", "recall@10"),
    "discoveries recall@10": ("discoveries", "recall@10"),
    "repeats recall@10": ("seen_allowed_repeats", "recall@10"),
    "liked recall@10": ("seen_allowed_liked", "recall@10"),
    "disliked recall@10": ("seen_allowed_disliked", "recall@10"),
    "shows a disliked item @10": ("beyond_accuracy", "disliked@10"),
    "five latest, then it recall@10": ("latest_then", "recall@10"),
    "five latest, then it ndcg@10": ("latest_then", "ndcg@10"),
    "with history cache recall@10": ("history_cache", "recall@10"),
    "with history cache ndcg@10": ("history_cache", "ndcg@10"),
}


def write_table(folder: Path, arguments: AblationArguments, cells: Sequence[Cell]) -> None:
    """Writes `table.md`, `table.json`, `table.csv`, `cells.csv` and `settings.json`, of all rows.

    With `figure` in the arguments also `figure.svg` and `figure.png`.

    Args:
        folder: of the table.
        arguments: what the table is of.
        cells: all its cells, finished or not.
    """
    rows = [_row(name, [cell for cell in cells if cell.row == name]) for name in arguments.rows]
    by_name = {row["name"]: row for row in rows}
    for row in rows[1:]:
        if (difference := _difference(row, by_name[arguments.against(row["name"])])) is not None:
            row["difference"] = difference
    steps = [] if arguments.figure is None else _steps(rows, arguments.figure)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"table.md": _page(rows, arguments, steps), "table.json": json.dumps(_plain(rows), indent=2) + "\n"}
    files |= {"table.csv": rows_csv(rows, list(METRICS)), "cells.csv": cells_csv(rows, METRICS)}
    files |= {"settings.json": settings_json(arguments, cells)}
    for name, content in files.items():
        partial = folder / f"{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)
    if steps and arguments.figure is not None:
        draw_steps(steps, arguments.figure, folder)


def _page(rows: Sequence[dict[str, Any]], arguments: AblationArguments, steps: Sequence[Step]) -> str:
    # Columns that no cell has say nothing of this data: nobody comes back, or nothing is rated.
    shown = [name for name in METRICS if any(name in row["mean"] for row in rows)] or list(METRICS)[:5]
    lines = [f"| | {' | '.join(shown)} | seeds | recall@10 against | minutes a cell |"]
    lines.append("|---|" + "---:|" * (len(shown) + 1) + "---|---:|")
    lines += [_line(row, shown, len(arguments.seeds)) for row in rows]
    missing = [
        f"{row['name']} ({len(row['seeds'])} of {len(arguments.seeds)} seeds)"
        for row in rows
        if _is_short(row, arguments)
    ]
    text = f"Judged on {arguments.split} targets, seen items allowed; mean ± standard deviation over seeds.\n\n"
    text += "\n".join(lines) + "\n"
    if missing:
        text += f"\n{NOT_FINISHED}: {', '.join(missing)}.\n"
    if arguments.split == "validation" and any(row["seeds"] for row in rows):
        best = max((row for row in rows if row["seeds"]), key=lambda row: row["mean"]["recall@10"])
        text += f"\nBest on validation: {best['name']}.\n"
    if arguments.figure is not None:
        text += steps_table(steps, arguments.figure)
    if any(arguments.has_codes(row) for row in arguments.rows):
        text += codes_table({row["name"]: row["codes"] for row in rows})
    results = {row["name"]: {seed: result for seed, (_, result) in row["cells"].items()} for row in rows}
    return text + stages_table(results, arguments.split)


def _row(name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    done = [(cell, cell.result) for cell in cells]
    found = {cell.seed: (cell.folder, result) for cell, result in done if result is not None}
    row: dict[str, Any] = {"name": name, "seeds": sorted(found), "cells": found, "mean": {}, "std": {}}
    records = [result["codes"] for _, result in found.values() if "codes" in result]
    row["codes"] = codes_summary(records)
    if found:
        columns = {name: _column(row, *METRICS[name]) for name in METRICS}
        values = {name: np.array(column) for name, column in columns.items() if None not in column}
        row["mean"] = {metric: float(value.mean()) for metric, value in values.items()}
        row["std"] = {metric: float(value.std(ddof=1)) if len(value) > 1 else None for metric, value in values.items()}
        seconds = [result["train_seconds"] + result["judge_seconds"] for _, result in found.values()]
        row["minutes"] = float(np.mean(seconds)) / 60
    return row


def _column(row: dict[str, Any], column: str, metric: str) -> list[float | None]:
    """One value a seed, None where it was not measured: no user is of that kind, or the cell is older."""
    found = [row["cells"][seed][1]["metrics"].get(column, {}) for seed in row["seeds"]]
    return [values.get(metric) if values.get("users", 1) else None for values in found]


def _of_seeds(row: dict[str, Any], metric: str, seeds: Sequence[int]) -> np.ndarray:
    return np.array([row["cells"][seed][1]["metrics"][COLUMN][metric] for seed in seeds])


def _difference(row: dict[str, Any], before: dict[str, Any], metric: str = "recall@10") -> dict[str, Any] | None:
    """Over the seeds that both have: the difference, and tests over seeds and over the users of each seed."""
    seeds = [seed for seed in row["seeds"] if seed in before["seeds"]]
    if not seeds:
        return None
    test = seeds_test(_of_seeds(row, metric, seeds), _of_seeds(before, metric, seeds))
    p_users = [
        compare(
            row["cells"][seed][0] / PER_USER_FILE,
            before["cells"][seed][0] / PER_USER_FILE,
            row["name"],
            before["name"],
            metric=metric,
        ).p_value
        for seed in seeds
    ]
    difference = {"against": before["name"], metric: test.difference, "seeds": seeds, "p_users": p_users}
    return difference | ({"p_seeds": test.t_p_value} if np.isfinite(test.t_p_value) else {})


def _steps(rows: Sequence[dict[str, Any]], metric: str) -> list[Step]:
    """The finished rows as steps, each compared with the finished one before it and with the first one."""
    done = [row for row in rows if row["seeds"]]
    steps = []
    for place, row in enumerate(done):
        values = _of_seeds(row, metric, row["seeds"]).tolist()
        gain, total = (
            _difference(row, before, metric) if place else None for before in (done[max(place - 1, 0)], done[0])
        )
        compared = [(found[metric], p_value(found)) if found else (None, None) for found in (gain, total)]
        steps.append(Step(row["name"], values, *compared[0], *compared[1]))
    return steps


def _line(row: dict[str, Any], shown: Sequence[str], seeds: int) -> str:
    cells = []
    for metric in shown:
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
