"""What the codes of the rows are like, in tables whose rows have codes of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_HEADINGS = (
    "row",
    "codes a level",
    "used",
    "perplexity",
    "shared before, %",
    "shared after, %",
    "lift",
    "AUC",
    "user SCIDs",
    "minutes",
)
_ABOUT = (
    "Codes of the rows, mean over seeds. `used` and `perplexity`: of each level. `shared`: items whose codes are "
    "those of another item too, before and after they are made unique. `lift`: how much more often two items of one "
    "history share their first code than any two items do. `AUC`: of held-out train pairs of a user and an item, "
    "against random items. `user SCIDs`: distinct ones, of all users."
)


def codes_summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The mean over seeds of what `codes_record` gave; None without any.

    Args:
        records: of the cells of one row.
    """
    if not records:
        return None
    levels = {len(record["sizes"]) for record in records}
    # An extra level appears where one seed has a collision and another has none; their levels have no mean then.
    lists = ("sizes", "used", "perplexity") if len(levels) == 1 else ()
    summary: dict[str, Any] = {
        name: np.mean([record[name] for record in records], axis=0).tolist() if name in lists else []
        for name in ("sizes", "used", "perplexity")
    }
    for name in ("shared_before", "shared_after", "lift", "auc", "user_codes", "users", "seconds"):
        values = [record[name] for record in records if record[name] is not None]
        summary[name] = float(np.mean(values)) if values else None
    return summary


def codes_table(summaries: Mapping[str, Mapping[str, Any] | None]) -> str:
    """A Markdown table with one line a row of which a cell is finished; "" where there is none.

    Args:
        summaries: row -> its `codes_summary`.
    """
    lines = [_line(row, summary) for row, summary in summaries.items() if summary is not None]
    if not lines:
        return ""
    rule = "|---|---|" + "---:|" * (len(_HEADINGS) - 2)
    return "\n".join(["", _ABOUT, "", f"| {' | '.join(_HEADINGS)} |", rule, *lines]) + "\n"


def _line(row: str, codes: Mapping[str, Any]) -> str:
    cells = [row, _levels(codes["sizes"], "{:.0f}", " x "), _levels(codes["used"], "{:.0f}")]
    cells += [_levels(codes["perplexity"], "{:.1f}")]
    cells += [_number(codes[name], "{:.1f}", 100) for name in ("shared_before", "shared_after")]
    cells += [_number(codes["lift"], "{:.2f}"), _number(codes["auc"], "{:.3f}")]
    cells += [f"{codes['user_codes']:,.0f} of {codes['users']:,.0f}" if codes["user_codes"] else "-"]
    cells += [_number(codes["seconds"], "{:.1f}", 1 / 60)]
    return f"| {' | '.join(cells)} |"


def _levels(values: Sequence[float], form: str, between: str = " / ") -> str:
    return between.join(form.format(value) for value in values) or "-"


def _number(value: float | None, form: str, scale: float = 1) -> str:
    return "-" if value is None else form.format(value * scale)
