"""Own logs: CSV, JSON lines or Parquet, one file or a folder of them, with the columns that they happen to have.

A folder may be partitioned as Hive does it (`day=2024-01-01/part-0.parquet`): such names are columns too. Files are
read in the order of their paths, a block at a time.
"""

import difflib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from align3gr.data.delimited import csv_columns, read_csv
from align3gr.data.interaction_log import InteractionLog
from align3gr.data.lines import Progress, json_records, read_json_lines
from align3gr.data.schema import FEEDBACK, ITEM_ID, PROFILE, RATING, REVIEW, TEXT, TIMESTAMP, TITLE, USER_ID
from align3gr.data.source import LogFiles, LogSource, named_file, optional_file
from align3gr.data.tables import Tables
from align3gr.data.texts import as_texts, sentences
from align3gr.data.values import Place, TimestampColumn, numbered, read_ids, read_ratings
from align3gr.errors import InputError

ENDINGS = {"csv": (".csv",), "jsonl": (".jsonl", ".json", ".ndjson"), "parquet": (".parquet", ".pq")}
ROWS_AT_A_TIME = 65_536
FIRST_LINES = 100
Mapping = dict[str, list[str]]
# A part of a table: words for the place of a row, and the rows.
Chunk = tuple[Place, pl.DataFrame]
# A row of items or users: words for its place, its values, and the columns behind each name.
Row = tuple[str, dict[str, Any], Mapping]
# Names that a table may have; those that it must have stand first, with items the first one, with users both.
LOG_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP, RATING, FEEDBACK, REVIEW)
ITEM_COLUMNS = (ITEM_ID, TITLE, TEXT)
USER_COLUMNS = (USER_ID, PROFILE)


def column_files(kind: str, source: str | Path, options: LogSource) -> LogFiles:
    """The files of an own data set.

    The log is what the option `interactions` names, else the source itself if it is a file, else its file or folder
    `interactions`, else all files of the folder but those that the options name. Items and users are what the options
    name, else the files `items` and `users` beside the log's.

    Args:
        kind: "csv", "jsonl" or "parquet".
        source: file or folder.
        options: names of files, where they are not the usual ones.

    Raises:
        InputError: a file is missing.
    """
    source = Path(source)
    folder = source.parent if source.is_file() else source
    if options.interactions:
        log = named_file(folder, options.interactions, "interactions")
    elif source.is_file():
        log = source
    else:
        log = optional_file(folder, None, _usual("interactions", kind), "interactions") or folder
        if (folder / "interactions").is_dir():
            log = folder / "interactions"
    beside = folder if log != folder else None
    items, users = (
        optional_file(folder, given, _usual(name, kind) if beside else [], name)
        for name, given in (("items", options.items), ("users", options.users))
    )
    return LogFiles(str(source), log, items, users)


def read_columns(kind: str, files: LogFiles, options: LogSource) -> Tables:
    """Read an own data set.

    Args:
        kind: "csv", "jsonl" or "parquet", the files of the log; items and users go by their endings.
        files: what `column_files` found.
        options: the three column mappings and the rule for items without a row.

    Raises:
        InputError: a column is missing (the message lists those that are there and the closest), or a value cannot be
            used; file, row and column are named.
    """
    log = InteractionLog(files.source)
    mapping = options.mapping("columns")
    found: list[str] = []
    for path in _files(files, kind):
        constant = _partition(path.relative_to(files.interactions))
        names = [*_column_names(path, kind), *constant]
        chosen = chosen_columns(path, names, mapping, LOG_COLUMNS[:3], LOG_COLUMNS[3:], "columns")
        if found and found != list(chosen):
            raise InputError(
                f"{path}: has columns for {list(chosen)}, the files before it for {found}; write it again"
            )
        found = list(chosen)
        times = TimestampColumn(path, chosen[TIMESTAMP][0])
        for place, frame in _chunks(path, kind, chosen, constant):
            log.add(interaction_rows(path, place, frame, chosen, times))
    users = None
    if files.users is not None:
        rows = _rows(files.users, options.mapping("user_columns"), USER_COLUMNS, (), "user_columns")
        users = user_profiles(files.users, rows)
    if files.items is None:
        return log.tables(users=users)
    items = _rows(files.items, options.mapping("item_columns"), ITEM_COLUMNS[:1], ITEM_COLUMNS[1:], "item_columns")
    return log.tables(item_texts(files.items, items), users, options.missing_items, items_source=str(files.items))


def interaction_rows(
    path: Path, place: Place, frame: pl.DataFrame, chosen: Mapping, times: TimestampColumn
) -> pl.DataFrame:
    """A part of a log in the package's columns; `chosen` says which of the frame's they are."""
    columns = [
        read_ids(frame[chosen[USER_ID][0]], path, place).alias(USER_ID),
        read_ids(frame[chosen[ITEM_ID][0]], path, place).alias(ITEM_ID),
        times.read(frame[chosen[TIMESTAMP][0]], place).alias(TIMESTAMP),
    ]
    if RATING in chosen:
        columns.append(read_ratings(frame[chosen[RATING][0]], path, place).alias(RATING))
    for name in (FEEDBACK, REVIEW):
        if name in chosen:
            texts = [frame[column].cast(pl.String).replace("", None) for column in chosen[name]]
            joined = pl.select(pl.concat_str(texts, separator=". ", ignore_nulls=True)).to_series()
            columns.append(joined.replace("", None).alias(name))
    return pl.DataFrame(columns)


def item_texts(path: Path, rows: Iterable[Row]) -> Iterator[tuple[str, str, str]]:
    """(item_id, title, text). Without a title it is the id, without a text column the text is the title."""
    for place, row, chosen in rows:
        item_id = _id(row.get(chosen[ITEM_ID][0]), path, place, chosen[ITEM_ID][0])
        title = " ".join(_texts(row, chosen.get(TITLE, []))) or item_id
        yield item_id, title, sentences(*_texts(row, chosen.get(TEXT, []))) or title


def user_profiles(path: Path, rows: Iterable[Row]) -> pl.DataFrame:
    """user_id, profile; the first row of a user counts."""
    profiles: dict[str, str] = {}
    for place, row, chosen in rows:
        user_id = _id(row.get(chosen[USER_ID][0]), path, place, chosen[USER_ID][0])
        profiles.setdefault(user_id, sentences(*_texts(row, chosen[PROFILE])))
    columns = {USER_ID: list(profiles), PROFILE: list(profiles.values())}
    return pl.DataFrame(columns, dict.fromkeys(USER_COLUMNS, pl.String))


def _rows(
    path: Path, mapping: Mapping, required: Sequence[str], optional: Sequence[str], option: str
) -> Iterator[Row]:
    """The rows of a file of items or users."""
    kind = _kind(path)
    chosen = chosen_columns(path, _column_names(path, kind), mapping, required, optional, option)
    if kind == "jsonl":
        for line, record in json_records(path):
            yield f"line {line}", record, chosen
        return
    for place, frame in _chunks(path, kind, chosen, {}):
        for number, row in enumerate(frame.iter_rows(named=True)):
            yield place(number), row, chosen


def _texts(row: dict[str, Any], columns: list[str]) -> list[str]:
    return [text for text in (", ".join(as_texts(row.get(column))) for column in columns) if text]


def _id(value: Any, path: Path, place: str, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"{path}: {place} has {column} {value!r}, expected a text or a whole number; correct the row")
    return str(value)


def chosen_columns(
    path: Path,
    existing: Sequence[str],
    mapping: Mapping,
    required: Sequence[str],
    optional: Sequence[str],
    option: str,
) -> Mapping:
    """The columns of a file behind each name, checked; `option` is the one that maps them."""
    names = (*required, *optional)
    unknown = [name for name in mapping if name not in names]
    if unknown:
        raise InputError(
            f"{option}: unknown name {unknown[0]!r}{_closest(unknown[0], names)}; choose from {', '.join(names)}"
        )
    chosen = {name: mapping.get(name, [name]) for name in names}
    several = [name for name in (USER_ID, ITEM_ID, TIMESTAMP, RATING, FEEDBACK) if len(chosen.get(name, [])) > 1]
    if several:
        raise InputError(f"{option}: {several[0]!r} has several columns {chosen[several[0]]}, expected one")
    for name, columns in chosen.items():
        for column in columns:
            if column not in existing and (name in required or name in mapping):
                raise InputError(
                    f"{path}: has no column {column!r}{_closest(column, existing)}; its columns are {list(existing)}; "
                    f"say which is the {name} with {option}"
                )
    return {name: columns for name, columns in chosen.items() if columns[0] in existing}


def _closest(name: str, existing: Sequence[str]) -> str:
    lower = {column.lower(): column for column in existing}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f", the closest is {lower[close[0]]!r}" if close else ""


def _usual(name: str, kind: str) -> list[str]:
    """Usual names of a file, those of the log's kind first."""
    kinds = [kind, *(other for other in ENDINGS if other != kind)] if name != "interactions" else [kind]
    return [name + ending for each in kinds for ending in ENDINGS[each]]


def _kind(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    for kind, endings in ENDINGS.items():
        if name.endswith(endings):
            return kind
    raise InputError(
        f"{path}: unknown kind of file, expected one that ends with {', '.join(sum(ENDINGS.values(), ()))}"
    )


def _files(files: LogFiles, kind: str) -> list[Path]:
    path, others = files.interactions, {other.resolve() for other in (files.items, files.users) if other is not None}
    if path.is_file():
        return [path]
    named = (file for file in sorted(path.rglob("*")) if file.name.removesuffix(".gz").endswith(ENDINGS[kind]))
    found = [file for file in named if file.is_file() and file.resolve() not in others]
    if not found:
        raise InputError(f"{path}: holds no {kind} file ({', '.join(ENDINGS[kind])}); correct source or interactions")
    return found


def _partition(path: Path) -> dict[str, str]:
    """The columns in the names of the folders of a path."""
    return dict(part.split("=", 1) for part in path.parts[:-1] if "=" in part)


def _column_names(path: Path, kind: str) -> list[str]:
    if kind == "csv":
        return csv_columns(path)
    if kind == "jsonl":
        return list(_first_values(path))
    try:
        return pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); write it again") from None


def _first_values(path: Path) -> dict[str, Any]:
    """Every field of the first lines, with its first value that is not null: nothing else says what a file holds."""
    values: dict[str, Any] = {}
    for _, record in itertools.islice(json_records(path), FIRST_LINES):
        values.update({name: value for name, value in record.items() if values.get(name) is None})
    if not values:
        raise InputError(f"{path}: is empty, expected JSON lines")
    return values


def _chunks(path: Path, kind: str, chosen: Mapping, constant: dict[str, str]) -> Iterator[Chunk]:
    """The chosen columns of a file, a block at a time; `constant` are those in the names of its folders."""
    columns = list(dict.fromkeys(column for several in chosen.values() for column in several))
    inside = [column for column in columns if column not in constant]
    if kind == "csv":
        parts = _csv_chunks(path, inside)
    elif kind == "jsonl":
        parts = _json_chunks(path, inside, chosen.get(RATING, []))
    else:
        parts = _parquet_chunks(path, inside)
    for place, frame in parts:
        yield place, frame.with_columns(pl.lit(constant[name]).alias(name) for name in columns if name in constant)


def _csv_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    for first, frame in read_csv(path, columns):
        yield numbered("row", range(first, first + len(frame))), frame


def _json_chunks(path: Path, columns: Sequence[str], fractions: Sequence[str]) -> Iterator[Chunk]:
    """Types go by the first values; columns in `fractions` may be numbers with a fraction where the first has none."""
    values = _first_values(path)
    types: dict[type, Any] = {int: pl.Int64, float: pl.Float64}
    schema = {
        column: pl.Float64 if column in fractions else types.get(type(values.get(column)), pl.String)
        for column in columns
    }
    for lines, frame in read_json_lines(path, schema, ()):
        yield numbered("line", lines), frame


def _parquet_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    first = 0
    with Progress(path, "rows") as progress, pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(columns)):
            frame = pl.DataFrame(pl.from_arrow(batch))
            yield numbered("row", range(first, first + len(frame))), frame
            first += len(frame)
            progress.update(progress.total * first // max(file.metadata.num_rows, 1), len(frame))
