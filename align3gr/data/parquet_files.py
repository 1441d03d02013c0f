"""Parquet files of a folder, with errors that a person understands."""

from pathlib import Path

import polars as pl

from align3gr.errors import InputError


def read_parquet(folder: Path, name: str) -> pl.DataFrame:
    """One Parquet file of a folder; `InputError` where folder or file is missing or the file is not Parquet."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds {name}")
    path = folder / name
    if not path.exists():
        present = sorted(entry.name for entry in folder.iterdir())[:8]
        raise InputError(f"{folder}: {name} is missing, the folder holds {present}; give a folder that has it")
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.ComputeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason}); write it again") from None


def scan_parquet(path: Path) -> pl.LazyFrame:
    """A lazy view of one Parquet file; `InputError` where it is not Parquet."""
    frame = pl.scan_parquet(path)
    try:
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason}); prepare the data again") from None
    return frame
