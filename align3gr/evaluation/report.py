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
    ("disliked R@10", "seen_allowed_disliked", "recall@10"),
)

# Heading of the second table, metric, digits.
_BEYOND = (
    ("coverage", "coverage", 4),
    ("Gini", "gini", 4),
    ("mean train count", "popularity", 1),
    ("diversity (SCID)", "scid_diversity", 4),
    ("diversity (vectors)", "vector_diversity", 4),
    ("shows a disliked item", "disliked", 4),
)

# Metric of a preference stage on validation -> heading.
_VALIDATION = {
    "recall@10": "R@10",
    "seen_allowed_liked/recall@10": "liked R@10",
    "seen_allowed_disliked/recall@10": "disliked R@10",
}


def results_page(
    results: Mapping[str, Mapping[str, Any]],
    manifests: Sequence[Mapping[str, Any]],
    curricula: Sequence[Mapping[str, Any]] = (),
) -> str:
    """All tables of an evaluation.

    Args:
        results: [`FullEvaluation.results`].
        manifests: those of the stages before it.
        curricula: the records of the preference level.
    """
    length = shown_length(results)
    tables = [metrics_table(results)]
    if length is not None:
        tables.append(beyond_accuracy_table(results, length))
    tables.append(segments_table(results))
    tables += [curriculum_table(curriculum) for curriculum in curricula]
    return "\n".join([*tables, ranking_table(results), stages_table(manifests)])


def shown_length(results: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The length of the lists that [`beyond_accuracy_table`] shows: the largest up to 10, else the smallest.

    Args:
        results: [`FullEvaluation.results`].

    Returns:
        None where no system has `beyond_accuracy`: there is nothing to show.
    """
    lengths = {
        int(metric.partition("@")[2])
        for columns in results.values()
        for metric in columns.get("beyond_accuracy", {}).get("seen_allowed", {})
    }
    return max((k for k in lengths if k <= 10), default=min(lengths, default=None))


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


def beyond_accuracy_table(results: Mapping[str, Mapping[str, Any]], k: int = 10) -> str:
    """A Markdown table of what the lists of k items with seen items allowed are worth beside their hits.

    Args:
        results: [`FullEvaluation.results`]; systems without `beyond_accuracy`, and cells nobody has, are left out.
        k: length of the lists.
    """
    rows = {
        name: result["beyond_accuracy"]["seen_allowed"]
        for name, result in results.items()
        if "beyond_accuracy" in result
    }
    cells = [cell for cell in _BEYOND if any(row.get(f"{cell[1]}@{k}") is not None for row in rows.values())]
    lines = [f"| lists of {k} | " + " | ".join(heading for heading, _, _ in cells) + " |"]
    lines.append("|---|" + "---:|" * len(cells))
    for name, row in rows.items():
        values = [_number(row.get(f"{metric}@{k}"), digits) for _, metric, digits in cells]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def segments_table(results: Mapping[str, Mapping[str, Any]], metric: str = "recall@10") -> str:
    """A Markdown table of one metric by segment, seen items allowed: one row a part, one column a system.

    The number of users is that of the first system; the last rows say at which SCID level targets outside the longest
    list were lost.

    Args:
        results: [`FullEvaluation.results`]; systems without `segments` are left out.
        metric: what is shown, such as "ndcg@5".
    """
    systems = {name: result for name, result in results.items() if "segments" in result}
    lines = [f"| {_heading(metric)} | users | " + " | ".join(systems) + " |", "|---|" + "---:|" * (len(systems) + 1)]
    first: Mapping[str, Any] = next(iter(systems.values()), {"segments": {}})
    for segment, parts in first["segments"].items():
        for part, metrics in parts.items():
            values = [_number(s["segments"].get(segment, {}).get(part, {}).get(metric)) for s in systems.values()]
            lines.append(f"| {segment} {part} | {metrics['users']:,} | " + " | ".join(values) + " |")
    for level in [key for key in first.get("lost_levels", {}) if key != "users"]:
        values = [_number(s["lost_levels"].get(level)) for s in systems.values()]
        lines.append(f"| share of lost targets, {level} levels shared | | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def ranking_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of what the lists of each system took: both, with items of the history and without.

    Args:
        results: [`FullEvaluation.results`]; systems that say nothing of it are left out.
    """
    lines = ["| ranking | seconds | users/s |", "|---|---:|---:|"]
    for name, result in results.items():
        ranking = result.get("ranking", {})
        if "same_weights_as" in ranking:
            lines.append(f"| {name} | the weights of {ranking['same_weights_as']}, not ranked again | |")
        elif ranking:
            lines.append(f"| {name} | {ranking['seconds']:,.1f} | {ranking['users_per_second']:,.0f} |")
    return "\n".join(lines) + "\n"


def stages_table(manifests: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of what each stage cost, from the stages' manifests.

    Args:
        manifests: what each stage's `manifest.json` holds.
    """
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
    """A Markdown table of the preference stages: what they trained on and what became of validation Recall.

    Records of training on feedback also show Recall of liked targets, and how many lists show a disliked one.

    Args:
        curriculum: what `curriculum.json` holds.
    """
    metrics = [name for name in _VALIDATION if name in curriculum["initial"]["metrics"]]
    headings = "".join(f" | validation {_VALIDATION[name]}" for name in metrics)
    lines = [
        f"| stage | rows | rejected a row | generated | loss, first | loss, last{headings} | decision |",
        "|---|---:|---:|---:|---:|---:|" + "---:|" * len(metrics) + "---|",
        f"| before | | | | | | {_values(curriculum['initial'], metrics)} | |",
    ]
    for stage in curriculum["stages"]:
        statistics = stage["statistics"]
        generated = statistics.get("beam_share", statistics.get("generated_share"))
        lines.append(
            f"| {stage['name']} | {stage['rows']:,} | {_number(statistics.get('mean_rejected'), 1)} | "
            f"{_number(generated, 2)} | {_number(stage.get('first_loss'), 3)} | "
            f"{_number(stage.get('last_loss'), 3)} | {_values(stage, metrics)} | {stage['decision']} |"
        )
    return "\n".join(lines) + "\n"


def _values(stage: Mapping[str, Any], metrics: Sequence[str]) -> str:
    return " | ".join(_number(stage.get("metrics", {}).get(name)) for name in metrics)


def _heading(metric: str) -> str:
    """`recall@10` -> `R@10`, as in the first table."""
    name, _, k = metric.partition("@")
    return f"{name[0].upper()}@{k}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
