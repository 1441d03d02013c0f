"""Results of a run as Markdown: one row a system, one row a stage."""

from collections.abc import Mapping, Sequence
from typing import Any

# Heading of the table, column of the evaluation, metric.
_CELLS = (
    ("R@5", "seen_allowed", "recall@5"),
    ("R@10", "seen_allowed", "recall@10"),
    ("N@5", "seen_allowed", "ndcg@5"),
    ("N@10", "seen_allowed", "ndcg@10"),
    ("masked R@10", "seen_masked", "recall@10"),
    ("masked N@10", "seen_masked", "ndcg@10"),
    ("discoveries R@10", "discoveries", "recall@10"),
    ("discoveries N@10", "discoveries", "ndcg@10"),
    ("repeats R@10", "seen_allowed_repeats", "recall@10"),
    ("liked R@10", "seen_allowed_liked", "recall@10"),
)


def metrics_table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A Markdown table with one row a system.

    The first four columns allow items of the history; "masked" hides them and counts a repeated target as a miss;
    "discoveries" are the masked lists of users whose target is new to them, "repeats" the first lists of the others.

    Args:
        rows: for each system its columns as [`three_columns`] gives them; a missing column or metric leaves a dash.
    """
    cells = [cell for cell in _CELLS if any(cell[1] in columns for columns in rows.values())]
    lines = ["| | " + " | ".join(heading for heading, _, _ in cells) + " | users |"]
    lines.append("|---|" + "---:|" * (len(cells) + 1))
    for name, columns in rows.items():
        values = [_number(columns.get(column, {}).get(metric)) for _, column, metric in cells]
        users = columns.get("seen_allowed", {}).get("users")
        lines.append(f"| {name} | " + " | ".join(values) + f" | {'-' if users is None else f'{users:,.0f}'} |")
    return "\n".join(lines) + "\n"


def stages_table(manifests: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of what each stage cost, from the stages' manifests."""
    lines = ["| stage | command | seed | seconds | peak memory (MB) |", "|---|---|---:|---:|---:|"]
    for manifest in manifests:
        seed = "-" if manifest["seed"] is None else manifest["seed"]
        lines.append(
            f"| {manifest['stage']} | `{manifest['command']}` | {seed} | {manifest['seconds']:,.0f}"
            f"{' (resumed)' if manifest.get('resumed') else ''} | "
            f"{manifest['peak_memory_mb']:,} |"
        )
    total = sum(manifest["seconds"] for manifest in manifests)
    return "\n".join([*lines, f"| all | | | {total:,.0f} | |"]) + "\n"


def curriculum_table(curriculum: Mapping[str, Any]) -> str:
    """A Markdown table of the preference stages: what they trained on and what became of validation Recall."""
    lines = [
        "| stage | rows | rejected a row | from the beam | loss, first | loss, last | validation R@10 | decision |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
        f"| before | | | | | | {curriculum['initial']['metrics']['recall@10']:.4f} | |",
    ]
    for stage in curriculum["stages"]:
        statistics = stage["statistics"]
        recall = _number(stage.get("metrics", {}).get("recall@10"))
        lines.append(
            f"| {stage['name']} | {stage['rows']:,} | {_number(statistics.get('mean_rejected'), 1)} | "
            f"{_number(statistics.get('beam_share'), 2)} | {_number(stage.get('first_loss'), 3)} | "
            f"{_number(stage.get('last_loss'), 3)} | {recall} | {stage['decision']} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
