"""Sections of a run's report on what came out: metrics beside the baselines, lost levels, lineage."""

import json
from collections.abc import Mapping
from typing import Any

from align3gr.evaluation.report import (
    beyond_accuracy_table,
    metrics_table,
    ranking_table,
    segments_table,
    shown_length,
)
from align3gr.pipeline import STAGES, public_settings
from align3gr.report.html_page import folded, from_markdown, paragraph, table
from align3gr.report.run_files import RunFiles
from align3gr.report.svg import bar_chart

_MEASURED = "recall@10"


def results_section(run: RunFiles) -> str:
    """All systems of the evaluation, baselines first, under every protocol."""
    results = run.json("evaluate", "results.json") or {}
    seen = {name: columns["seen_allowed"] for name, columns in results.items()}
    metric = _MEASURED if all(_MEASURED in columns for columns in seen.values()) else None
    parts = [paragraph("Every metric ranks the whole catalogue for the users of the test split.", "note")]
    if metric:
        parts += ["<h3>Recall@10, seen items allowed</h3>"]
        parts.append(bar_chart({name: {metric: columns[metric]} for name, columns in seen.items()}, digits=4))
    parts += ["<h3>Metrics</h3>", from_markdown(metrics_table(results))]
    parts.append(
        paragraph(
            "R is Recall, N is NDCG. The first four columns allow items of the history; 'masked' hides them and "
            "counts a repeated target as a miss; 'discoveries' are the masked lists of users whose target is new to "
            "them, 'repeats' the first lists of the others.",
            "note",
        )
    )
    length = shown_length(results)
    if length is not None:
        parts += ["<h3>Beyond accuracy</h3>", from_markdown(beyond_accuracy_table(results, length))]
    parts += ["<h3>By segment</h3>", from_markdown(segments_table(results))]
    return "".join([*parts, "<h3>Speed</h3>", from_markdown(ranking_table(results))])


def levels_section(run: RunFiles) -> str:
    """At which level of the SCID the search lost the targets that are in no list."""
    results = run.json("evaluate", "results.json") or {}
    lost = {name: columns["lost_levels"] for name, columns in results.items() if columns.get("lost_levels")}
    if not lost:
        return paragraph("The evaluation says nothing of levels.", "missing")
    levels = [key for key in next(iter(lost.values())) if key != "users"]
    rows = {name: {_lost_at(level, levels): shares[level] for level in levels[:-1]} for name, shares in lost.items()}
    if any(shares[levels[-1]] for shares in lost.values()):
        for name, shares in lost.items():
            rows[name][_lost_at(levels[-1], levels)] = shares[levels[-1]]
    users = [[name, f"{shares['users']:,}"] for name, shares in lost.items()]
    return (
        paragraph(
            "Targets that are not in a system's longest list. 'Lost at level 1': no item of the list shares the "
            "target's first code; 'lost at level 2': some item shares the first code, none the first two."
        )
        + bar_chart(rows, top=1.0)
        + table(["", "lost targets"], users)
    )


def _lost_at(level: str, levels: list[str]) -> str:
    return f"lost at level {int(level) + 1}" if level != levels[-1] else "another item of the same SCID"


def lineage_section(run: RunFiles) -> str:
    """What each stage was made with and from: settings, seeds, hashes of the inputs, versions, cost."""
    costs, inputs, folds = [], [], []
    for name in STAGES:
        manifest = run.manifests.get(name)
        if manifest is None:
            costs.append([name, run.state(name), "", "", "", "", ""])
            continue
        resumed = " (resumed)" if manifest.get("resumed") else ""
        seed = "-" if manifest.get("seed") is None else manifest["seed"]
        costs.append(
            [
                name,
                "finished",
                seed,
                f"{manifest.get('seconds', 0):,.0f}{resumed}",
                f"{manifest.get('peak_memory_mb', 0):,}",
                manifest.get("processes", 1),
                manifest.get("command", "-"),
            ]
        )
        inputs += [[name, path, digest] for path, digest in manifest.get("inputs", {}).items()]
        folds.append(folded(f"Settings of {name}", json.dumps(public_settings(manifest["settings"]), indent=1)))
    head = ["stage", "state", "seed", "seconds", "peak memory (MB)", "processes", "command"]
    return (
        table(head, costs, words=True)
        + "<h3>Versions</h3>"
        + table(["stage", *(names := _packages(run))], _versions(run, names))
        + "<h3>Settings</h3>"
        + "".join(folds)
        + "<h3>Inputs of the stages (SHA-256)</h3>"
        + table(["stage", "input", "hash"], inputs, words=True)
    )


def _packages(run: RunFiles) -> list[str]:
    return list(dict.fromkeys(name for manifest in run.manifests.values() for name in manifest.get("versions", {})))


def _versions(run: RunFiles, names: list[str]) -> list[list[Any]]:
    def row(manifest: Mapping[str, Any]) -> list[Any]:
        return [manifest.get("versions", {}).get(name, "-") for name in names]

    return [[name, *row(manifest)] for name, manifest in run.manifests.items()]
