"""Comparison systems: each tuned on validation, then judged on test with several seeds, beside published results."""

import importlib.metadata
import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from align3gr.baselines import (
    PUBLISHED,
    Study,
    StudySettings,
    fair_play,
    how_tuned,
    over_seeds,
    results_table,
    stage_chains,
    tuning_table,
)
from align3gr.data import Split
from align3gr.evaluation import PER_USER_FILE, beyond_accuracy_table
from align3gr.pipeline import MANIFEST, content_hash, public_settings, stage_folder
from align3gr.recipe import expand, parse, run_recipe
from align3gr.record import NOT_FINISHED, publish

FILES = ("items", "train", "validation", "test")
CELLS = "cells"
# What of the tables is published in the record, the page first.
PUBLISHED_FILES = ("results.md", "results.json", MANIFEST)
PACKAGES = ("align3gr", "numpy", "torch", "implicit", "torch-geometric")


@dataclass
class BaselinesArguments:
    run_dir: str = field(metadata={"help": "Folder of the study: fits in its folder cells, tables in evaluation."})
    data: str = field(metadata={"help": "Folder of prepared data, such as runs/yelp/data."})
    published: str = field(
        default="none",
        metadata={"help": "Whose published rows stand beside the others.", "choices": ("none", *PUBLISHED)},
    )
    record: str | None = field(
        default=None,
        metadata={
            "help": "Also keep finished fits and the tables in this folder, in small files for a repository, such as "
            "experiments/results/yelp-baselines; fits that stand there are not computed again."
        },
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Launch the trainings of generative systems through accelerate with this."}
    )


def installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def write_tables(study: Study, arguments: BaselinesArguments) -> str:
    """Writes what is there by now and says what is missing; the page."""
    settings = study.settings
    finals = {
        system: [cell for seed in study.seeds(system) if (cell := study.final_run(system, seed)) is not None]
        for system in settings.systems
    }
    rows = {system: over_seeds(cells) for system, cells in finals.items() if cells}
    tuned = {
        system: {
            "chosen": study.chosen(system),
            "trials": len(study.trials(system)),
            "tuning_seconds": sum(cell["seconds"] for cell in study.trials(system)),
            "finals": finals[system],
        }
        for system in rows
    }
    missing = study.missing()
    parts = [f"**{NOT_FINISHED}.** Missing: {'; '.join(missing)}.\n"] if missing else []
    published = PUBLISHED.get(arguments.published, ())
    parts += [
        results_table(rows, published),
        *filter(None, [fair_play(rows, published)]),
        how_tuned(settings),
        tuning_table(tuned),
        beyond_accuracy_table(rows),
    ]
    page = "\n".join(parts)
    folder = stage_folder(arguments.run_dir, "evaluate")
    folder.mkdir(parents=True, exist_ok=True)
    for name, facts in tuned.items():
        rows[name]["tuning"] = {key: facts[key] for key in ("trials", "tuning_seconds")}
        rows[name]["tuning"] |= {key: facts["chosen"][key] for key in ("setting", "value")}
    manifest = {
        "stage": "baselines",
        "settings": {name: value for name, value in public_settings(asdict(settings)).items() if name != "only"},
        "inputs": study.inputs,
        "statistics": study.split.statistics,
        "missing": missing,
        "command": shlex.join([f"recipes/{Path(sys.argv[0]).name}", *public_settings(sys.argv[1:])]),
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
    }
    study.per_user().write_parquet(folder / PER_USER_FILE)
    for name, content in ((MANIFEST, manifest), ("results.json", rows)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / PUBLISHED_FILES[0]).write_text(page, encoding="utf-8")
    if arguments.record is not None:
        publish(folder, PUBLISHED_FILES, stage_folder(arguments.record, "evaluate"))
    return page


def main() -> None:
    arguments, settings = parse([BaselinesArguments, StudySettings])
    data = expand(arguments.data)
    inputs = {f"{name}.parquet": content_hash(data / f"{name}.parquet") for name in FILES}
    split, models = Split.load(data), Path(arguments.run_dir, "models")
    chains = stage_chains(split, data, settings.generative, models, arguments.accelerate_config)
    record = None if arguments.record is None else Path(arguments.record, CELLS)
    study = Study(split, inputs, settings, Path(arguments.run_dir, CELLS), chains, record)
    # After each fit, so that a killed study has its table too.
    study.run(progress=lambda: write_tables(study, arguments))
    print(write_tables(study, arguments))
    print(f"{study.computed} fits computed, the others were there already")


if __name__ == "__main__":
    run_recipe(main)
