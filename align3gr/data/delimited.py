"""CSV files of any size, a block at a time, all columns as texts."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv as pc

from align3gr.data.lines import BLOCK_BYTES, Progress, existing_file, open_bytes
from align3gr.errors import InputError


def csv_columns(path: Path) -> list[str]:
    """The names in the first row of a CSV file.

    Raises:
        InputError: the file is missing, empty or no CSV.
    """
    with existing_file(path).open("rb") as raw, _named(path):
        row = next(csv.reader(io.TextIOWrapper(open_bytes(raw), encoding="utf-8-sig", newline="")), None)
    if not row:
        raise InputError(f"{path}: is empty, expected a first row with the names of the columns")
    return row


def read_csv(
    path: Path, columns: Sequence[str], header: Sequence[str] | None = None
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Reads some columns of a CSV file, plain or gzip; quoted values may hold line breaks.

    Args:
        path: the file.
        columns: names of the columns to read.
        header: all names where the file itself has none; else they stand in its first row.

    Yields:
        (row number, table): the number in the file of the table's first row, from 1, a header included; texts, where
        nothing is the empty text.

    Raises:
        InputError: the file is missing or damaged, or a row has another number of columns; the row is named.
    """
    first = 1 if header else 2
    with existing_file(path).open("rb") as raw, Progress(path, "rows") as progress, _named(path):
        batches = pc.open_csv(
            open_bytes(raw),
            pc.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=header and list(header)),
            pc.ParseOptions(newlines_in_values=True),
            pc.ConvertOptions(include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string())),
        )
        for batch in batches:
            frame = pl.DataFrame(pl.from_arrow(batch))
            yield first, frame
            first += len(frame)
            progress.update(min(raw.tell(), progress.total), len(frame))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns the errors of the readers into an `InputError` with the path."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path}: the gzip file ends too early or is damaged; fetch it again") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except (pa.ArrowInvalid, csv.Error) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not a readable CSV file ({reason}); correct or remove the row") from None
