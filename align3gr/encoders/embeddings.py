"""Embedding tables: vectors by entity, as Parquet."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from align3gr.errors import InputError

SEMANTIC = "semantic"
COLLABORATIVE = "collaborative"


@dataclass
class Embeddings:
    """Vectors of all users or all items; a kind that is left out is None.

    Attributes:
        semantic: `(rows, dim)` float32.
        collaborative: `(rows, dim)` float32.
    """

    semantic: np.ndarray | None = None
    collaborative: np.ndarray | None = None

    def save(self, path: str | Path, id_column: str, ids: pl.Series) -> None:
        """Writes a Parquet table of the ids and one list column for each kind."""
        frame = pl.DataFrame({id_column: ids})
        for name, values in ((SEMANTIC, self.semantic), (COLLABORATIVE, self.collaborative)):
            if values is not None:
                column = pl.Series(name, values.astype(np.float32), dtype=pl.Array(pl.Float32, values.shape[1]))
                frame = frame.with_columns(column.arr.to_list())
        frame.write_parquet(path)

    @classmethod
    def load(cls, path: str | Path, id_column: str, ids: pl.Series) -> "Embeddings":
        """Reads the vectors of the given ids, in their order.

        Raises:
            InputError: the table is missing or lacks an id.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: not found; run the embed stage first")
        frame = pl.read_parquet(path)
        if id_column not in frame.columns:
            raise InputError(f"{path}: column '{id_column}' is missing, it has {', '.join(frame.columns)}")
        unknown = ids.filter(~ids.is_in(frame[id_column].implode()))
        if len(unknown):
            raise InputError(f"{path}: {id_column} '{unknown[0]}' has no vector; run the embed stage on this data")
        frame = pl.DataFrame({id_column: ids}).join(frame, on=id_column, how="left", maintain_order="left")
        return cls(*(_matrix(frame, name) for name in (SEMANTIC, COLLABORATIVE)))


def _matrix(frame: pl.DataFrame, name: str) -> np.ndarray | None:
    if name not in frame.columns:
        return None
    return frame[name].explode().to_numpy().reshape(len(frame), -1).astype(np.float32)
