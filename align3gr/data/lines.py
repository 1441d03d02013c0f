"""Large text files, a block of lines at a time: plain or gzip, JSON lines or Python literals.

A block is first given to the fast JSON reader of Polars. Where that refuses it, the block is read line by line, which
either copes (a number written as text, a line that is a Python literal) or names the line and the field.
"""

import gzip
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import polars as pl
from tqdm.auto import tqdm

from align3gr.errors import InputError
from align3gr.progress import SECONDS_BETWEEN_LINES, is_watched, time_left

logger = logging.getLogger(__name__)

BLOCK_BYTES = 8 << 20
GZIP_MAGIC = b"\x1f\x8b"


class Progress:
    """Bytes of a file read so far, with the time left: a bar where a person watches, else a line every half minute.

    Args:
        path: the file, whose size is the total.
        unit: what `count` counts, such as "lines".
    """

    def __init__(self, path: Path, unit: str = "lines") -> None:
        self.path, self.unit, self.count = path, unit, 0
        self.total = path.stat().st_size
        hidden = not is_watched()
        self._bar = tqdm(total=self.total, unit="B", unit_scale=True, desc=path.name, disable=hidden, leave=False)
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, position: int, count: int) -> None:
        """The file is read up to byte `position`, which holds `count` more units."""
        self.count += count
        if not self._bar.disable:
            self._bar.update(position - self._bar.n)
        elif time.monotonic() - self._logged >= SECONDS_BETWEEN_LINES:
            self._logged = time.monotonic()
            share = f"{100 * position / self.total:.0f} %"
            left = time_left(self._logged - self._started, position, self.total - position)
            logger.info("%s: %s %s, %s%s", self.path.name, f"{self.count:,}", self.unit, share, left)


def existing_file(path: Path) -> Path:
    """The path; `InputError` where it is no file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the folder must hold it")
    return path


def open_bytes(raw: IO[bytes]) -> IO[bytes]:
    """The contents of an opened file, unpacked if its first bytes are those of gzip."""
    compressed = raw.read(2) == GZIP_MAGIC
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[return-value]


def line_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yields (number of the first line from 1, some whole lines) until the file ends.

    Raises:
        InputError: there is no such file, or its gzip data ends early or is damaged.
    """
    first, rest = 1, b""
    with existing_file(path).open("rb") as raw, Progress(path) as progress:
        stream = open_bytes(raw)
        while True:
            try:
                read = stream.read(block_bytes)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                reason = "ends too early" if isinstance(error, EOFError) else f"is damaged ({error})"
                raise InputError(
                    f"{path}: the gzip file {reason}, at or after line {first:,}; fetch it again"
                ) from None
            cut = read.rfind(b"\n") + 1 if read else 0
            block, rest = (rest + read[:cut], read[cut:]) if cut else (b"", rest + read)
            if not read:
                block, rest = rest, b""
            if block:
                count = block.count(b"\n") + (not block.endswith(b"\n"))
                yield first, block
                first += count
                progress.update(raw.tell(), count)
            if not read:
                return


def read_json_lines(
    path: Path,
    schema: Mapping[str, Any],
    required: Sequence[str],
    loads: Callable[[str], Any] = json.loads,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[Sequence[int], pl.DataFrame]]:
    """Reads some fields of a file with one JSON object a line.

    Args:
        path: the file, plain or gzip.
        schema: the fields to read and their types (String, Float64 or Int64); others are passed over.
        required: fields that every line must have, not empty.
        loads: reads a line that is not JSON, such as `ast.literal_eval`.
        block_bytes: bytes read at a time.

    Yields:
        (line numbers, table): the line of each row, and the fields in the order of `schema`.

    Raises:
        InputError: the file is missing or damaged; a line is not UTF-8, not JSON, not an object, or lacks a required
            field or has another type there. File, line and field are named.
    """
    for first, block in line_blocks(path, block_bytes):
        lines: Sequence[int] = range(first, first + block.count(b"\n") + (not block.endswith(b"\n")))
        try:
            frame = pl.read_ndjson(block, schema=schema)
        except pl.exceptions.PolarsError:
            frame = None
        if frame is None or len(frame) != len(lines) or _any_missing(frame, required):
            lines, frame = _parse_block(path, first, block, schema, required, loads)
        yield lines, frame


def json_records(path: Path, loads: Callable[[str], Any] = json.loads) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank, for files whose fields have no fixed type.

    Raises:
        InputError: as `read_json_lines`.
    """
    for first, block in line_blocks(path):
        for number, line in enumerate(block.split(b"\n"), start=first):
            if line.strip():
                yield number, _record(path, number, line, loads)


def _any_missing(frame: pl.DataFrame, required: Sequence[str]) -> bool:
    return any(
        frame[name].null_count() or (frame[name].dtype == pl.String and (frame[name] == "").any()) for name in required
    )


def _parse_block(
    path: Path,
    first: int,
    block: bytes,
    schema: Mapping[str, Any],
    required: Sequence[str],
    loads: Callable[[str], Any],
) -> tuple[list[int], pl.DataFrame]:
    columns: dict[str, list[Any]] = {name: [] for name in schema}
    lines = []
    for number, line in enumerate(block.split(b"\n"), start=first):
        if not line.strip():
            continue
        record = _record(path, number, line, loads)
        lines.append(number)
        for name, dtype in schema.items():
            value = record.get(name)
            if value in (None, ""):
                if name in required:
                    state = "an empty" if name in record else "no"
                    raise InputError(
                        f"{path}: line {number} has {state} field {name!r}, its fields are {list(record)[:12]}; "
                        f"correct or remove the line"
                    )
                columns[name].append(None)
                continue
            converted = _converted(value, dtype)
            if converted is None:
                raise InputError(
                    f"{path}: line {number} has field {name!r} {value!r:.60}, expected {_EXPECTED[dtype]}; "
                    f"correct or remove the line"
                )
            columns[name].append(converted)
    return lines, pl.DataFrame(columns, schema=dict(schema))


def _record(path: Path, number: int, line: bytes, loads: Callable[[str], Any]) -> dict[str, Any]:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: line {number} is not valid UTF-8 at byte {error.start}; convert the file to UTF-8"
        ) from None
    try:
        try:
            record = json.loads(text)
        except ValueError:
            if loads is json.loads:
                raise
            record = loads(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: line {number} is not a valid record ({reason}); correct or remove the line, or fetch the file "
            f"again if it ends there"
        ) from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: line {number} holds a {type(record).__name__}, expected an object with fields")
    return record


_EXPECTED = {pl.String: "a text", pl.Float64: "a finite number", pl.Int64: "a whole number of 64 bits with a sign"}


def _converted(value: Any, dtype: Any) -> Any:
    """The value as the wanted type, None where it cannot be."""
    if dtype == pl.String:
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
        if dtype == pl.Int64:
            if isinstance(value, float) and not value.is_integer():
                return None
            whole = int(value)
            return whole if -(2**63) <= whole < 2**63 else None
    except (ValueError, OverflowError):
        return None
    return number if number - number == 0 else None  # neither infinite nor NaN
