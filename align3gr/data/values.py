"""Columns of a log, whatever their file made of them, in the types of the package; a bad value's place is named."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from align3gr.errors import InputError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COMMON_FORMAT = "%Y-%m-%d %H:%M:%S"
# Turns a row of a chunk into words such as "line 17".
Place = Callable[[int], str]


def numbered(unit: str, numbers: Sequence[int]) -> Place:
    """Names a row by its number in the file.

    Example:
        >>> numbered("line", range(7, 9))(1)
        'line 8'
    """
    return lambda row: f"{unit} {numbers[row]}"


class TimestampColumn:
    """Reads the chunks of a column of times.

    Whole numbers stay as they are; dates, dates with times and ISO 8601 texts become microseconds since 1970 (UTC
    where they name no zone).

    Args:
        path: the file, for an error.
        name: the column, for an error.

    Example:
        >>> TimestampColumn(Path("x"), "t").read(pl.Series(["1970-01-01T00:00:02"]), str).to_list()
        [2000000]
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._numbers: bool | None = None

    def read(self, column: pl.Series, place: Place) -> pl.Series:
        """Int64 times.

        Raises:
            InputError: a value is missing, no time or above 64 bits, or numbers and dates are mixed.
        """
        if column.null_count():
            self._refuse(column, column.is_null(), place)
        if isinstance(column.dtype, pl.Datetime | pl.Date):
            return column.dt.epoch("us")
        if column.dtype.is_integer():
            return self._whole(column, place)
        if column.dtype.is_float():
            whole = column.cast(pl.Int64, strict=False)
            self._refuse(column, (whole.cast(pl.Float64) != column).fill_null(True), place)
            return whole
        if column.dtype != pl.String:
            self._refuse(column, pl.repeat(True, len(column), eager=True), place)
        numbers = column.str.contains(r"^\s*-?\d+\s*$")
        if self._numbers is None and len(column):
            self._numbers = bool(numbers[0])
        if self._numbers:
            self._refuse(column, ~numbers, place)
            return self._whole(column.str.strip_chars(), place)
        times = column.str.to_datetime(COMMON_FORMAT, time_unit="us", strict=False)
        if not times.null_count():
            return times.dt.epoch("us")
        values = [None if number else _microseconds(text) for text, number in zip(column, numbers, strict=True)]
        read = pl.Series(values, dtype=pl.Int64)
        self._refuse(column, read.is_null(), place)
        return read

    def _whole(self, column: pl.Series, place: Place) -> pl.Series:
        whole = column.cast(pl.Int64, strict=False)
        self._refuse(column, whole.is_null(), place, "a whole number of 64 bits with a sign")
        return whole

    def _refuse(self, column: pl.Series, wrong: pl.Series, place: Place, expected: str = "") -> None:
        if wrong.any():
            row = wrong.arg_true()[0]
            usual = "a whole number, as in the rows before" if self._numbers else "a whole number or an ISO date"
            raise InputError(
                f"{self.path}: {place(row)} has {self.name} {column[row]!r}, expected {expected or usual}; "
                f"correct or remove the row"
            )


def read_ids(column: pl.Series, path: Path, place: Place) -> pl.Series:
    """Ids as strings.

    Raises:
        InputError: an id is missing or neither text nor a whole number.
    """
    if not (column.dtype.is_integer() or isinstance(column.dtype, pl.String | pl.Categorical | pl.Enum)):
        raise InputError(
            f"{path}: column {column.name!r} has type {column.dtype}, expected texts or whole numbers; "
            f"cast it before saving"
        )
    ids = column.cast(pl.String)
    empty = (ids == "").fill_null(True)
    if empty.any():
        raise InputError(f"{path}: {place(empty.arg_true()[0])} has no {column.name}; correct or remove the row")
    return ids


def read_ratings(column: pl.Series, path: Path, place: Place) -> pl.Series:
    """Float64 ratings, null where there is none.

    Raises:
        InputError: a rating is no finite number.
    """
    if column.dtype == pl.String:
        column = column.replace("", None)
    numbers = column.cast(pl.Float64, strict=False)
    wrong = numbers.is_null() & column.is_not_null() | ~numbers.is_finite().fill_null(True)
    if wrong.any():
        row = wrong.arg_true()[0]
        raise InputError(
            f"{path}: {place(row)} has {column.name} {column[row]!r}, expected a finite number or nothing; "
            f"correct or remove the row"
        )
    return numbers


def _microseconds(text: str) -> int | None:
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)
