"""What is kept of a study for others: finished cells and tables, small enough for a repository.

A study works below its run folder, which stays on one machine. Its record is another folder: a copy of each finished
cell, found there on every machine where the cell has the same key, and of the tables. Of the ranks of every user a
record keeps the ranks alone; who was asked for what follows from the data, which the key of a cell names.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from align3gr.errors import InputError
from align3gr.evaluation.per_user import ASKED, PER_USER_SCHEMA, SYSTEM

# How the page of a study begins the line of what is missing.
NOT_FINISHED = "Not finished"
_ANSWERED = [name for name in PER_USER_SCHEMA if name not in ASKED]
_DIGEST = "asked"


@dataclass(frozen=True)
class CellFiles:
    """The files of a finished cell.

    Attributes:
        result: JSON.
        ranks: Parquet, a per-user table or, in a record, its ranks; None where a cell has none.
    """

    result: Path
    ranks: Path | None = None

    @property
    def exist(self) -> bool:
        return self.result.is_file() and (self.ranks is None or self.ranks.is_file())


def make_record(record: Path) -> None:
    """Makes the folder.

    Raises:
        InputError: it cannot be made.
    """
    try:
        record.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"record: cannot write {record}: {error.strerror}; choose another folder") from error


def keep_cell(cell: CellFiles, kept: CellFiles) -> None:
    """Copies a finished cell into a record; its result comes last, so that a killed copy is not there."""
    kept.result.parent.mkdir(parents=True, exist_ok=True)
    kept.result.unlink(missing_ok=True)
    if cell.ranks is not None and kept.ranks is not None:
        write_ranks(pl.read_parquet(cell.ranks), kept.ranks)
    _copy(cell.result, kept.result)


def restore_cell(kept: CellFiles, cell: CellFiles, asked: pl.DataFrame) -> bool:
    """Copies a cell of a record to where a study works; False where its ranks answer other questions.

    Args:
        kept: in the record.
        cell: where it is read from.
        asked: see `FullEvaluation.asked`.
    """
    if kept.ranks is not None and cell.ranks is not None:
        if (per_user := read_ranks(kept.ranks, asked)) is None:
            return False
        cell.ranks.parent.mkdir(parents=True, exist_ok=True)
        per_user.write_parquet(cell.ranks)
    cell.result.parent.mkdir(parents=True, exist_ok=True)
    _copy(kept.result, cell.result)
    return True


def write_ranks(per_user: pl.DataFrame, path: Path) -> None:
    """The ranks of a per-user table: some kB for 30,000 users, where ids and targets take 150.

    Args:
        per_user: of one or several systems that answered the same questions in the same order.
        path: Parquet file to write.

    Raises:
        ValueError: the systems answered different questions.
    """
    systems = per_user.partition_by(SYSTEM, maintain_order=True)
    digests = {_digest(system.select(ASKED)) for system in systems}
    if len(digests) != 1:
        raise ValueError(f"per_user: its {len(systems)} systems answer different questions; keep each apart")
    small = [column.shrink_dtype() if column.dtype.is_integer() else column for column in per_user.select(_ANSWERED)]
    pl.DataFrame(small).write_parquet(path, compression="zstd", metadata={_DIGEST: digests.pop()})


def read_ranks(path: Path, asked: pl.DataFrame) -> pl.DataFrame | None:
    """The per-user table that `write_ranks` was given; None where it answers other questions than these.

    Args:
        path: what `write_ranks` wrote.
        asked: see `FullEvaluation.asked`.
    """
    try:
        if pl.read_parquet_metadata(path).get(_DIGEST) != _digest(asked):
            return None
        answers = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):  # damaged, or a conflict of versions: as if it were not there
        return None
    systems = answers.partition_by(SYSTEM, maintain_order=True)
    frames = [pl.concat([system, asked], how="horizontal") for system in systems]
    return pl.concat(frames).select(pl.col(name).cast(dtype) for name, dtype in PER_USER_SCHEMA.items())


def publish(folder: Path, names: Sequence[str], record: Path) -> None:
    """Copies the tables of a study into its record; a finished page is not replaced by an unfinished one.

    Args:
        folder: where the study wrote them.
        names: of the files, the page first; those that are not there are left out.
        record: the folder.
    """
    page, published = folder / names[0], record / names[0]
    if published.is_file() and not _is_unfinished(published) and _is_unfinished(page):
        return
    make_record(record)
    for name in names:
        if (folder / name).is_file():
            _copy(folder / name, record / name)
        else:
            (record / name).unlink(missing_ok=True)


def _is_unfinished(page: Path) -> bool:
    return NOT_FINISHED in page.read_text(encoding="utf-8")


def _digest(asked: pl.DataFrame) -> str:
    return hashlib.sha256(asked.select(ASKED).write_csv().encode()).hexdigest()


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)
