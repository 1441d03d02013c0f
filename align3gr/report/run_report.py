"""`report.html`: all that a run says of itself in one file that opens offline."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from align3gr.errors import InputError
from align3gr.pipeline import STAGES
from align3gr.report.html_page import page, paragraph, table
from align3gr.report.run_data import codes_section, data_section
from align3gr.report.run_examples import examples_section
from align3gr.report.run_files import RunFiles
from align3gr.report.run_results import levels_section, lineage_section, results_section
from align3gr.report.run_training import curriculum_section, training_section

REPORT_FILE = "report.html"
EXAMPLES = 6


def write_run_report(run_dir: str | Path, output: str | Path | None = None, examples: int = EXAMPLES) -> Path:
    """Writes the report of a run from its own files; what is not there yet is named in the page.

    Args:
        run_dir: folder of the run, finished or not.
        output: file to write; `report.html` in the run's folder where it is None.
        examples: users whose history and recommendations are shown; 0 loads no model.

    Returns:
        The file.

    Raises:
        InputError: the folder holds no finished stage, a file of the run cannot be read, or `output` not be written.
    """
    if examples < 0:
        raise InputError(f"examples: got {examples}, expected 0 or more")
    run = RunFiles(run_dir)
    # Heading, the stages it is made from, and what writes it.
    parts: list[tuple[str, tuple[str, ...], Callable[[RunFiles], str]]] = [
        ("Results", ("evaluate",), results_section),
        ("Where targets are lost", ("evaluate",), levels_section),
        ("Examples", ("prepare",), partial(examples_section, examples=examples)),
        ("Data", ("prepare",), data_section),
        ("SCIDs", ("prepare", "scid"), codes_section),
        ("Training", (), training_section),
        ("Curriculum", (), curriculum_section),
        ("Settings and lineage", (), lineage_section),
    ]
    sections = []
    for heading, needed, write in parts:
        absent = [name for name in needed if name not in run.manifests]
        sections.append((heading, _absent(run, absent) if absent else write(run)))
    name = run.folder.resolve().name
    whole = page(f"Run {name}", _lead(run), sections)
    path = run.folder / REPORT_FILE if output is None else Path(output)
    partial_file = path.with_name(path.name + ".partial")
    try:
        partial_file.write_text(whole, encoding="utf-8")
        partial_file.replace(path)
    except OSError as error:
        raise InputError(f"--output {path}: {error.strerror}; choose another file") from error
    return path


def _absent(run: RunFiles, stages: list[str]) -> str:
    states = " and ".join(f"stage '{name}' ({run.state(name)})" for name in stages)
    return paragraph(f"Missing: this needs {states}. Run it, then `align3gr report` again.", "missing")


def _lead(run: RunFiles) -> str:
    version = list(run.manifests.values())[-1].get("versions", {}).get("align3gr", "?")
    states = table(STAGES, [[run.state(name) for name in STAGES]], words=True)
    unfinished = [name for name in STAGES if name not in run.manifests]
    if not unfinished:
        return paragraph(f"All stages are finished. Made by align3gr {version}.") + states
    return paragraph(f"Not finished: {', '.join(unfinished)}. Made by align3gr {version}.") + states
