"""The tables of a model folder: items and users with their codes, checked at the door."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from align3gr.data.schema import TITLE
from align3gr.errors import InputError

CODES = "codes"


@dataclass(frozen=True)
class CatalogueTable:
    """A table of entities with codes.

    Attributes:
        frame: the table with the wanted columns in order, ids as strings.
        codes: `(rows, levels)` int64.
        index: the row of each id.
    """

    frame: pl.DataFrame
    codes: np.ndarray
    index: dict[str, int]

    @classmethod
    def check(cls, frame: pl.DataFrame, columns: tuple[str, ...], levels: int, source: str) -> "CatalogueTable":
        """Take the `columns`, of which the first holds the ids.

        Raises:
            InputError: a column is missing, an id is null or stands twice, or a row has another number of codes.
        """
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise InputError(f"{source}: column {missing[0]!r} is missing, found {frame.columns}; add it")
        key = columns[0]
        frame = frame.select(columns).with_columns(pl.col(key).cast(pl.String))
        if TITLE in columns:
            frame = frame.with_columns(pl.col(TITLE).cast(pl.String).fill_null(""))
        ids = frame[key].to_list()
        index = {name: row for row, name in enumerate(ids)}
        if len(index) != len(ids) or None in index:
            twice = next(name for row, name in enumerate(ids) if name is None or index[name] != row)
            raise InputError(f"{source}: {key} {twice!r} is null or stands in two rows; each needs one row of its own")
        lists = frame[CODES].cast(pl.List(pl.Int64))
        wrong = (lists.list.len() != levels).fill_null(True).arg_true()
        if len(wrong):
            row = wrong[0]
            codes = lists[row]
            found = None if codes is None else codes.to_list()
            raise InputError(f"{source}: {key} {ids[row]!r} has codes {found}, expected {levels} integers")
        flat = lists.explode(empty_as_null=False).to_numpy().astype(np.int64) if levels else np.zeros(0, np.int64)
        return cls(frame, flat.reshape(len(ids), levels), index)
