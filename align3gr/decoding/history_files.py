"""Files that recommendations are made from: histories of users in Parquet, and lists of items."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from align3gr.data.schema import ITEM_ID, ITEMS, PROFILE, USER_ID
from align3gr.decoding.requests import Request
from align3gr.errors import InputError


def check_histories(path: str | Path) -> None:
    """Make sure that a file holds histories, without reading its rows.

    Raises:
        InputError: it is missing, not Parquet, or `items` is missing or no list of ids.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: not found; give a Parquet file with the column 'items'")
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
    known = pq.read_schema(path).names
    columns = [name for name in (ITEMS, USER_ID, PROFILE) if name in known and (name != PROFILE or profiles)]
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
    for batch in pq.ParquetFile(path).iter_batches(rows, columns=list(columns)):
        block = pl.DataFrame(pl.from_arrow(batch))
        left = block if left is None else pl.concat([left, block])
        while left.height >= rows:
            yield _canonical(left[:rows])
            left = left[rows:]
    if left is not None and left.height:
        yield _canonical(left)


def _canonical(block: pl.DataFrame) -> pl.DataFrame:
    texts = [pl.col(name).cast(pl.String) for name in block.columns if name != ITEMS]
    return block.with_columns(pl.col(ITEMS).cast(pl.List(pl.String)).fill_null([]), *texts)
