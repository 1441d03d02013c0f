"""Sections of a run's report on training: losses by stage, and what the stages of the curriculum were like."""

from collections.abc import Mapping, Sequence
from typing import Any

from align3gr.evaluation.report import curriculum_table
from align3gr.report.html_page import from_markdown, paragraph, table
from align3gr.report.run_files import RunFiles
from align3gr.report.svg import bar_chart, line_chart

TITLES = {"sp_dpo": "SP-DPO, self-play", "rf_dpo": "RF-DPO, feedback"}
_STATISTICS = {
    "prompts": "prompts",
    "dropped": "without rejected items",
    "known_positives": "known positives kept out",
    "logged_share": "rejected from the log",
    "start_accuracy": "told apart at the start",
    "start_accuracy_beam": "of the beam",
    "start_accuracy_filler": "of those drawn",
    "start_rank": "rank of the chosen one",
}


def training_section(run: RunFiles) -> str:
    """Losses of the token level, of fine-tuning and of the stages of preference training."""
    parts = []
    if "scid" in run.manifests:
        parts += ["<h3>Token level</h3>", _token_level(run)]
    if "sft" in run.manifests:
        parts += ["<h3>Fine-tuning</h3>", _fine_tuning(run)]
    for name in (name for name in TITLES if name in run.manifests):
        parts += [f"<h3>{TITLES[name]}</h3>", _preference(run, name)]
    return "".join(parts)


def curriculum_section(run: RunFiles) -> str:
    """For each preference stage: what it trained on, how hard that was, and what validation said."""
    parts = [
        paragraph(
            "The difficulty is measured before a stage trains: the share of its rejected items that the policy finds "
            "less probable than the chosen one, the lower the harder, and the rank of the chosen one among them.",
            "note",
        )
    ]
    for name, title in TITLES.items():
        record = run.json(name, "curriculum.json")
        if record is None:
            parts += [f"<h3>{title}</h3>", paragraph(f"Stage '{name}' is {run.state(name)}.", "missing")]
            continue
        stages = record["stages"]
        parts += [f"<h3>{title}</h3>", _difficulty(stages), from_markdown(curriculum_table(record))]
        shared = {stage["name"]: _prefixes(stage["statistics"]) for stage in stages if _prefixes(stage["statistics"])}
        if shared:
            parts += [paragraph("Levels of the SCID that rejected and chosen item share.", "note")]
            parts += [bar_chart(shared, top=1.0)]
        parts.append(
            paragraph(f"Kept in the end: {record['best']}, {record['settings']['metric']} {record['best_value']:.4f}.")
        )
    return "".join(parts)


def _difficulty(stages: Sequence[Mapping[str, Any]]) -> str:
    measured = [name for name in _STATISTICS if any(stage["statistics"].get(name) is not None for stage in stages)]
    rows = [[stage["name"], *(_figure(stage["statistics"].get(name)) for name in measured)] for stage in stages]
    return table(["stage", *(_STATISTICS[name] for name in measured)], rows)


def _prefixes(statistics: Mapping[str, Any]) -> dict[str, float]:
    return {f"{level} shared": share for level, share in statistics.get("prefix_lengths", {}).items()}


def _token_level(run: RunFiles) -> str:
    report = run.json("scid", "report.json") or {}
    log = report.get("log", [])
    losses, aucs = _by_phase(log, "loss"), _by_phase(log, "eval_auc")
    if not losses:
        return paragraph(
            "No training log in scid/report.json: these codes were not trained, or by an older version.", "note"
        )
    parts = [line_chart(losses, "epoch of the phase", "loss")]
    if aucs:
        parts.append(paragraph("AUC of user-item pairs that the train split holds out:", "note"))
        parts.append(line_chart(aucs, "epoch of the phase", "AUC"))
    return "".join(parts)


def _by_phase(log: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[tuple[float, float]]]:
    """Curves of a value by epoch; where the epochs of a phase begin again, so does a curve."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in (line for line in log if name in line):
        phase, part = f"phase {line['phase']}", 1
        curve = phase
        while f"{phase}, part {part + 1}" in curves:
            part += 1
            curve = f"{phase}, part {part}"
        if curve in curves and curves[curve][-1][0] >= line["epoch"]:
            curve = f"{phase}, part {part + 1}"
        curves.setdefault(curve, []).append((line["epoch"], line[name]))
    return curves


def _fine_tuning(run: RunFiles) -> str:
    log = run.json("sft", "log.json")
    if not log:
        return paragraph("No sft/log.json: nothing was trained, or by an older version.", "note")
    parts = [line_chart({"train loss": _losses(log)}, "step", "train loss")]
    measured = dict.fromkeys(name for line in log for name in line if name.startswith("eval_"))
    by_metric = {name: [(line.get("step", 0), line[name]) for line in log if name in line] for name in measured}
    shown = {name: points for name, points in by_metric.items() if name in ("eval_recall@10", "eval_ndcg@10")}
    if "eval_loss" in by_metric:
        parts.append(line_chart({"validation loss": by_metric["eval_loss"]}, "step", "validation loss"))
    if shown:
        parts.append(line_chart(shown, "step", "validation", from_zero=True))
    return "".join(parts)


def _preference(run: RunFiles, name: str) -> str:
    record = run.json(name, "curriculum.json")
    if record is None:
        return paragraph(f"No {name}/curriculum.json.", "note")
    lines, ends = {}, []
    for number, stage in enumerate(record["stages"]):
        if log := run.json(name, f"{number}-{stage['name']}", "log.json"):
            lines[stage["name"]] = _losses(log)
        elif "first_loss" in stage:
            ends.append([stage["name"], _figure(stage["first_loss"]), _figure(stage["last_loss"])])
    drawn = line_chart(lines, "step of the stage", "Softmax-DPO loss") if lines else ""
    if ends:
        drawn += paragraph("Stages of an older version kept the ends of their curves alone.", "note")
        drawn += table(["stage", "first loss", "last loss"], ends)
    return drawn or paragraph("No stage had enough rows to train on.", "note")


def _losses(log: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in log if "loss" in line]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
