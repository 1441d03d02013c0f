"""The cells of a table: which there are, where they stand, and what they depend on."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align3gr.ablation.codes import SCID, RowCodes, check_codes, code_inputs, read_options, row_codes
from align3gr.errors import InputError
from align3gr.pipeline import content_hash, lineage_hash, named_files, options_hash, public_settings, stage_folder

CELL_FILE = "cell.json"
CONTROLS = ("shuffled user SCIDs", "shuffled profiles")
SPLITS = ("validation", "test")
FIGURE_METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
# What a row can train, in the order in which one can start from the other.
ROW_STAGES = ("sft", "sp_dpo", "rf_dpo")
# Options of a row that are the table's own; all others are those of the row's stage.
ROW_OPTIONS = ("stage", "after", "against", "control", SCID)


@dataclass
class AblationArguments:
    """A table: rows of options, a cell for each seed."""

    run_dir: str = field(metadata={"help": "Folder of a run with the stages prepare to scid."})
    name: str = field(metadata={"help": "Name of the table; it appears in this folder below run_dir."})
    base: dict[str, str] | str | None = field(
        metadata={
            "help": "YAML of options that all sft rows share, such as recipes/yelp/sft.yaml; in a file also one for "
            f"each stage: {', '.join((SCID, *ROW_STAGES))}."
        }
    )
    rows: dict = field(
        default_factory=dict,
        metadata={
            "help": "For each row the options that differ; `against`: the row to compare with, if not the one above; "
            f"`control`: what to exchange between users, so that a gain must vanish: {', '.join(CONTROLS)}; `stage`: "
            f"{' (default), '.join(ROW_STAGES[:2])} or {ROW_STAGES[2]}; `after`: the row above whose model a "
            "preference row starts from; `scid`: codes of an sft row's own, as options of the stage that differ or as "
            "another file of it."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each row."})
    split: str = field(default="test", metadata={"help": "Targets that cells are judged on.", "choices": list(SPLITS)})
    num_beams: int = field(default=20, metadata={"help": "Beam of the search."})
    users: int = field(default=0, metadata={"help": "Fixed sample of users to judge on; 0 takes all."})
    history_cache: float = field(
        default=0.0,
        metadata={
            "help": "Also judge each model behind the five latest items of the history, and mixed with the history at "
            "this mean share, such as 0.15; 0 judges the model alone."
        },
    )
    only: list[str] = field(default_factory=list, metadata={"help": "Rows to run now; all of them if left out."})
    keep_models: bool = field(
        default=False, metadata={"help": "Keep each cell's model; removed otherwise once no later cell needs it."}
    )
    record: str | None = field(
        default=None,
        metadata={
            "help": "Also keep finished cells and the table in this folder, in small files for a repository, such as "
            "experiments/results/yelp/table4; cells that stand there are not run again."
        },
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Launch each training through accelerate with this configuration."}
    )

    figure: str | None = field(
        default=None,
        metadata={
            "help": "Draw the rows as steps of a figure, in this metric: recall or ndcg at 5 or 10, such as recall@10."
        },
    )

    def against(self, row: str) -> str | None:
        """The row that a row is compared with; None for the first."""
        names = list(self.rows)
        above = names[names.index(row) - 1] if row != names[0] else None
        return self.rows[row].get("against", above)

    def stage(self, row: str) -> str:
        """What a row trains, one of `ROW_STAGES`."""
        return self.rows[row].get("stage", ROW_STAGES[0])

    def has_codes(self, row: str) -> bool:
        """Whether a row, or the one that it comes after, has codes of its own in place of the run's."""
        options = self.rows[row]
        return SCID in options or ("after" in options and self.has_codes(options["after"]))

    def base_of(self, stage: str) -> str:
        """The YAML of options that all rows of a stage share.

        Raises:
            InputError: `base` names none.
        """
        bases = self.base if isinstance(self.base, dict) else {ROW_STAGES[0]: self.base}
        path = bases.get(stage)
        if not isinstance(path, str):
            raise InputError(
                f"base: names no file for {stage} rows; give one for each stage, as in "
                "'base: {sft: recipes/yelp/sft.yaml, sp_dpo: recipes/yelp/sp_dpo.yaml}'"
            )
        return path

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
        for place, (name, options) in enumerate(self.rows.items()):
            if options.get("control", CONTROLS[0]) not in CONTROLS:
                raise InputError(f"rows: {name}: control {options['control']!r}, expected {' or '.join(CONTROLS)}")
            _check_stage(self, name, known[:place])
        if not 0 <= self.history_cache < 1:
            raise InputError(f"history_cache: got {self.history_cache}, expected a share of 0 (off) to below 1")
        if self.figure is not None and self.figure not in FIGURE_METRICS:
            raise InputError(f"figure: got {self.figure!r}, choose from {', '.join(FIGURE_METRICS)}")
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
        stage: what it trains, one of `ROW_STAGES`.
        after: the cell whose model it starts from; None where it starts from a base model.
        codes: codes of its own, also those of the cell that it comes after; None where it has the run's.
        record: folder of its copy in the record; None where the table has none.
    """

    row: str
    seed: int
    folder: Path
    key: str
    stage: str = ROW_STAGES[0]
    after: "Cell | None" = None
    codes: RowCodes | None = None
    record: Path | None = None

    @property
    def result(self) -> dict[str, Any] | None:
        """What was measured, None where it has not been yet."""
        return self.read(self.folder / CELL_FILE)

    def read(self, path: Path) -> dict[str, Any] | None:
        """What a file says of this cell, None where it is not there or is that of another key."""
        if not path.is_file():
            return None
        result = json.loads(path.read_text(encoding="utf-8"))
        return result if result["key"] == self.key else None

    @property
    def trained(self) -> Path:
        """Folder of the stage that it trains."""
        return stage_folder(self.folder, self.stage)

    @property
    def ancestors(self) -> list["Cell"]:
        """The cells that it comes after, the nearest first."""
        return [] if self.after is None else [self.after, *self.after.ancestors]


def table_cells(arguments: AblationArguments) -> Iterator[Cell]:
    """All cells of a table, seed by seed, so that an interrupted table has whole columns.

    Args:
        arguments: the table: its rows, seeds and stages.
    """
    run_dir, table = Path(arguments.run_dir), Path(arguments.run_dir) / arguments.name
    kinds = {(arguments.stage(row), arguments.has_codes(row)) for row in arguments.rows}
    files = {(stage, own): _file_hashes(arguments, stage, own) for stage, own in kinds}
    inputs = code_inputs(run_dir) if any(own for _, own in kinds) else []
    judged = [arguments.split, arguments.num_beams, arguments.users]
    judged += [arguments.history_cache] if arguments.history_cache else []  # so that other cells keep their keys
    for seed in arguments.seeds:
        of_seed: dict[str, Cell] = {}
        for row, options in arguments.rows.items():
            stage, after = arguments.stage(row), of_seed.get(options.get("after", ""))
            codes = None if after is None else after.codes
            if SCID in options:
                codes = row_codes(table, inputs, lambda: arguments.base_of(SCID), options[SCID], seed)
            # What a row is compared with changes nothing of it.
            own = public_settings({name: value for name, value in options.items() if name != "against"})
            parts = [files[stage, arguments.has_codes(row)], own, seed, judged]
            if after is not None:
                parts += [after.key, _feedback_hash(arguments.base_of(stage), options)]
            elif codes is not None:
                parts += [codes.key]
            # Only where there are some, so that other cells keep their keys.
            parts += [lineage_hash(path) for path in named_files(read_options(arguments.base_of(stage)) | options)]
            text = json.dumps(parts, sort_keys=True)
            key = hashlib.sha256(text.encode()).hexdigest()
            place = Path(_slug(row), f"seed-{seed}")
            record = None if arguments.record is None else Path(arguments.record, place)
            of_seed[row] = Cell(row, seed, table / place, key, stage, after, codes, record)
            yield of_seed[row]


def _check_stage(arguments: AblationArguments, name: str, above: list[str]) -> None:
    """Refuses a row that cannot start where it is told to."""
    options, stage = arguments.rows[name], arguments.stage(name)
    if stage not in ROW_STAGES:
        raise InputError(f"rows: {name}: stage {stage!r}, expected {', '.join(ROW_STAGES[:-1])} or {ROW_STAGES[-1]}")
    arguments.base_of(stage)
    earlier, after = ROW_STAGES[: ROW_STAGES.index(stage)], options.get("after")
    if not earlier:
        if after is not None:
            raise InputError(f"rows: {name}: after {after!r}, but an sft row starts from its base model; leave it out")
        if SCID in options:
            check_codes(name, options[SCID], lambda: arguments.base_of(SCID))
        return
    if after not in above or arguments.stage(after) not in earlier:
        raise InputError(f"rows: {name}: after {after!r}, expected an {' or '.join(earlier)} row above it")
    for option in ("control", "start_from", SCID):
        if option in options:
            raise InputError(f"rows: {name}: {option} follows from the row that it comes after; leave it out")


def _file_hashes(arguments: AblationArguments, stage: str, own_codes: bool) -> list[str]:
    """All that the rows of a stage may read: the data's content, the lineage of the run's codes, the file's options.

    Without the run's codes where rows have their own.
    """
    run_dir, base = Path(arguments.run_dir), Path(arguments.base_of(stage))
    data, scid = stage_folder(run_dir, "prepare"), stage_folder(run_dir, SCID)
    # The files that a training may read, not the manifests beside them, which hold times.
    tables = [data / f"{name}.parquet" for name in ("items", "users", "train", "validation", "test")]
    codes = [scid / "item_codes.parquet", scid / "user_codes.parquet", scid / "codebooks.json"]
    for path in [*tables, *([] if own_codes else codes), base]:
        if not path.exists():
            advice = "name an existing file as base" if path == base else "run the stages up to scid first"
            raise InputError(f"{path}: not found; {advice}")
    reviews = data / "reviews.parquet"
    hashes = [content_hash(path) for path in [*tables, *([reviews] if reviews.exists() else [])]]
    return [*hashes, options_hash(base), *([] if own_codes else [lineage_hash(scid)])]


def _feedback_hash(base: str, options: Mapping[str, Any]) -> str | None:
    """Content of the table of feedback that a preference row learns from, wherever it is named."""
    table = options.get("feedback_table", read_options(base).get("feedback_table"))
    return content_hash(Path(table)) if table else None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
