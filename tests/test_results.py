"""The page of all tables, from run folders and from their records."""

import shlex
from pathlib import Path

import pytest

from align3gr.cli.results import results_page
from align3gr.errors import InputError
from tests.conftest import ROOT


def test_the_page_of_this_repository_is_that_of_its_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = Path("docs/results.md").read_text()
    words = shlex.split(page.split("`")[1])
    assert words[:2] == ["align3gr", "results"] and all(word.startswith("experiments/results/") for word in words[2:])
    assert page == results_page([Path(word) for word in words[2:]], Path("docs")), "make results writes it anew"
    assert "### table4" in page and "| SEQ | 0.0" in page


def record(folder, table="| a table |\n", figure=False):
    (folder / "steps").mkdir(parents=True)
    (folder / "steps" / "table.md").write_text(table)
    if figure:
        (folder / "steps" / "figure.svg").write_text("<svg/>")
    return folder


def test_a_table_is_followed_by_its_figure(tmp_path):
    runs = [record(tmp_path / "a record" / "one", figure=True), record(tmp_path / "two", table="| another |\n")]
    page = results_page(runs, tmp_path / "docs")
    assert (
        "\n## one\n\n### steps\n\n| a table |\n\n![The steps of steps](../a%20record/one/steps/figure.svg)\n" in page
    )
    assert page.endswith("\n## two\n\n### steps\n\n| another |\n") and page.count("![") == 1
    assert str(tmp_path) not in page


def test_a_folder_without_any_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no finished stage"):
        results_page([tmp_path], tmp_path)
