"""Readers: published data sets, as their authors lay them out, to `Tables`."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from align3gr.data.schema import ITEM_ID, PROFILE, RATING, TEXT, TIMESTAMP, TITLE, USER_ID
from align3gr.data.tables import Tables
from align3gr.errors import InputError


def read_tables(folder: str | Path) -> Tables:
    """Read the canonical layout: interactions.parquet, items.parquet and, optionally, users.parquet.

    Raises:
        InputError: see `Tables.load`.
    """
    return Tables.load(folder)


def read_lcrec(folder: str | Path) -> Tables:
    """Read the layout of LC-Rec and LETTER: one {Name}.inter.json and its {Name}.item.json.

    {Name}.inter.json holds {user: [item, ...]} in time order, {Name}.item.json {item: {"title": ..., "description":
    ...}}. There are no times, so the timestamp is the position in the user's list; there are no ratings and no
    profiles.

    Raises:
        InputError: a file is missing, not UTF-8, not JSON or of another shape; a history is empty or names an item
            that the item file does not have.
    """
    folder = _existing_folder(folder)
    interactions_path = _only_file(folder, "*.inter.json")
    items_path = interactions_path.with_name(interactions_path.name.removesuffix(".inter.json") + ".item.json")
    catalogue = _lcrec_items(items_path)
    known = set(catalogue[ITEM_ID])
    users: list[str] = []
    items: list[str] = []
    positions: list[int] = []
    sequences = _read_json(interactions_path)
    for user, history in sequences.items():
        if not isinstance(history, list):
            raise InputError(
                f"{interactions_path}: user {user!r} has a {type(history).__name__}, expected a list of items"
            )
        if not history:
            raise InputError(f"{interactions_path}: user {user!r} has an empty history; remove the user")
        names = [str(item) for item in history]
        if not known.issuperset(names):
            unknown = next(item for item in names if item not in known)
            raise InputError(
                f"{interactions_path}: user {user!r} has item {unknown!r}, which {items_path.name} does not have; "
                f"add the item there or remove it from the history"
            )
        users.extend([user] * len(names))
        items.extend(names)
        positions.extend(range(len(names)))
    return Tables(
        interactions=pl.DataFrame({USER_ID: users, ITEM_ID: items, TIMESTAMP: positions}),
        items=catalogue,
        users=pl.DataFrame({USER_ID: list(sequences), PROFILE: [""] * len(sequences)}),
        source=str(folder),
    )


def read_movielens_100k(folder: str | Path) -> Tables:
    """Read MovieLens-100k as GroupLens publishes it: u.data, u.item, u.user and u.genre.

    An item's text is title, genres and year; a user's profile is a sentence of age, gender and occupation.

    Raises:
        InputError: a file is missing, or a line has another number of columns or a value that is not the number it
            should be; file and line are named.
    """
    folder = _existing_folder(folder)
    genres = _movielens_genres(folder / "u.genre")
    ratings = _read_lines(folder / "u.data", "\t", 4)
    numbers = [
        (_integer(folder / "u.data", line, "rating", row[2]), _integer(folder / "u.data", line, "timestamp", row[3]))
        for line, row in ratings
    ]
    return Tables(
        interactions=pl.DataFrame(
            {
                USER_ID: [row[0] for _, row in ratings],
                ITEM_ID: [row[1] for _, row in ratings],
                TIMESTAMP: [timestamp for _, timestamp in numbers],
                RATING: [float(rating) for rating, _ in numbers],
            }
        ),
        items=_movielens_items(folder / "u.item", genres),
        users=_movielens_users(folder / "u.user"),
        source=str(folder),
    )


def _lcrec_items(path: Path) -> pl.DataFrame:
    rows: dict[str, list[str]] = {ITEM_ID: [], TITLE: [], TEXT: []}
    for item, fields in _read_json(path).items():
        values: list[str] = []
        for name in ("title", "description"):
            value = fields.get(name) if isinstance(fields, dict) else None
            if not isinstance(value, str):
                raise InputError(f"{path}: item {item!r} has no text {name!r}; add it, the empty text will do")
            values.append(value.strip())
        rows[ITEM_ID].append(item)
        rows[TITLE].append(values[0])
        rows[TEXT].append(". ".join(filter(None, values)))
    return pl.DataFrame(rows, schema={ITEM_ID: pl.String, TITLE: pl.String, TEXT: pl.String})


def _movielens_genres(path: Path) -> list[str]:
    rows = _read_lines(path, "|", 2)
    indexed = sorted((_integer(path, line, "genre number", row[1]), row[0]) for line, row in rows)
    if [number for number, _ in indexed] != list(range(len(indexed))):
        raise InputError(f"{path}: the genre numbers must be 0 to {len(indexed) - 1}, each once")
    return [name for _, name in indexed]


def _movielens_items(path: Path, genres: list[str]) -> pl.DataFrame:
    rows: dict[str, list[str]] = {ITEM_ID: [], TITLE: [], TEXT: []}
    for _, row in _read_lines(path, "|", 5 + len(genres)):
        title, release = row[1].strip(), row[2].strip()
        # Release is day-month-year; where it is missing the title mostly ends with "(year)".
        year = release[-4:] or (title[-5:-1] if title.endswith(")") else "")
        own = [name for name, flag in zip(genres, row[5:], strict=True) if flag == "1"]
        parts = [title.removesuffix(f"({year})").strip(), ", ".join(own), year]
        rows[ITEM_ID].append(row[0])
        rows[TITLE].append(title)
        rows[TEXT].append(". ".join(filter(None, parts)))
    return pl.DataFrame(rows, schema={ITEM_ID: pl.String, TITLE: pl.String, TEXT: pl.String})


def _movielens_users(path: Path) -> pl.DataFrame:
    genders = {"M": "man", "F": "woman"}
    user_ids, profiles = [], []
    for line, (user, age, gender, occupation, _) in _read_lines(path, "|", 5):
        if gender not in genders:
            raise InputError(f"{path}: line {line} has gender {gender!r}, expected M or F")
        user_ids.append(user)
        profiles.append(f"A {genders[gender]} of {_integer(path, line, 'age', age)} years, occupation: {occupation}.")
    return pl.DataFrame({USER_ID: user_ids, PROFILE: profiles}, schema={USER_ID: pl.String, PROFILE: pl.String})


def _existing_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the data set")
    return folder


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = [path.name for path in found]
        raise InputError(f"{folder}: expected exactly one file {pattern}, found {names or 'none'}")
    return found[0]


def _read_text(path: Path, encoding: str) -> str:
    try:
        return path.read_text(encoding=encoding)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the folder must hold it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not valid UTF-8; convert the file to UTF-8") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path, "utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid JSON at line {error.lineno} column {error.colno} ({error.msg}); "
            f"the file may be truncated, fetch it again"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a JSON {type(content).__name__}, expected an object with one entry an id")
    return content


def _read_lines(path: Path, separator: str, columns: int) -> list[tuple[int, list[str]]]:
    """(line number from 1, fields) of each line that is not blank. GroupLens writes latin-1."""
    rows = []
    for number, line in enumerate(_read_text(path, "latin-1").split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split(separator)
        if len(fields) != columns:
            raise InputError(
                f"{path}: line {number} has {len(fields)} columns, expected {columns} separated by {separator!r}; "
                f"correct or remove the line"
            )
        rows.append((number, fields))
    return rows


def _integer(path: Path, line: int, name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{path}: line {line} has {name} {value!r}, expected a whole number") from None
