"""Logs larger than memory would like: the recipe in a process of its own, on a generated log."""

import runpy

import pytest

from tests.conftest import ROOT

BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "prepare.py"))


def prepared(tmp_path, lines: int, packed: bool) -> dict:
    BENCHMARK["write_category"](tmp_path / "raw", lines, packed)
    made = BENCHMARK["prepare"](tmp_path / "raw", tmp_path / "run")
    assert made["statistics"]["interactions"] + made["statistics"]["removed_interactions"] == lines
    assert made["statistics"]["test_users"] > lines / 20
    return made


def test_a_longer_log_takes_little_more_memory(tmp_path):
    # Both are longer than what is read at a time, and so differ in what is kept of a line alone.
    short, long = (prepared(tmp_path / str(lines), lines, packed=False) for lines in (150_000, 450_000))
    sizes = [(tmp_path / name / "raw" / "Log.jsonl").stat().st_size / 2**20 for name in ("150000", "450000")]
    assert sizes[1] - sizes[0] > 110
    # Texts that stayed would count twice, as read and as table.
    assert long["peak_memory_mb"] - short["peak_memory_mb"] < 1.3 * (sizes[1] - sizes[0])


@pytest.mark.long
@pytest.mark.parametrize("packed", [True, False])
def test_ten_million_lines_take_less_than_two_gigabytes(tmp_path, packed):
    assert prepared(tmp_path, 10_000_000, packed)["peak_memory_mb"] < 2048
