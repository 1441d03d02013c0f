import math
import re

import numpy as np

from align3gr.report.svg import MAX_POINTS, bar_chart, line_chart, scatter_chart


def test_a_line_goes_through_its_points():
    # 680 x 260 with margins 62, 16, 12, 44: x 0 to 10 is 62 to 664, y 0 to 4 is 216 to 12.
    drawn = line_chart({"loss": [(0, 4), (5, 2), (10, 0)]}, "step", "loss")
    assert re.findall(r'class="line"[^>]*d="([^"]*)"', drawn) == ["M62.0 12.0L363.0 114.0L664.0 216.0"]
    # Ticks of y: 0 to 4; of x: 0, 2, ..., 10.
    assert re.findall(r'text-anchor="end">(.*?)<', drawn) == ["0", "1", "2", "3", "4"]
    assert re.findall(r'text-anchor="middle">(\d+)<', drawn) == ["0", "2", "4", "6", "8", "10"]
    assert "legend" not in drawn


def test_a_single_point_is_a_dot_that_can_be_seen():
    drawn = line_chart({"a": [(1, 3.0), (2, 1.0)], "b": [(1, 2.0)]}, "x", "y")
    # y 1 to 3 is 216 to 12.
    assert drawn.count('class="line"') == 1 and '<circle cx="62.0" cy="114.0" r="3"' in drawn


def test_values_that_are_not_finite_are_left_out_and_long_lines_are_thinned():
    drawn = line_chart({"a": [(0, 1.0), (1, math.nan), (2, 3.0)], "b": [(0, math.inf)]}, "x", "y")
    assert drawn.count('class="line"') == 1 and "nan" not in drawn and "inf" not in drawn
    assert "missing" in line_chart({"a": [(0, math.nan)]}, "x", "y")
    long = line_chart({"a": [(step, step % 7) for step in range(100_000)]}, "x", "y")
    (path,) = re.findall(r'class="line"[^>]*d="([^"]*)"', long)
    assert path.count("L") == MAX_POINTS - 1 and path.startswith("M62.0 ") and "L664.0 " in path
    assert len(long) < 8_000


def test_bars_are_as_long_as_their_values():
    # One part: names take 310, values 70, the right margin 16; 284 are left for the longest, 2.
    drawn = bar_chart({"one": {"share": 0.5}, "two": {"share": 2.0}}, digits=1)
    assert re.findall(r'<rect x="([\d.]+)".*? width="([\d.]+)"', drawn) == [("310.0", "71.0"), ("310.0", "284.0")]
    assert ">0.5</text>" in drawn and ">2.0</text>" in drawn
    # Two parts: 354 are left, and the second part begins where the first one ends.
    drawn = bar_chart({"row": {"a": 0.25, "b": 0.5}}, top=1.0)
    assert re.findall(r'<rect x="([\d.]+)".*? width="([\d.]+)"', drawn) == [("310.0", "88.5"), ("398.5", "177.0")]
    assert "<title>row, b: 0.500</title>" in drawn


def test_every_point_of_a_map_is_drawn_in_the_colour_of_its_group():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.0], [0.0, 1.0]])
    drawn = scatter_chart(points, np.array([0, 0, -1, 1]), ["code 7", "code 9"], "others", height=120)
    paths = dict(re.findall(r'class="dots" stroke="(#\w+)" d="([^"]*)"', drawn))
    # 660 x 100 inside margins of 10.
    assert list(paths.values()) == ["M340 10h0", "M10 10h0M670 110h0", "M10 110h0"]
    legend = dict(re.findall(r'background:(#\w+)"></i>([^<]*)<', drawn))
    assert [legend[colour] for colour in paths] == ["others", "code 7", "code 9"]
    assert "others" not in scatter_chart(points, np.array([0, 0, 1, 1]), ["code 7", "code 9"], "others")


def test_names_are_escaped():
    bad = '"><script>'
    charts = line_chart({bad: [(0, 1)], "b": [(0, 1)]}, bad, bad) + bar_chart({bad: {bad: 1.0, "b": 1.0}})
    charts += scatter_chart(np.eye(2), np.array([0, 0]), [bad], bad)
    assert "<script" not in charts and charts.count("&lt;script&gt;") >= 8
