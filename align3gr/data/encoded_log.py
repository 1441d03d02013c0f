"""The numeric view of a log: codes for ids, rows sorted by user and time, lists cut from flat columns."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from align3gr.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from align3gr.data.time_boundaries import Moment, boundary
from align3gr.errors import InputError

DUPLICATES = ("keep", "first", "last")


class Codes:
    """A column of ids as integers, equal where the ids are equal.

    Args:
        column: ids, strings, integers or Categorical.

    Attributes:
        codes: (rows,) uint32.

    Example:
        >>> codes = Codes(pl.Series(["b", "a", "b"]))
        >>> codes.rows_in(pl.Series(["a", "b"])).tolist(), codes.rows_in(pl.Series(["a"])).tolist()
        ([1, 0, 1], [-1, 0, -1])
    """

    def __init__(self, column: pl.Series) -> None:
        if not isinstance(column.dtype, pl.Categorical):
            column = column.cast(pl.String).cast(pl.Categorical(pl.Categories.random()))
        self.column = column
        self.codes: np.ndarray = column.to_physical().to_numpy()

    def rows_in(self, ids: pl.Series, rows: np.ndarray | None = None) -> np.ndarray:
        """(rows,) int32 position in `ids` of the id in each row (of `rows`, where given), -1 where it is not there."""
        wanted = ids.cast(self.column.dtype).to_physical().to_numpy()
        position = np.full(max(self.codes.max(initial=0), wanted.max(initial=0)) + 1, -1, dtype=np.int32)
        position[wanted] = np.arange(len(wanted), dtype=np.int32)
        return position[self.codes if rows is None else self.codes[rows]]

    def distinct(self, rows: np.ndarray) -> pl.Series:
        """The distinct ids of some rows, as strings, in no order."""
        return self.column.gather(rows).unique().cast(pl.String)


@dataclass
class OrderedLog:
    """Rows of the log in the order of the users, each user's oldest first.

    Attributes:
        rows: (n,) rows of the log.
        user_rows: (n,) row of the split's users of each.
        counts: (n,) rows of the same user.
        from_end: (n,) place counted from the user's last row, which is 1.
    """

    rows: np.ndarray
    user_rows: np.ndarray
    counts: np.ndarray
    from_end: np.ndarray


class EncodedLog:
    """Interactions whose ids are codes.

    Args:
        interactions: user_id, item_id, timestamp.
    """

    def __init__(self, interactions: pl.DataFrame) -> None:
        self.users, self.items = Codes(interactions[USER_ID]), Codes(interactions[ITEM_ID])
        self.timestamps: np.ndarray = interactions[TIMESTAMP].to_numpy()

    def rows_between(self, since: Moment | None, until: Moment | None) -> np.ndarray:
        """Ascending rows from the moment `since` on and before the moment `until` (see `boundary`)."""
        kept = np.ones(len(self.timestamps), dtype=bool)
        if since is not None:
            kept &= self.timestamps >= boundary(self.timestamps, since, "since")
        if until is not None:
            kept &= self.timestamps < boundary(self.timestamps, until, "until")
        return np.flatnonzero(kept).astype(np.int32)

    def distinct_rows(self, rows: np.ndarray, duplicates: str) -> np.ndarray:
        """Those of some ascending rows that are left when of equal (user, item) pairs the "first" or "last" in time is
        kept; "keep" keeps all."""
        if duplicates not in DUPLICATES:
            raise InputError(f"duplicates: got {duplicates!r}, choose from {', '.join(DUPLICATES)}")
        if duplicates == "keep" or not len(rows):
            return rows
        users, items = self.users.codes[rows], self.items.codes[rows]
        order = np.lexsort((self.timestamps[rows], items, users))
        new = np.append(True, (np.diff(users[order]) != 0) | (np.diff(items[order]) != 0))
        return rows[np.sort(order[new if duplicates == "first" else np.append(new[1:], True)])]

    def core_rows(self, rows: np.ndarray, k: int) -> np.ndarray:
        """The k-core of some rows: see `k_core`."""
        if k < 0:
            raise InputError(f"k: got {k}, expected 0 or more interactions")
        while True:
            before = len(rows)
            for codes in (self.users.codes, self.items.codes):
                rows = rows[np.bincount(codes[rows])[codes[rows]] >= k] if len(rows) else rows
            if len(rows) == before:
                return rows

    def ordered(self, rows: np.ndarray, user_ids: pl.Series) -> OrderedLog:
        """Some rows (ascending) by user and time. Equal times keep the row order, which is the stated tie rule."""
        user_rows = self.users.rows_in(user_ids, rows)
        order = np.lexsort((self.timestamps[rows], user_rows))
        counts = np.bincount(user_rows, minlength=len(user_ids)).astype(np.int32)
        user_rows = user_rows[order]
        from_end = (np.cumsum(counts)[user_rows] - np.arange(len(rows))).astype(np.int32)
        return OrderedLog(rows[order], user_rows, counts[user_rows], from_end)


def as_lists(values: pl.Series, lengths: np.ndarray) -> pl.Series:
    """A flat column cut into lists without a copy.

    Args:
        values: sum(lengths) values.
        lengths: (lists,) length of each list.
    """
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int64())
    flat = values.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
    return pl.Series(values.name, pl.from_arrow(pa.LargeListArray.from_arrays(offsets, flat)))
