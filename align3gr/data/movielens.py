"""MovieLens, as GroupLens publishes it: the 100k and the 1M release, both latin-1.

An item's text is title, genres and year; a user's profile is a sentence of age, gender and occupation.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from align3gr.data.lines import existing_file
from align3gr.data.schema import ITEM_ID, PROFILE, RATING, TEXT, TIMESTAMP, TITLE, USER_ID
from align3gr.data.source import existing_folder
from align3gr.data.tables import Tables
from align3gr.errors import InputError

GENDERS = {"M": "man", "F": "woman"}
# The codes of users.dat, from the README of MovieLens-1M.
AGES_1M = {
    "1": "under 18",
    "18": "of 18 to 24",
    "25": "of 25 to 34",
    "35": "of 35 to 44",
    "45": "of 45 to 49",
    "50": "of 50 to 55",
    "56": "of 56 or more",
}
OCCUPATIONS_1M = (
    "other",
    "academic or educator",
    "artist",
    "clerical or admin",
    "college or graduate student",
    "customer service",
    "doctor or health care",
    "executive or managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales or marketing",
    "scientist",
    "self-employed",
    "technician or engineer",
    "tradesman or craftsman",
    "unemployed",
    "writer",
)


def read_movielens_100k(folder: str | Path) -> Tables:
    """Read MovieLens-100k: u.data, u.item, u.user and u.genre.

    Args:
        folder: holds these files.

    Raises:
        InputError: a file is missing, or a line has another number of columns or a value that is not the number it
            should be; file and line are named.
    """
    folder = existing_folder(folder)
    genres = _movielens_genres(folder / "u.genre")
    return Tables(
        interactions=_ratings(folder / "u.data", "\t"),
        items=_movielens_items(folder / "u.item", genres),
        users=_movielens_users(folder / "u.user"),
        source=str(folder),
    )


def read_movielens_1m(folder: str | Path) -> Tables:
    """Read MovieLens-1M: ratings.dat, movies.dat and users.dat, separated by "::".

    Args:
        folder: holds these files.

    Raises:
        InputError: a file is missing, or a line has another number of columns or a value that it should not have; file
            and line are named.
    """
    folder = existing_folder(folder)
    return Tables(
        interactions=_ratings(folder / "ratings.dat", "::"),
        items=_items_1m(folder / "movies.dat"),
        users=_users_1m(folder / "users.dat"),
        source=str(folder),
    )


def _ratings(path: Path, separator: str) -> pl.DataFrame:
    """user, item, rating, seconds since 1970 in each line."""
    columns: tuple[list[str], list[str], list[int], list[float]] = ([], [], [], [])
    for line, (user, item, rating, timestamp) in _read_lines(path, separator, 4):
        columns[0].append(user)
        columns[1].append(item)
        columns[2].append(_integer(path, line, "timestamp", timestamp))
        columns[3].append(float(_integer(path, line, "rating", rating)))
    types = {USER_ID: pl.String, ITEM_ID: pl.String, TIMESTAMP: pl.Int64, RATING: pl.Float64}
    return pl.DataFrame(dict(zip(types, columns, strict=True)), schema=types)


def _items_1m(path: Path) -> pl.DataFrame:
    rows: dict[str, list[str]] = {ITEM_ID: [], TITLE: [], TEXT: []}
    for _, (item, title, genres) in _read_lines(path, "::", 3):
        title = title.strip()
        year = title[-5:-1] if title.endswith(")") else ""
        parts = [title.removesuffix(f"({year})").strip(), ", ".join(genres.split("|")), year]
        rows[ITEM_ID].append(item)
        rows[TITLE].append(title)
        rows[TEXT].append(". ".join(filter(None, parts)))
    return pl.DataFrame(rows, schema={ITEM_ID: pl.String, TITLE: pl.String, TEXT: pl.String})


def _users_1m(path: Path) -> pl.DataFrame:
    user_ids, profiles = [], []
    for line, (user, gender, age, occupation, _) in _read_lines(path, "::", 5):
        number = _integer(path, line, "occupation", occupation)
        if gender not in GENDERS or age not in AGES_1M or not 0 <= number < len(OCCUPATIONS_1M):
            raise InputError(
                f"{path}: line {line} has gender {gender!r}, age {age!r} and occupation {occupation!r}, expected M or "
                f"F, one of {', '.join(AGES_1M)}, and 0 to {len(OCCUPATIONS_1M) - 1}"
            )
        user_ids.append(user)
        profiles.append(f"A {GENDERS[gender]} {AGES_1M[age]} years, occupation: {OCCUPATIONS_1M[number]}.")
    return pl.DataFrame({USER_ID: user_ids, PROFILE: profiles}, schema={USER_ID: pl.String, PROFILE: pl.String})


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
    user_ids, profiles = [], []
    for line, (user, age, gender, occupation, _) in _read_lines(path, "|", 5):
        if gender not in GENDERS:
            raise InputError(f"{path}: line {line} has gender {gender!r}, expected M or F")
        user_ids.append(user)
        profiles.append(f"A {GENDERS[gender]} of {_integer(path, line, 'age', age)} years, occupation: {occupation}.")
    return pl.DataFrame({USER_ID: user_ids, PROFILE: profiles}, schema={USER_ID: pl.String, PROFILE: pl.String})


def _read_lines(path: Path, separator: str, columns: int) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, fields) of each line that is not blank. GroupLens writes latin-1."""
    for number, line in enumerate(existing_file(path).read_text(encoding="latin-1").split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split(separator)
        if len(fields) != columns:
            raise InputError(
                f"{path}: line {number} has {len(fields)} columns, expected {columns} separated by {separator!r}; "
                f"correct or remove the line"
            )
        yield number, fields


def _integer(path: Path, line: int, name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{path}: line {line} has {name} {value!r}, expected a whole number") from None
