"""Codes by entity: a table of ids and their codes, never a bare array in somebody's row order."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from align3gr.errors import InputError

CODES = "codes"


def save_codes(path: str | Path, id_column: str, ids: Sequence[str] | pl.Series, codes: np.ndarray) -> None:
    """Writes a Parquet table of `id_column` and `codes` (a list of integers). Shape: `codes` `(ids, levels)`."""
    pl.DataFrame({id_column: ids}).with_columns(codes_column(codes)).write_parquet(path)


def codes_column(codes: np.ndarray) -> pl.Series:
    """Codes as a column of a table. Shape: `(rows, levels)`."""
    return pl.Series(CODES, codes.tolist(), dtype=pl.List(pl.Int64))


def load_codes(path: str | Path, id_column: str, ids: Sequence[str] | pl.Series) -> np.ndarray:
    """The codes of the given ids, in their order. Shape: `(ids, levels)` int64.

    Raises:
        InputError: the table is missing, has other columns, lacks an id, or has rows of different length.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: not found; run the scid stage first")
    frame = pl.read_parquet(path)
    for column in (id_column, CODES):
        if column not in frame.columns:
            raise InputError(f"{path}: column '{column}' is missing, it has {', '.join(frame.columns)}")
    wanted = pl.DataFrame({id_column: pl.Series(ids, dtype=pl.String)})
    found = wanted.join(frame, on=id_column, how="left", maintain_order="left")
    missing = found.filter(pl.col(CODES).is_null())
    if len(missing):
        raise InputError(
            f"{path}: {id_column} '{missing[id_column][0]}' has no codes; make the codes for this data set"
        )
    lengths = found[CODES].list.len().unique()
    if len(lengths) > 1:
        raise InputError(
            f"{path}: column '{CODES}' has rows of {sorted(lengths.to_list())} levels, expected one length"
        )
    return np.asarray(found[CODES].to_list(), dtype=np.int64)
