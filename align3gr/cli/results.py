"""`align3gr results`: the results of finished runs, as a page and for machines."""

import argparse
import json
from pathlib import Path

from align3gr.errors import InputError
from align3gr.pipeline import read_manifest, stage_folder


def write_results(parsed: argparse.Namespace, arguments: list[str]) -> int:
    """Runs `align3gr results`: a Markdown page, the figures as JSON, or both; gives the exit status.

    Raises:
        InputError: nothing was asked for, a run is not evaluated, or the page cannot be written.
    """
    if not (parsed.output or parsed.json):
        raise InputError("results: give --output FILE for a page, --json for figures, or both")
    figures = {}
    sections = ["# Results\n\nWritten by `align3gr results`; the tables are those that each run made itself.\n"]
    for run in parsed.runs:
        folder = stage_folder(run, "evaluate")
        manifest = read_manifest(folder)
        figures[str(run)] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        # Baselines are made from the data of another run and say themselves what these are.
        statistics = manifest.get("statistics") or json.loads(
            (stage_folder(run, "prepare") / "statistics.json").read_text(encoding="utf-8")
        )
        facts = ", ".join(
            f"{value:,} {key.replace('_', ' ')}" for key, value in statistics.items() if isinstance(value, int)
        )
        sections.append(f"## {Path(run).name}\n\n{facts}. Versions: {_versions(manifest)}.\n\n")
        sections.append((folder / "results.md").read_text(encoding="utf-8"))
        for table in sorted(Path(run).glob("*/table.md")):
            sections.append(f"### {table.parent.name}\n\n" + table.read_text(encoding="utf-8"))
    if parsed.json:
        print(json.dumps(figures, indent=1))
    if not parsed.output:
        return 0
    try:
        Path(parsed.output).write_text("\n".join(sections), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {parsed.output}: {error.strerror}; choose another file") from error
    return 0


def _versions(manifest: dict) -> str:
    return ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
