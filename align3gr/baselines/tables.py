"""A study as Markdown: what each system reaches beside published rows, and how it was tuned."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align3gr.baselines.published import NOTE, PublishedRow
from align3gr.baselines.settings import StudySettings

FAIR_SHARE = 0.5  # of its published Recall@10; a baseline below it needs an explanation that was tested
# Heading, column of the evaluation, metric.
_CELLS = tuple(
    (f"{prefix}{metric[0].upper()}@{metric.rpartition('@')[2]}", column, metric)
    for prefix, column, metrics in (
        ("", "seen_allowed", ("recall@5", "recall@10", "ndcg@5", "ndcg@10")),
        ("masked ", "seen_masked", ("recall@5", "recall@10", "ndcg@5", "ndcg@10")),
        ("discoveries ", "discoveries", ("recall@10", "ndcg@10")),
    )
    for metric in metrics
)
# Shown where the lists of a system are long enough, as the two-tower retriever's.
_LONG_CELLS = (("R@100", "seen_allowed", "recall@100"), ("masked R@100", "seen_masked", "recall@100"))


def over_seeds(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Final runs of one system -> means in the form of the evaluation's results, and beside them `sd` in the same
    form (n - 1; without it for one run) and `seeds`.

    Args:
        cells: the records of the runs, one a seed.
    """
    results = [cell["results"] for cell in cells]
    row = _combine(results, np.mean)
    if len(results) > 1:
        row["sd"] = _combine(results, lambda values: np.std(values, ddof=1))
    row["seeds"] = [cell["seed"] for cell in cells]
    return row


def results_table(rows: Mapping[str, Mapping[str, Any]], published: Sequence[PublishedRow] = ()) -> str:
    """A Markdown table, mean ± standard deviation over seeds; a dash where a row has no value.

    Args:
        rows: for each system what [`over_seeds`] says.
        published: further rows.
    """
    long = [cell for cell in _LONG_CELLS if any(cell[2] in row.get(cell[1], {}) for row in rows.values())]
    cells = [*_CELLS, *long]
    lines = ["| | " + " | ".join(heading for heading, _, _ in cells) + " | runs |"]
    lines.append("|---|" + "---:|" * (len(cells) + 1))
    for name, row in rows.items():
        values = [_cell(row, column, metric) for _, column, metric in cells]
        lines.append(f"| {name} | " + " | ".join(values) + f" | {len(row['seeds'])} |")
    for one in published:
        values = [_cell(one.columns(), column, metric) for _, column, metric in cells]
        lines.append(f"| *{one.name}, published* | " + " | ".join(values) + " | - |")
    return "\n".join(lines) + "\n" + (f"\n{NOTE}\n" if published else "")


def fair_play(rows: Mapping[str, Mapping[str, Any]], published: Sequence[PublishedRow]) -> str:
    """Each system's Recall@10 as a share of what was published for it, under the masking of its paper.

    A comparison with a baseline that was run badly says nothing, so one below [`FAIR_SHARE`] is named.

    Args:
        rows: for each system what [`over_seeds`] says.
        published: rows of the same data set.

    Returns:
        Two sentences; empty where no system has a published row.
    """
    shares = {}
    for one in published:
        ((column, values),) = one.columns().items()
        found = rows.get(one.name, {}).get(column, {}).get("recall@10")
        if found is not None:
            shares[one.name] = found / values["recall@10"]
    if not shares:
        return ""
    low = [name for name, share in shares.items() if share < FAIR_SHARE]
    listed = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return (
        f"Recall@10 as a share of the published, under its masking: {listed}. "
        f"Below {FAIR_SHARE:g}: {', '.join(low) or 'none'}.\n"
    )


def how_tuned(settings: StudySettings) -> str:
    """What was tuned by what, and how often the chosen setting was run, as a sentence.

    Args:
        settings: of the study.
    """
    how = "Not tuned: the default settings"
    if settings.trials:
        how = (
            f"Tuned on validation by the mean {settings.select_by} of {' and '.join(settings.select_on)}: at most "
            f"{settings.trials} settings and {settings.tuning_seconds:,.0f} CPU seconds a system, then the chosen "
            "setting"
        )
    seeds = ", ".join(map(str, settings.seeds))
    return f"{how} with seeds {seeds} where anything is random (mean ± standard deviation).\n"


def tuning_table(tuned: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of how each system came to its setting, and what it costs.

    Args:
        tuned: for each system `chosen` (its best trial, or the setting that was not tuned), `trials`,
            `tuning_seconds` and `finals` (its final runs).
    """
    lines = [
        "| | chosen setting | trials | CPU s | validation | best epoch | fit, CPU s | peak memory (MB) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, facts in tuned.items():
        setting = ", ".join(f"{key} {value}" for key, value in facts["chosen"]["setting"].items()) or "-"
        finals = facts["finals"]
        value = "-" if facts["chosen"]["value"] is None else f"{facts['chosen']['value']:.4f}"
        epochs = ", ".join(str(cell["best_epoch"]) for cell in finals if "best_epoch" in cell) or "-"
        lines.append(
            f"| {name} | {setting} | {facts['trials']} | {facts['tuning_seconds']:,.0f} | "
            f"{value} | {epochs} | {np.mean([cell['fit_seconds'] for cell in finals]):,.1f} | "
            f"{max(cell['peak_memory_mb'] for cell in finals):,} |"
        )
    return "\n".join(lines) + "\n"


def _combine(results: Sequence[Any], function: Any) -> Any:
    """The same tree with each leaf combined over the results; None where a leaf is None in one of them."""
    if isinstance(results[0], Mapping):
        return {key: _combine([result[key] for result in results], function) for key in results[0]}
    return None if any(value is None for value in results) else float(function(results))


def _cell(row: Mapping[str, Any], column: str, metric: str) -> str:
    value = row.get(column, {}).get(metric)
    if value is None:
        return "-"
    return f"{value:.4f} ± {row['sd'][column][metric]:.4f}" if "sd" in row else f"{value:.4f}"
