"""What became of each stage of preference training in a table of runs."""

from collections.abc import Mapping
from typing import Any

_HEADINGS = (
    "row",
    "seed",
    "stage",
    "rows",
    "mean N",
    "codes shared",
    "accuracy at start",
    "first loss",
    "validation",
    "before",
    "after",
    "recall@10 before",
    "after",
    "decision",
)
_TEXT = {"row", "stage", "codes shared", "validation", "decision"}
RECALL = "recall@10"


def stages_table(results: Mapping[str, Mapping[int, Mapping[str, Any]]], split: str) -> str:
    """A Markdown table with one line a row, seed and stage; "" where no cell has a stage of preference training.

    Args:
        results: row -> seed -> contents of its `cell.json`.
        split: targets that the cells are judged on.
    """
    lines = [
        line
        for row, cells in results.items()
        for seed, result in sorted(cells.items())
        if "curriculum" in result
        for line in _cell_lines(row, seed, result)
    ]
    if not lines:
        return ""
    headings = (*_HEADINGS, f"last policy, {split} recall@10")
    rule = "|" + "".join("---|" if name in _TEXT else "---:|" for name in headings)
    about = (
        "Stages of preference training. `codes shared`: share of the rejected with 0, 1, ... codes in common with the "
        "chosen item. `before` and `after`: the validation metric that decides, of the policy that a stage starts "
        "from and of the one it ends with. The last column judges what the last stage ended with, kept or not."
    )
    return "\n".join(["", about, "", f"| {' | '.join(headings)} |", rule, *lines]) + "\n"


def _cell_lines(row: str, seed: int, result: Mapping[str, Any]) -> list[str]:
    curriculum, lines = result["curriculum"], []
    metric, trained = curriculum["metric"], [n for n, s in enumerate(curriculum["stages"]) if s["after"] is not None]
    for number, stage in enumerate(curriculum["stages"]):
        after = stage["after"] or {}
        last = (result["last_policy"] or {}) if trained and number == trained[-1] else {}
        shared = stage.get("prefix_lengths", {})
        cells = [row, str(seed), stage["name"], f"{stage['rows']:,}", _number(stage.get("mean_rejected"), 1)]
        cells += [" / ".join(_number(share, 2) for share in shared.values()) or "-"]
        cells += [_number(stage.get("start_accuracy"), 2), _number(stage.get("first_loss"), 3), metric]
        cells += [_number(values.get(name)) for name in (metric, RECALL) for values in (stage["before"], after)]
        cells += [stage["decision"], _number(last.get("seen_allowed", {}).get(RECALL))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
