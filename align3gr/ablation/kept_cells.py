"""Cells of a table in its record: a copy of each that is finished, found there on another machine."""

from collections.abc import Sequence
from pathlib import Path

from align3gr.ablation.cells import CELL_FILE, AblationArguments, Cell
from align3gr.ablation.judging import asked_users
from align3gr.data import Split
from align3gr.evaluation import PER_USER_FILE, FullEvaluation
from align3gr.pipeline import stage_folder
from align3gr.record import CellFiles, keep_cell, restore_cell

RANKS_FILE = "ranks.parquet"


def keep(cell: Cell) -> None:
    """Copies a finished cell into the record, where there is one."""
    if (kept := _kept(cell)) is not None:
        keep_cell(_files(cell), kept)


def share_cells(arguments: AblationArguments, table: Sequence[Cell]) -> None:
    """Copies cells that only the record has to where the table reads them, and those that it lacks into it.

    Args:
        arguments: the table.
        table: all its cells.
    """
    asked = None
    for cell in table:
        kept = _kept(cell)
        if kept is None:
            continue
        is_kept = kept.exist and cell.read(kept.result) is not None
        if cell.result is not None and not is_kept:
            keep_cell(_files(cell), kept)
        elif cell.result is None and is_kept:
            if asked is None:
                split = Split.load(stage_folder(Path(arguments.run_dir), "prepare"))
                asked = FullEvaluation(split).asked(asked_users(arguments, split))
            restore_cell(kept, _files(cell), asked)


def _files(cell: Cell) -> CellFiles:
    return CellFiles(cell.folder / CELL_FILE, cell.folder / PER_USER_FILE)


def _kept(cell: Cell) -> CellFiles | None:
    return None if cell.record is None else CellFiles(cell.record / CELL_FILE, cell.record / RANKS_FILE)
