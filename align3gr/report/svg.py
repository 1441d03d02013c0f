"""Charts as SVG text that stands inside a page: no library in the browser, no file beside it, a few kilobytes each."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from align3gr.report.scid_plots import COLOURS

WIDTH = 680
MAX_POINTS = 300  # of a line; more cannot be seen at this width
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 12, 44
_BAR, _NAMES = 22, 310  # height of a bar's row, width of the names before it
_OTHERS = "#cccccc"

Line = Sequence[tuple[float, float]]


def line_chart(
    lines: Mapping[str, Line], x_label: str, y_label: str, from_zero: bool = False, height: int = 260
) -> str:
    """A chart with a line for each name.

    Args:
        lines: points of each line, x ascending; values that are not finite are left out.
        x_label, y_label: what the axes say.
        from_zero: the y axis begins at 0.
        height: in pixels.
    """
    drawn = {name: _finite(points) for name, points in lines.items()}
    points = [point for line in drawn.values() for point in line]
    if not points:
        return '<p class="missing">No finite value to draw.</p>'
    xs, ys = zip(*points, strict=True)
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(0.0 if from_zero else min(ys), max(ys))
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1e-9)
    low_y, high_y = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - _LEFT - _RIGHT)
        return across, height - _BOTTOM - (y - low_y) / (high_y - low_y) * (height - _TOP - _BOTTOM)

    parts = []
    for y in y_ticks:
        at = place(low_x, y)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_label(_LEFT - 6, at + 4, _short(y), "end"))
    for x in (x for x in x_ticks if low_x <= x <= high_x):
        parts.append(_label(place(x, low_y)[0], height - _BOTTOM + 16, _short(x), "middle"))
    parts.append(_label((_LEFT + WIDTH) / 2, height - 8, x_label, "middle"))
    parts.append(
        f'<text transform="translate(13 {(height - _BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
    )
    for colour, (name, line) in zip(_cycle(len(drawn)), drawn.items(), strict=True):
        placed = [place(*point) for point in line]
        about = f"<title>{html.escape(name)}</title>"
        if len(placed) == 1:
            x, y = placed[0]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">{about}</circle>')
        elif placed:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
            parts.append(f'<path class="line" stroke="{colour}" d="M{path}">{about}</path>')
    return _svg(parts, height) + (_legend(drawn) if len(drawn) > 1 else "")


def bar_chart(rows: Mapping[str, Mapping[str, float]], top: float | None = None, digits: int = 3) -> str:
    """Horizontal bars, one a row, each made of its parts in their order; a row's values stand behind it.

    Args:
        rows: name of the row -> part -> value, none of them negative.
        top: value at the right end; that of the longest bar where it is None.
        digits: of the values behind the bars.
    """
    names = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    colours = dict(zip(names, _cycle(len(names)), strict=True))
    top = top or max((sum(parts.values()) for parts in rows.values()), default=0.0) or 1.0
    scale = (WIDTH - _NAMES - 70 * (len(names) == 1) - _RIGHT) / top
    drawn = []
    for number, (row, parts) in enumerate(rows.items()):
        y, x = number * _BAR + 4, float(_NAMES)
        drawn.append(_label(_NAMES - 8, y + 13, row if len(row) < 54 else row[:52] + "…", "end"))
        for part, value in parts.items():
            about = html.escape(f"{row}, {part}: {value:.{digits}f}")
            drawn.append(
                f'<rect x="{x:.1f}" y="{y}" width="{value * scale:.1f}" height="{_BAR - 6}" fill="{colours[part]}">'
                f"<title>{about}</title></rect>"
            )
            x += value * scale
        if len(names) == 1:
            drawn.append(_label(x + 6, y + 13, f"{sum(parts.values()):.{digits}f}", "start"))
    return _svg(drawn, len(rows) * _BAR + 8) + (_legend(names) if len(names) > 1 else "")


def scatter_chart(points: np.ndarray, groups: np.ndarray, names: Sequence[str], others: str, height: int = 460) -> str:
    """Points without axes, coloured by group; those of no group are grey.

    Each group is one path of dots, a dozen bytes a point.

    Args:
        points: `(points, 2)`.
        groups: `(points,)` index into `names`, -1 for none.
        names: of the groups.
        others: what the grey ones are called.
        height: in pixels.
    """
    low, high = points.min(0), points.max(0)
    placed = (points - low) / np.maximum(high - low, 1e-9) * (WIDTH - 20, height - 20) + 10
    drawn, legend = [], {}
    for group, (name, colour) in enumerate(
        zip([others, *names], [_OTHERS, *_cycle(len(names))], strict=True), start=-1
    ):
        dots = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in placed[groups == group])
        if dots:
            drawn.append(f'<path class="dots" stroke="{colour}" d="{dots}"/>')
            legend[name] = colour
    return _svg(drawn, height) + _legend(legend, list(legend.values()))


def _finite(points: Line) -> list[tuple[float, float]]:
    finite = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if len(finite) <= MAX_POINTS:
        return finite
    return [finite[row] for row in np.linspace(0, len(finite) - 1, MAX_POINTS).round().astype(int)]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers around `low` to `high`: the first not above `low`, the last not below `high`.

    >>> _ticks(0.3, 4.1)
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    >>> _ticks(2.0, 2.0)
    [2.0, 3.0]
    """
    if high <= low:
        high = low + 1
    raw = (high - low) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw))
    if high - low == 1 and float(low).is_integer():
        step = 1.0
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.4g}"


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(parts: Sequence[str], height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _legend(names: Mapping[str, object] | Sequence[str], colours: Sequence[str] = ()) -> str:
    colours = colours or _cycle(len(names))
    items = [
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for colour, name in zip(colours, names, strict=True)
    ]
    return f'<p class="legend">{"".join(items)}</p>'
