"""Files that recommendations are made from: histories of users in Parquet, CSV or JSON lines, and lists of items."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from align3gr.data.delimited import csv_columns, read_csv
from align3gr.data.lines import json_records
from align3gr.data.schema import ITEM_ID, ITEMS, PROFILE, USER_ID
from align3gr.decoding.requests import Request
from align3gr.errors import InputError

# What a file is, by its ending; an input with another one is read as Parquet.
KINDS = {"": "parquet", ".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
COLUMNS = (ITEMS, USER_ID, PROFILE)
_ROWS_AT_ONCE = 8192


def kind_of(path: str | Path) -> str | None:
    """What a file of histories or recommendations is by its ending, `.gz` aside; None where that says nothing."""
    return KINDS.get(Path(str(path).removesuffix(".gz")).suffix)


def check_histories(path: str | Path) -> None:
    """Make sure that a file holds histories, without reading its rows.

    Raises:
        InputError: it is missing, not what its ending says, or `items` is missing or no list of ids.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: not found; give a Parquet, CSV or JSON lines file with the column 'items'")
    if kind_of(path) in ("csv", "jsonl"):
        names = csv_columns(path) if kind_of(path) == "csv" else list(next(json_records(path), (0, {ITEMS: []}))[1])
        if ITEMS not in names:
            raise InputError(f"{path}: column 'items' is missing, it has {', '.join(names)}; name the histories so")
        return
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    if ITEMS not in schema.names:
        raise InputError(f"{path}: column 'items' is missing, it has {', '.join(schema.names)}; name the histories so")
    kind = schema.field(ITEMS).type
    inner = getattr(kind, "value_type", None)
    is_ids = inner is not None and (
        pa.types.is_integer(inner)
        or pa.types.is_string(inner)
        or pa.types.is_large_string(inner)
        or pa.types.is_string_view(inner)
    )
    if pa.types.is_dictionary(kind) or not is_ids:
        raise InputError(f"{path}: column 'items' has type {kind}, expected lists of item ids (strings or integers)")


def check_output(path: str | Path, source: str | Path) -> None:
    """Make sure that it is clear what is to be written, and that it does not replace the histories of `source`.

    Raises:
        InputError: the ending of the file says nothing, or it is the source.
    """
    if kind_of(path) is None or Path(path).suffix == ".gz":
        endings = ", ".join(filter(None, KINDS))
        raise InputError(f"{path}: its ending says nothing, expected {endings}; choose another name")
    if Path(path).exists() and Path(path).samefile(source):
        raise InputError(f"{path}: holds the histories and would be replaced by the lists; choose another name")


def read_item_ids(path: str | Path) -> list[str]:
    """Item ids of a text file, one a line, or of the column `item_id` of a Parquet file.

    Raises:
        InputError: the file is missing, unreadable, or names no item.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: not found; give item ids, one a line, or Parquet with the column 'item_id'")
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
            if ITEM_ID not in frame.columns:
                raise InputError(f"{path}: column 'item_id' is missing, it has {', '.join(frame.columns)}")
            ids = frame[ITEM_ID].drop_nulls().cast(pl.String).to_list()
        else:
            ids = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not ids:
        raise InputError(f"{path}: names no item, so nothing could be recommended")
    return ids


def check_items(path: Path, catalogue: pl.Series, rows: int) -> None:
    """Make sure that a file of histories names items of the catalogue alone; `rows` are looked at together.

    Raises:
        InputError: it names another, or null.
    """
    known = catalogue.implode()
    first = 0
    for block in _blocks(path, rows, [ITEMS]):
        lists = block[ITEMS]
        ids = lists.explode(empty_as_null=False)
        unknown = (~ids.is_in(known)).fill_null(True).arg_true()
        if len(unknown):
            at = int((lists.list.len().cum_sum() > unknown[0]).arg_max() or 0)
            raise InputError(
                f"{path}: row {first + at}, column 'items' names {ids[unknown[0]]!r}, which is not in the "
                f"catalogue of {len(catalogue)} items; correct it, or skip unknown items: "
                'unknown_items="skip", --unknown_items skip'
            )
        first += block.height


def read_requests(path: Path, rows: int, profiles: bool) -> Iterator[list[Request]]:
    """The rows of a file of histories in blocks of exactly `rows`, the last one apart; profiles are read on demand."""
    known = _columns(path)
    columns = [name for name in COLUMNS if name in known and (name != PROFILE or profiles)]
    first = 0
    for block in _blocks(path, rows, columns):
        none = [None] * block.height
        users = block[USER_ID].to_list() if USER_ID in columns else none
        texts = block[PROFILE].to_list() if PROFILE in columns else none
        yield [
            Request(f"{path}: row {first + row}", *parts)
            for row, parts in enumerate(zip(block[ITEMS].to_list(), users, texts, strict=True))
        ]
        first += block.height


def _blocks(path: Path, rows: int, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows in blocks of exactly `rows`, whatever the file's row groups are; ids as strings."""
    left: pl.DataFrame | None = None
    for block in _READERS[kind_of(path) or "parquet"](path, columns):
        left = block if left is None else pl.concat([left, block])
        while left.height >= rows:
            yield _canonical(left[:rows])
            left = left[rows:]
    if left is not None and left.height:
        yield _canonical(left)


def count_rows(path: Path) -> int:
    """How many histories a file holds."""
    if kind_of(path) in ("csv", "jsonl"):
        return sum(block.height for block in _blocks(path, _ROWS_AT_ONCE, [ITEMS]))
    return pq.read_metadata(path).num_rows


def _columns(path: Path) -> Sequence[str]:
    """The columns of a file; a line of JSON may have any of those that are looked at."""
    if kind_of(path) == "jsonl":
        return COLUMNS
    return csv_columns(path) if kind_of(path) == "csv" else pq.read_schema(path).names


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    for batch in pq.ParquetFile(path).iter_batches(_ROWS_AT_ONCE, columns=list(columns)):
        yield pl.DataFrame(pl.from_arrow(batch))


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Histories are ids with blanks between them, or JSON lists for ids that have blanks; nothing is null."""
    for first, frame in read_csv(path, columns):
        lists = [_ids_of_text(text, f"{path}: row {first + row}") for row, text in enumerate(frame[ITEMS])]
        yield frame.with_columns(pl.Series(ITEMS, lists, dtype=pl.List(pl.String)), _without_empty(columns))


def _without_empty(columns: Sequence[str]) -> pl.Expr:
    return pl.col([name for name in columns if name != ITEMS]).replace("", None)


def _ids_of_text(text: str, place: str) -> list[str]:
    if not text.startswith("["):
        return text.split()
    try:
        return _ids(json.loads(text), place)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: column 'items' begins like a JSON list, but is none; correct it") from None


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    schema = {name: pl.List(pl.String) if name == ITEMS else pl.String for name in columns}
    rows: list[tuple[object, ...]] = []
    for number, record in json_records(path):
        place = f"{path}: line {number}"
        if ITEMS not in record:
            raise InputError(f"{place}: field 'items' is missing, it has {', '.join(record)}; name the history so")
        values: dict[str, object] = {
            name: None if (value := record.get(name)) is None else str(value) for name in columns
        }
        values[ITEMS] = _ids([] if record[ITEMS] is None else record[ITEMS], place)
        rows.append(tuple(values[name] for name in columns))
        if len(rows) == _ROWS_AT_ONCE:
            yield pl.DataFrame(rows, schema=schema, orient="row")
            rows = []
    if rows:
        yield pl.DataFrame(rows, schema=schema, orient="row")


def _ids(value: object, place: str) -> list[str]:
    if not isinstance(value, list) or any(isinstance(item, bool) or not isinstance(item, str | int) for item in value):
        raise InputError(f"{place}: 'items' is {value!r:.60}, expected a list of item ids (strings or integers)")
    return [str(item) for item in value]


_READERS = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}


def _canonical(block: pl.DataFrame) -> pl.DataFrame:
    texts = [pl.col(name).cast(pl.String) for name in block.columns if name != ITEMS]
    return block.with_columns(pl.col(ITEMS).cast(pl.List(pl.String)).fill_null([]), *texts)
