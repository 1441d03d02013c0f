"""The cells of a table: which there are, where they stand, and what they depend on."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align3gr.errors import InputError
from align3gr.pipeline import content_hash, stage_folder

CELL_FILE = "cell.json"
CONTROLS = ("shuffled user SCIDs", "shuffled profiles")
SPLITS = ("validation", "test")


@dataclass
class AblationArguments:
    """A table: rows of options, a cell for each seed."""

    run_dir: str = field(metadata={"help": "Folder of a run with the stages prepare to scid."})
    name: str = field(metadata={"help": "Name of the table; it appears in this folder below run_dir."})
    base: str = field(metadata={"help": "YAML of options that all rows share, such as recipes/yelp/sft.yaml."})
    rows: dict = field(
        default_factory=dict,
        metadata={
            "help": "For each row the options that differ; `against`: the row to compare with, if not the one above; "
            f"`control`: what to exchange between users, so that a gain must vanish: {', '.join(CONTROLS)}."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each row."})
    split: str = field(default="test", metadata={"help": "Targets that cells are judged on.", "choices": list(SPLITS)})
    num_beams: int = field(default=20, metadata={"help": "Beam of the search."})
    users: int = field(default=0, metadata={"help": "Fixed sample of users to judge on; 0 takes all."})
    only: list[str] = field(default_factory=list, metadata={"help": "Rows to run now; all of them if left out."})
    keep_models: bool = field(default=False, metadata={"help": "Keep each cell's model; they are removed otherwise."})
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Launch each training through accelerate with this configuration."}
    )

    def against(self, row: str) -> str | None:
        """The row that a row is compared with; None for the first."""
        names = list(self.rows)
        above = names[names.index(row) - 1] if row != names[0] else None
        return self.rows[row].get("against", above)

    def __post_init__(self) -> None:
        if not self.rows or not all(isinstance(options, dict) for options in self.rows.values()):
            raise InputError("rows: expected for each row its options, such as 'SEQ: {tasks: [sequential]}'")
        known = list(self.rows)
        for place, (name, options) in enumerate(self.rows.items()):
            if options.get("against", known[0]) not in known[: max(place, 1)]:
                raise InputError(f"rows: {name}: against {options['against']!r}, expected a row above it")
        unknown = [name for name in self.only if name not in self.rows]
        if unknown:
            raise InputError(f"only: {unknown[0]!r} is no row; choose from {', '.join(self.rows)}")
        for name, options in self.rows.items():
            if options.get("control", CONTROLS[0]) not in CONTROLS:
                raise InputError(f"rows: {name}: control {options['control']!r}, expected {' or '.join(CONTROLS)}")
        if len({_slug(name) for name in self.rows}) != len(self.rows) or not _slug(self.name):
            raise InputError("rows: two names give the same folder; change one")


@dataclass(frozen=True)
class Cell:
    """One training of one row.

    Attributes:
        row: name of the row.
        seed: of the training.
        folder: where it stands.
        key: hash of everything that its result depends on.
    """

    row: str
    seed: int
    folder: Path
    key: str

    @property
    def result(self) -> dict[str, Any] | None:
        """What was measured, None where it has not been yet."""
        path = self.folder / CELL_FILE
        if not path.is_file():
            return None
        result = json.loads(path.read_text(encoding="utf-8"))
        return result if result["key"] == self.key else None


def table_cells(arguments: AblationArguments) -> Iterator[Cell]:
    """All cells of a table, seed by seed, so that an interrupted table has whole columns."""
    run_dir = Path(arguments.run_dir)
    data, scid = stage_folder(run_dir, "prepare"), stage_folder(run_dir, "scid")
    # The files that a training may read, not the manifests beside them, which hold times.
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train", "validation", "test")]
    inputs += [scid / "item_codes.parquet", scid / "user_codes.parquet", scid / "codebooks.json", Path(arguments.base)]
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: not found; run the stages up to scid first")
    inputs += [path for path in (data / "reviews.parquet", scid / "model", scid / "encoders") if path.exists()]
    files = [content_hash(path) for path in inputs]
    judged = [arguments.split, arguments.num_beams, arguments.users]
    for seed in arguments.seeds:
        for row, options in arguments.rows.items():
            text = json.dumps([files, options, seed, judged], sort_keys=True)
            folder = run_dir / arguments.name / _slug(row) / f"seed-{seed}"
            yield Cell(row, seed, folder, hashlib.sha256(text.encode()).hexdigest())


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
