"""Ready vectors: a column of a Parquet table, joined by id."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from align3gr.errors import InputError

logger = logging.getLogger(__name__)


def load_vectors(path: str | Path, id_column: str, ids: pl.Series, columns: Sequence[str] = ("vector",)) -> np.ndarray:
    """Vectors of the given ids, in their order. Shape: `(ids, dim)` float32.

    An id without a vector gets the zero vector; how many there are is logged. Vectors of other ids are not read.

    Args:
        path: Parquet file with an id column (strings or integers) and a column of number lists, all of one length.
        id_column: "item_id" or "user_id".
        ids: strings.
        columns: names that the column of vectors may have; the first that is there is taken.

    Raises:
        InputError: the file or a column is missing, an id stands there twice, a vector has another width or a value
            that is not a finite number, or no id has a vector.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: not found; give a Parquet file with {id_column} and {' or '.join(columns)}")
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: no readable Parquet file ({' '.join(str(error).split())[:120]})") from error
    column = next((name for name in columns if name in frame.columns), None)
    if column is None or id_column not in frame.columns:
        missing = id_column if id_column not in frame.columns else " or ".join(columns)
        raise InputError(f"{path}: column '{missing}' is missing, it has {', '.join(frame.columns)}; rename or add it")
    dtype = frame[column].dtype
    if not (isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric()):
        raise InputError(f"{path}: column '{column}' has type {frame[column].dtype}, expected lists of numbers")
    frame = frame.select(pl.col(id_column).cast(pl.String), pl.col(column).cast(pl.List(pl.Float32)))
    frame = frame.filter(pl.col(column).is_not_null())
    width = _width(frame, column, id_column, path)
    if frame[id_column].is_duplicated().any():
        twice = frame[id_column].filter(frame[id_column].is_duplicated())[0]
        raise InputError(f"{path}: {id_column} '{twice}' has more than one vector; keep one")
    joined = pl.DataFrame({id_column: ids}).join(frame, on=id_column, how="left", maintain_order="left")
    there = joined[column].is_not_null().to_numpy()
    if not there.any():
        raise InputError(f"{path}: none of the {len(ids):,} ids has a vector; is its {id_column} that of the data?")
    if not there.all():
        logger.info("%s: %d of %d ids have no vector and get zeros", path, (~there).sum(), len(ids))
    vectors = np.zeros((len(ids), width), dtype=np.float32)
    vectors[there] = joined[column].drop_nulls().explode().to_numpy().reshape(-1, width)
    return vectors


def _width(frame: pl.DataFrame, column: str, id_column: str, path: str | Path) -> int:
    """The one length of all vectors."""
    widths = frame[column].list.len()
    if not len(frame) or not widths.max():
        raise InputError(f"{path}: column '{column}' holds no vector")
    width = int(widths.mode().max())  # type: ignore[arg-type]
    other = (widths != width).arg_true()
    if len(other):
        raise InputError(
            f"{path}: {id_column} '{frame[id_column][other[0]]}' has a vector of {widths[other[0]]} numbers, "
            f"others have {width}; make them one width"
        )
    if not frame[column].explode().is_finite().fill_null(False).all():
        raise InputError(f"{path}: column '{column}' holds a null, NaN or infinity; replace it by a number")
    return width
