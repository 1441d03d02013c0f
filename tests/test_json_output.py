"""What the commands print for machines."""

import json

import pytest

from align3gr import cli
from align3gr.errors import InputError


def printed(capsys, *words) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, words)))
    out = capsys.readouterr()
    assert end.value.code in (0, None), out.err
    return out.out


def test_results_of_several_runs(smoke_run, capsys, tmp_path):
    page = tmp_path / "results.md"
    figures = json.loads(printed(capsys, "results", smoke_run, "--json", "--output", page))
    expected = json.loads((smoke_run / "evaluation" / "results.json").read_text())
    assert figures == {str(smoke_run): expected} and f"## {smoke_run.name}" in page.read_text()
    assert json.loads(printed(capsys, "results", smoke_run, "--json")) == figures


def test_results_without_a_way_out_are_refused(smoke_run, capsys):
    from align3gr.cli.results import write_results

    parsed = cli.make_command_parser("results").parse_args([str(smoke_run)])
    with pytest.raises(InputError, match="results: give --output FILE for a page, --json for figures, or both"):
        write_results(parsed, [])


def test_figures_of_a_table_of_codes(smoke_run, capsys, tmp_path):
    codes = smoke_run / "scid" / "item_codes.parquet"
    figures = json.loads(printed(capsys, "scid-report", "--codes", codes, "--output", tmp_path / "r", "--json"))
    assert figures == json.loads((tmp_path / "r" / "scid-report.json").read_text()) and figures["items"] == 80


@pytest.mark.parametrize("words", [["audit", "--run_dir", "RUN"], ["doctor", "--offline", "--run_dir", "RUN"]])
def test_findings_of_the_checks(smoke_run, capsys, words):
    words = [str(smoke_run) if word == "RUN" else word for word in words]
    assert json.loads(printed(capsys, *words, "--json"))
