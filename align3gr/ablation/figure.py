"""Rows of a table as steps, each on top of the one before: Figure 4 of the paper, chance marked as such."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNIFICANT = 0.05
_START, _CLEAR, _CHANCE, _SEED = "#BBBBBB", "#4477AA", "#A9C4DE", "#222222"


@dataclass(frozen=True)
class Step:
    """One bar.

    Attributes:
        name: of the row.
        values: the metric of each seed.
        gain: mean difference to the step before over the seeds that both have; None for the first one, and where
            they have none in common.
        p: of this difference, see `p_value`.
        total: mean difference to the first step.
        p_total: of that.
    """

    name: str
    values: Sequence[float]
    gain: float | None = None
    p: float | None = None
    total: float | None = None
    p_total: float | None = None

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.values) / len(self.values)


def p_value(difference: dict[str, Any]) -> float:
    """The p-value that a figure shows of a comparison of `write_table`.

    The paired t-test over seeds; with one seed, or where all seeds differ by the same, the largest of the tests over
    the users of a seed.
    """
    return difference["p_seeds"] if "p_seeds" in difference else max(difference["p_users"])


def draw_steps(steps: Sequence[Step], metric: str, folder: Path) -> "Figure":
    """Writes `figure.svg` and `figure.png`: a bar a step from 0 up, a dot a seed, and what each step adds.

    Steps are dark where they differ from the one before (p below `SIGNIFICANT`), pale where chance would do.

    Args:
        steps: those that are finished, at least one.
        metric: what is drawn, such as recall@10; in percent.
        folder: is there.

    Returns:
        The figure.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it keeps global state and may look for a screen.
    figure = Figure(figsize=(max(7.2, 1.6 + 1.35 * len(steps)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    top = 100 * max(max(step.values) for step in steps) or 1.0
    for place, step in enumerate(steps):
        axis.bar(place, 100 * step.mean, width=0.62, color=_colour(step))
        dots = [place + 0.09 * (number - (len(step.values) - 1) / 2) for number in range(len(step.values))]
        axis.plot(
            dots,
            [100 * value for value in step.values],
            "o",
            color=_SEED,
            markersize=3.6,
            markeredgecolor="white",
            markeredgewidth=0.5,
        )
        height = 100 * max(step.mean, *step.values)
        axis.text(place, height + 0.02 * top, _label(step), ha="center", va="bottom", fontsize=9, linespacing=1.35)
    axis.set_xticks(range(len(steps)), [textwrap.fill(step.name, 15) for step in steps], fontsize=9)
    axis.set_ylim(0, 1.22 * top)
    axis.set_ylabel(f"{metric.capitalize()} (%)")
    axis.spines[["top", "right"]].set_visible(False)
    _add_legend(axis, max(len(step.values) for step in steps))
    # Without version, date and random names the files are the same for the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "align3gr"}):
        for name, metadata in (("figure.svg", {"Date": None, "Creator": None}), ("figure.png", {"Software": None})):
            partial = folder / f"{name}.partial"
            figure.savefig(partial, format=name[-3:], dpi=120, metadata=metadata)
            partial.replace(folder / name)
    return figure


def steps_table(steps: Sequence[Step], metric: str) -> str:
    """The numbers of the figure as a Markdown table.

    Args:
        steps: those that are finished.
        metric: what is drawn.
    """
    if not steps:
        return ""
    about = (
        f"Steps of the figure, {metric} with seen items allowed. p: paired t-test over seeds; with one seed, or where "
        "all seeds differ by the same, the largest of the tests over the users of a seed."
    )
    lines = [f"| step | {metric} | over the step before | p | over the first | p |", "|---|---:|---:|---:|---:|---:|"]
    for step in steps:
        numbers = [_signed(step.gain), _p(step.p), _signed(step.total), _p(step.p_total)]
        lines.append(f"| {step.name} | {step.mean:.4f} | {' | '.join(numbers)} |")
    return "\n".join(["", about, "", *lines]) + "\n"


def _colour(step: Step) -> str:
    if step.gain is None:
        return _START
    return _CLEAR if step.p is not None and step.p < SIGNIFICANT else _CHANCE


def _label(step: Step) -> str:
    if step.gain is None:
        return f"{100 * step.mean:.2f}"
    return f"{100 * step.mean:.2f}\n{100 * step.gain:+.2f}, p {_p(step.p)}"


def _add_legend(axis: Any, seeds: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [
        Patch(color=_CLEAR, label=f"differs from the step before, p < {SIGNIFICANT}"),
        Patch(color=_CHANCE, label="may be chance"),
        Line2D([], [], color=_SEED, marker="o", linestyle="", markersize=3.2, label="a seed"),
    ]
    axis.legend(
        handles=entries if seeds > 1 else entries[:2],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        frameon=False,
        fontsize=9,
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
