"""Codes by entity: a table of ids and their codes, never a bare array in somebody's row order.

Two forms on disk: a Parquet table of an id column and `codes`, which is ours, and the `*.index.json` that LC-Rec and
LETTER publish, `{"0": ["<a_80>", "<b_235>"], ...}`, where the letter is the level.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from align3gr.data.schema import ITEM_ID
from align3gr.errors import InputError

CODES = "codes"
_INDEX_TOKEN = re.compile(r"<([a-z])_([0-9]+)>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class CodeTable:
    """The codes of some items or users.

    Attributes:
        ids: the items or users, each once.
        codes: `(ids, levels)` int64.
        source: what to call the table in an error, usually its path.
    """

    ids: list[str]
    codes: np.ndarray
    source: str = "codes"

    def rows(self, ids: Sequence[str] | pl.Series) -> np.ndarray:
        """The row of each id. Shape: `(len(ids),)` int64.

        Raises:
            InputError: the table lacks an id.
        """
        row = {name: i for i, name in enumerate(self.ids)}
        found = [row.get(name, -1) for name in ids]
        if -1 in found:
            missing = list(ids)[found.index(-1)]
            raise InputError(
                f"{self.source}: '{missing}' has no codes ({found.count(-1):,} of {len(found):,} have none); "
                "make the codes for this data set"
            )
        return np.asarray(found, dtype=np.int64)

    def lookup(self, ids: Sequence[str] | pl.Series) -> np.ndarray | None:
        """Codes where the table has them, -1 where it has not; None where it has no levels. Shape: `(ids, levels)`."""
        if not self.codes.shape[1]:
            return None
        row = {name: i for i, name in enumerate(self.ids)}
        rows = np.asarray([row.get(name, -1) for name in ids], dtype=np.int64)
        return np.where(rows[:, None] >= 0, self.codes[rows], -1)

    def select(self, ids: Sequence[str] | pl.Series) -> np.ndarray:
        """The codes of the given ids, in their order. Shape: `(len(ids), levels)` int64."""
        return self.codes[self.rows(ids)]


def read_code_table(path: str | Path, id_column: str = ITEM_ID) -> CodeTable:
    """A table of codes: Parquet with `id_column` and `codes`, or an `*.index.json` as LC-Rec and LETTER publish.

    Args:
        path: the table.
        id_column: the column of ids of a Parquet table.

    Raises:
        InputError: the file is missing or unreadable, has other columns, names an id twice, has rows of different
            length, or codes that are no codes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: not found; give a table of codes, such as scid/item_codes.parquet of a run")
    return _read_index(path) if path.suffix == ".json" else _read_parquet(path, id_column)


def load_codes(path: str | Path, id_column: str, ids: Sequence[str] | pl.Series) -> np.ndarray:
    """The codes of the given ids, in their order. Shape: `(ids, levels)` int64.

    Args:
        path: a table of codes, see [`read_code_table`].
        id_column: its column of ids.
        ids: whose codes.

    Raises:
        InputError: the table cannot be read, or lacks an id.
    """
    return read_code_table(path, id_column).select(ids)


def save_codes(path: str | Path, id_column: str, ids: Sequence[str] | pl.Series, codes: np.ndarray) -> None:
    """Writes a Parquet table of `id_column` and `codes` (a list of integers). Shape: `codes` `(ids, levels)`.

    Args:
        path: a Parquet file.
        id_column: the name of the column of ids.
        ids: whose codes.
        codes: integers. Shape: `(ids, levels)`.
    """
    pl.DataFrame({id_column: ids}).with_columns(codes_column(codes)).write_parquet(path)


def save_index(path: str | Path, ids: Sequence[str] | pl.Series, codes: np.ndarray) -> None:
    """Writes an `*.index.json` for LC-Rec, LETTER and what reads their files. Shape: `codes` `(ids, levels)`.

    Args:
        path: a JSON file.
        ids: whose codes.
        codes: integers. Shape: `(ids, levels)`.

    Raises:
        InputError: there are more levels than letters.
    """
    if codes.shape[1] > len(_LETTERS):
        raise InputError(f"codes: {codes.shape[1]} levels, the index form names at most {len(_LETTERS)}")
    index = {
        item: [f"<{_LETTERS[level]}_{code}>" for level, code in enumerate(row)]
        for item, row in zip(ids, codes.tolist(), strict=True)
    }
    Path(path).write_text(json.dumps(index), encoding="utf-8")


def save_codebook_sizes(path: str | Path, items: Sequence[int], users: Sequence[int]) -> None:
    """Writes how many codes each level of either side has; `users` is empty where users have no codes.

    Args:
        path: a JSON file.
        items: codes of each level of an item's SCID.
        users: codes of each level of a user's SCID.
    """
    text = json.dumps({"item": [int(size) for size in items], "user": [int(size) for size in users]})
    Path(path).write_text(text + "\n", encoding="utf-8")


def load_codebook_sizes(path: str | Path) -> tuple[list[int], list[int]]:
    """Codes at each level of item and user SCIDs.

    Args:
        path: a file that [`save_codebook_sizes`] wrote.

    Raises:
        InputError: the file is missing, or another one.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: not found; run the scid stage first")
    try:
        sizes = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}); run the scid stage again") from None
    sides = [sizes.get(side) for side in ("item", "user")] if isinstance(sizes, dict) else [None]
    if not all(isinstance(side, list) and all(type(size) is int and size > 0 for size in side) for side in sides):
        raise InputError(
            f'{path}: expected {{"item": [256, ...], "user": [...]}}, codes of each level; run the scid stage again'
        )
    return sizes["item"], sizes["user"]


def codes_column(codes: np.ndarray) -> pl.Series:
    """Codes as a column of a table. Shape: `(rows, levels)`.

    Args:
        codes: integers. Shape: `(rows, levels)`.
    """
    return pl.Series(CODES, codes.tolist(), dtype=pl.List(pl.Int64))


def _read_parquet(path: Path, id_column: str) -> CodeTable:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason}); give Parquet or *.index.json") from None
    for column in (id_column, CODES):
        if column not in frame.columns:
            raise InputError(f"{path}: column '{column}' is missing, it has {', '.join(frame.columns)}")
    ids, codes = frame[id_column].cast(pl.String), frame[CODES]
    if not isinstance(codes.dtype, pl.List | pl.Array) or not codes.dtype.inner.is_integer():
        raise InputError(f"{path}: column '{CODES}' has type {codes.dtype}, expected lists of integers")
    codes = codes.cast(pl.List(pl.Int64))
    if ids.null_count() or ids.is_duplicated().any():
        name = ids.filter(ids.is_null() | ids.is_duplicated())[0]
        raise InputError(f"{path}: {id_column} {name!r} is null or stands in two rows; keep one row an id")
    lengths = codes.list.len().unique().sort()  # null where a row has no list
    # Users without codes are rows of no levels: the model had no user side.
    if len(lengths) != 1 or lengths[0] is None or (lengths[0] == 0 and id_column == ITEM_ID):
        raise InputError(f"{path}: column '{CODES}' has rows of {lengths.to_list()} levels, expected one length")
    flat = codes.explode(empty_as_null=False)
    if flat.null_count() or (len(flat) and flat.min() < 0):  # type: ignore[operator]
        raise InputError(f"{path}: column '{CODES}' holds a null or a negative number, expected codes from 0 on")
    return CodeTable(ids.to_list(), flat.to_numpy().astype(np.int64).reshape(len(ids), -1), str(path))


def _read_index(path: Path) -> CodeTable:
    try:
        index = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=partial(_each_once, path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}); give an index such as Yelp.index.json") from None
    if not isinstance(index, dict) or not index:
        raise InputError(f'{path}: expected {{item: ["<a_12>", "<b_3>", ...]}} with at least one item')
    rows: list[list[int]] = []
    for item, tokens in index.items():
        if not isinstance(tokens, list) or not tokens:
            raise InputError(f"{path}: item '{item}' has {tokens!r}, expected a list of tokens such as <a_12>")
        if rows and len(tokens) != len(rows[0]):
            raise InputError(
                f"{path}: item '{item}' has {tokens!r}, expected a list of {len(rows[0])} tokens like the first"
            )
        rows.append([_index_code(path, item, level, token) for level, token in enumerate(tokens)])
    return CodeTable(list(index), np.asarray(rows, dtype=np.int64), str(path))


def _each_once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose reader would take the last of two entries of one name."""
    index = dict(pairs)
    if len(index) < len(pairs):
        twice = next(item for item, count in Counter(item for item, _ in pairs).items() if count > 1)
        raise InputError(f"{path}: item '{twice}' stands there twice; keep one entry an item")
    return index


def _index_code(path: Path, item: str, level: int, token: object) -> int:
    match = _INDEX_TOKEN.fullmatch(token) if isinstance(token, str) else None
    if match is None or level >= len(_LETTERS) or match[1] != _LETTERS[level]:
        expected = f"<{_LETTERS[level]}_12>" if level < len(_LETTERS) else f"at most {len(_LETTERS)} levels"
        raise InputError(f"{path}: item '{item}' has {token!r} at level {level}, expected a token like {expected}")
    return int(match[2])
