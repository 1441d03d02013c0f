"""`align3gr results`: the results of finished runs, as a page and for machines."""

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from align3gr.errors import InputError
from align3gr.pipeline import MANIFEST, public_settings, read_manifest, stage_folder


def write_results(parsed: argparse.Namespace, arguments: list[str]) -> int:
    """Runs `align3gr results`: a Markdown page, the figures as JSON, or both; gives the exit status.

    Raises:
        InputError: nothing was asked for, a run is not evaluated and has no tables, or the page cannot be written.
    """
    if not (parsed.output or parsed.json):
        raise InputError("results: give --output FILE for a page, --json for figures, or both")
    runs = [Path(run) for run in parsed.runs]
    if parsed.json:
        print(json.dumps({name: _figures(run) for name, run in zip(parsed.runs, runs, strict=True)}, indent=1))
    if not parsed.output:
        return 0
    page = Path(parsed.output)
    try:
        page.write_text(results_page(runs, page.parent), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {parsed.output}: {error.strerror}; choose another file") from error
    return 0


def results_page(runs: Sequence[Path], folder: Path) -> str:
    """The tables of runs as Markdown, each with its figure where it has one.

    Args:
        runs: folders of runs, of baselines, or of their records.
        folder: where the page will stand; links to figures are relative to it.

    Raises:
        InputError: a run is not evaluated and has no tables.
    """
    command = shlex.join(["align3gr", "results", *public_settings([str(run) for run in runs])])
    sections = [f"# Results\n\nWritten by `{command}`; the tables are those that each run made itself.\n"]
    return "\n".join([*sections, *(section for run in runs for section in _sections(run, folder))])


def _sections(run: Path, page_folder: Path) -> list[str]:
    """The evaluation of a run, if it has one, and its tables."""
    tables = sorted(run.glob("*/table.md"))
    folder = stage_folder(run, "evaluate")
    if tables and not (folder / MANIFEST).is_file():
        sections = [f"## {run.name}\n"]
    else:
        manifest = read_manifest(folder)
        # Baselines are made from the data of another run and say themselves what these are.
        statistics = manifest.get("statistics") or json.loads(
            (stage_folder(run, "prepare") / "statistics.json").read_text(encoding="utf-8")
        )
        facts = ", ".join(
            f"{value:,} {key.replace('_', ' ')}" for key, value in statistics.items() if isinstance(value, int)
        )
        sections = [f"## {run.name}\n\n{facts}. Versions: {_versions(manifest)}.\n\n"]
        sections.append((folder / "results.md").read_text(encoding="utf-8"))
    for table in tables:
        section = f"### {table.parent.name}\n\n" + table.read_text(encoding="utf-8")
        if (figure := table.with_name("figure.svg")).is_file():
            link = quote(Path(os.path.relpath(figure, page_folder)).as_posix())
            section += f"\n![The steps of {table.parent.name}]({link})\n"
        sections.append(section)
    return sections


def _figures(run: Path) -> dict:
    path = stage_folder(run, "evaluate") / "results.json"
    if not path.is_file():
        raise InputError(f"{path}: not found; figures are printed of evaluated runs alone")
    return json.loads(path.read_text(encoding="utf-8"))


def _versions(manifest: dict) -> str:
    return ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
