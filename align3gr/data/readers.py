"""Readers of finished tables: the canonical layout, and that of LC-Rec and LETTER."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from align3gr.data.lines import existing_file
from align3gr.data.schema import ITEM_ID, PROFILE, TEXT, TIMESTAMP, TITLE, USER_ID
from align3gr.data.source import existing_folder
from align3gr.data.tables import Tables
from align3gr.errors import InputError


def read_tables(folder: str | Path) -> Tables:
    """Read the canonical layout: interactions.parquet, items.parquet and, optionally, users.parquet.

    Args:
        folder: holds these files.

    Raises:
        InputError: see `Tables.load`.
    """
    return Tables.load(folder)


def read_lcrec(folder: str | Path) -> Tables:
    """Read the layout of LC-Rec and LETTER: one {Name}.inter.json and its {Name}.item.json.

    {Name}.inter.json holds {user: [item, ...]} in time order, {Name}.item.json {item: {"title": ..., "description":
    ...}}. There are no times, so the timestamp is the position in the user's list; there are no ratings and no
    profiles.

    Args:
        folder: holds both files, of one data set.

    Raises:
        InputError: a file is missing, not UTF-8, not JSON or of another shape; a history is empty or names an item
            that the item file does not have.
    """
    folder = existing_folder(folder)
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


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = [path.name for path in found]
        raise InputError(f"{folder}: expected exactly one file {pattern}, found {names or 'none'}")
    return found[0]


def _read_text(path: Path) -> str:
    try:
        return existing_file(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not valid UTF-8; convert the file to UTF-8") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid JSON at line {error.lineno} column {error.colno} ({error.msg}); "
            f"the file may be truncated, fetch it again"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a JSON {type(content).__name__}, expected an object with one entry an id")
    return content
