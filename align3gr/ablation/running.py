"""Training and judging the cells of a table."""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from align3gr.ablation.cells import (
    CELL_FILE,
    CONTROLS,
    ROW_OPTIONS,
    ROW_STAGES,
    AblationArguments,
    Cell,
    table_cells,
)
from align3gr.ablation.codes import SCID, codes_record
from align3gr.ablation.judging import judge
from align3gr.ablation.kept_cells import keep, share_cells
from align3gr.ablation.table import PUBLISHED_FILES, write_table
from align3gr.data.schema import PROFILE, USER_ID
from align3gr.errors import InputError
from align3gr.pipeline import MANIFEST, public_settings, read_manifest, stage_folder
from align3gr.record import make_record, publish
from align3gr.scid.code_table import load_codes, save_codes
from align3gr.stage_processes import link_stage, run_stage

logger = logging.getLogger(__name__)


def run_table(arguments: AblationArguments) -> list[Cell]:
    """Runs the cells that are missing, and writes the table after each of them.

    Args:
        arguments: the table: its rows, seeds and stages, and where it is written.
    """
    table = list(table_cells(arguments))
    folder = Path(arguments.run_dir) / arguments.name
    if arguments.record is not None:
        make_record(Path(arguments.record))
        share_cells(arguments, table)
    missing = _missing(arguments, table)
    for number, cell in enumerate(missing):
        seconds = _seconds_left(missing[number:], table)
        left = "" if seconds is None else f", about {seconds / 60:.0f} minutes left"
        logger.info("cell %d of %d: %s, seed %d%s", number + 1, len(missing), cell.row, cell.seed, left)
        _run_cell(arguments, cell, table)
        keep(cell)
        _write(folder, arguments, table)
    _write(folder, arguments, table)
    return table


def _write(folder: Path, arguments: AblationArguments, table: Sequence[Cell]) -> None:
    write_table(folder, arguments, table)
    if arguments.record is not None:
        publish(folder, PUBLISHED_FILES, Path(arguments.record))


def _missing(arguments: AblationArguments, table: Sequence[Cell]) -> list[Cell]:
    """The cells to run: those of the wanted rows without a result, and what they come after if its model is gone."""
    chosen: set[Cell] = set()

    def need(cell: Cell) -> None:
        chosen.add(cell)
        if (before := cell.after) is not None and (before.result is None or not before.trained.is_dir()):
            if before.result is not None:
                logger.info("%s, seed %d: trained again, %s needs its model", before.row, before.seed, cell.row)
            need(before)

    for cell in table:
        if cell.result is None and cell.row in (arguments.only or arguments.rows):
            need(cell)
    return [cell for cell in table if cell in chosen]


def _seconds_left(missing: Sequence[Cell], table: Sequence[Cell]) -> float | None:
    """What the missing cells take if they take as long as those of their row, or else as all finished ones."""
    seconds: dict[str, list[float]] = {}
    for cell in table:
        if (result := cell.result) is not None:
            seconds.setdefault(cell.row, []).append(result["train_seconds"] + result["judge_seconds"])
    if not seconds:
        return None
    of_all = np.concatenate(list(seconds.values())).mean()
    return float(sum(np.mean(seconds.get(cell.row, [of_all])) for cell in missing))


def _run_cell(arguments: AblationArguments, cell: Cell, table: Sequence[Cell]) -> None:
    if cell.result is None:  # what another table of this name left says nothing of the model that is trained now
        (cell.folder / CELL_FILE).unlink(missing_ok=True)
    row = arguments.rows[cell.row]
    options = {name: value for name, value in row.items() if name not in ROW_OPTIONS}
    if cell.codes is not None:
        cell.codes.train(Path(arguments.run_dir))
    _share_inputs(Path(arguments.run_dir), cell, row.get("control"))
    if cell.stage == "rf_dpo" and cell.after is not None:
        options["start_from"] = cell.after.stage
    started = time.perf_counter()
    options = {"seed": cell.seed} | options
    base = arguments.base_of(cell.stage)
    if status := run_stage(cell.stage, base, cell.folder, options, arguments.accelerate_config):
        raise InputError(
            f"{cell.row}, seed {cell.seed}: the training ended with status {status}; its message is above"
        )
    trained = time.perf_counter() - started
    found = judge(arguments, cell) | {"codes": codes_record(stage_folder(cell.folder, SCID))}
    found |= {name: public_settings(read_manifest(cell.trained)[name]) for name in ("settings", "versions")}
    result = {"key": cell.key, "row": cell.row, "seed": cell.seed, "options": public_settings(row)}
    result |= {"train_seconds": trained, "judge_seconds": time.perf_counter() - started - trained} | found
    partial = cell.folder / f"{CELL_FILE}.partial"
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not arguments.keep_models:
        _drop_models(cell, table)
    partial.replace(cell.folder / CELL_FILE)


def _drop_models(done: Cell, table: Sequence[Cell]) -> None:
    """Removes the models of a cell and of those that it comes after, but for what unfinished cells start from."""
    unfinished = [cell for cell in table if cell != done and cell.result is None]
    wanted = {before for cell in unfinished for before in cell.ancestors}
    for cell in (done, *done.ancestors):
        if cell not in wanted:
            shutil.rmtree(cell.trained, ignore_errors=True)
            _unlink_stages(cell)


def _share_inputs(run_dir: Path, cell: Cell, control: str | None) -> None:
    """Links to the run's data and codes, or to all that the cell before it has; a control has a changed copy."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    _unlink_stages(cell)
    for name in ("prepare", "scid"):
        made = run_dir if name != SCID or cell.codes is None else cell.codes.folder
        source = stage_folder(made if cell.after is None else cell.after.folder, name)
        target = stage_folder(cell.folder, name)
        if target.is_symlink():
            target.unlink()
        shutil.rmtree(target, ignore_errors=True)
        if control is None:
            link_stage(target, source)
            continue
        # Without manifests the copies are nobody's stages, so neither is compared with what made the other.
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(MANIFEST))
        if control == {"prepare": CONTROLS[1], "scid": CONTROLS[0]}[name]:
            _permute(target, name, np.random.default_rng(cell.seed))
    for before in cell.ancestors:
        target = stage_folder(cell.folder, before.stage)
        shutil.rmtree(target, ignore_errors=True)
        if before.trained.is_dir():
            link_stage(target, before.trained)


def _unlink_stages(cell: Cell) -> None:
    """Removes the links to what was trained in other cells."""
    for name in ROW_STAGES:
        if (link := stage_folder(cell.folder, name)).is_symlink():
            link.unlink()


def _permute(folder: Path, name: str, rng: np.random.Generator) -> None:
    """Gives each user the code, or the profile, of another one."""
    if name == "prepare":
        users = pl.read_parquet(folder / "users.parquet")
        users.with_columns(users[PROFILE].gather(rng.permutation(len(users)))).write_parquet(folder / "users.parquet")
        return
    path = folder / "user_codes.parquet"
    ids = pl.read_parquet(path)[USER_ID]
    codes = load_codes(path, USER_ID, ids)
    save_codes(path, USER_ID, ids, codes[rng.permutation(len(codes))])
