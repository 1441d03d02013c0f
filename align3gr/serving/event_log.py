"""A log of events that `align3gr feedback` reads: Parquet files that appear whole, behind journals that a kill spares.

`<folder>/` holds nothing but finished Parquet files. Events are first appended to a journal in `<folder>.journal/`, a
line each, and are with the operating system when `append` returns: a killed process loses none of them, a machine
that loses power may lose the last seconds. A journal that is full or old enough becomes a Parquet file of the same
name, which is renamed into the folder, and is removed. A kill between the two makes the same file once more, never a
second one. Journals that a killed process left are taken up at the next start; a lock keeps off those of processes
that live, so several servers may share a folder.
"""

import fcntl
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from align3gr.data.schema import EVENT, ITEM_ID, RANK, REQUEST_ID, SCORE, TIMESTAMP, USER_ID
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

# The columns of docs/feedback.md.
SCHEMA = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (TIMESTAMP, pa.int64()),
        (EVENT, pa.string()),
        (REQUEST_ID, pa.string()),
        (RANK, pa.int32()),
        (SCORE, pa.float32()),
    ]
)


class Event(NamedTuple):
    """One row of the log.

    Attributes:
        user_id, item_id: as in the data of the run.
        timestamp: integer, in one unit throughout the log.
        event: one of `align3gr.data.schema.EVENTS`.
        request_id: the list that was shown, or None.
        rank: place in that list from 1, or None.
        score: the model's score, or None.
    """

    user_id: str
    item_id: str
    timestamp: int
    event: str
    request_id: str | None = None
    rank: int | None = None
    score: float | None = None


class EventLog:
    """Appends events, from any thread, and makes Parquet files of them.

    Args:
        folder: of the Parquet files; made where it does not exist.
        max_events: events of a file.
        max_seconds: age at which a journal becomes a file, see [`rotate_if_due`].

    Raises:
        InputError: the folder cannot be written, or holds what is no Parquet file.
    """

    def __init__(self, folder: str | Path, max_events: int = 100_000, max_seconds: float = 300):
        self.folder = Path(folder)
        self.journals = self.folder.with_name(self.folder.name + ".journal")
        self._max_events, self._max_seconds = max_events, max_seconds
        self._lock = threading.Lock()
        self._file: int | None = None
        self._size = self._events = 0
        self._opened = 0.0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.journals.mkdir(exist_ok=True)
            probe = self.journals / f"{uuid.uuid4().hex}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"--event_log {folder}: cannot be written ({error.strerror}); choose another") from error
        other = next((path for path in sorted(self.folder.iterdir()) if path.suffix != ".parquet"), None)
        if other is not None:
            raise InputError(f"--event_log {folder}: holds {other.name}, but it is for the log alone; choose another")
        self._convert()

    def append(self, events: Sequence[Event]) -> None:
        """Adds events, all or none of them.

        Raises:
            OSError: they could not be written, on a full disk for instance.
        """
        if not events:
            return
        lines = b"".join(json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in events)
        with self._lock:
            if self._file is None:
                self._file, self._size, self._events = self._open_journal(), 0, 0
                self._opened = time.monotonic()
            try:
                _write_all(self._file, lines)
            except OSError:
                os.ftruncate(self._file, self._size)  # nothing is left of events that are not acknowledged
                raise
            self._size += len(lines)
            self._events += len(events)
            full = self._events >= self._max_events
        if full:
            self.rotate()

    def rotate_if_due(self) -> None:
        """A journal that is old enough becomes a file; to be called now and then."""
        if self._file is not None and time.monotonic() - self._opened >= self._max_seconds:
            self.rotate()

    def rotate(self) -> None:
        """All events so far become files. What cannot be written, on a full disk say, stays in its journal."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
        self._convert()

    close = rotate

    def _open_journal(self) -> int:
        while True:
            name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:12]}.jsonl"
            path = self.journals / name
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            if _locked(file) and path.exists():  # else another process took the new file for one that was left
                return file
            os.close(file)

    def _convert(self) -> None:
        """Every journal that no living process writes becomes a file."""
        for journal in sorted(self.journals.glob("*.jsonl")):
            try:
                file = os.open(journal, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                if _locked(file) and journal.exists():
                    self._convert_journal(journal)
            except (OSError, ValueError, pa.ArrowException):
                logger.exception("%s: stays a journal, as its file could not be written", journal)
            finally:
                os.close(file)

    def _convert_journal(self, journal: Path) -> None:
        rows = _read_journal(journal)
        if rows:
            columns = zip(*rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            partial = journal.with_suffix(".partial")
            with partial.open("wb") as file:
                pq.write_table(pa.table(arrays, schema=SCHEMA), file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / f"{journal.stem}.parquet")
        journal.unlink()


def _read_journal(journal: Path) -> list[Event]:
    lines = journal.read_bytes().split(b"\n")
    rows, broken = [], int(lines[-1] != b"")  # a kill may cut the last line, whose events nobody was told of
    for line in lines[:-1]:
        try:
            rows.append(Event(*json.loads(line)))
        except (ValueError, TypeError):
            broken += 1
    if broken:
        logger.warning("%s: %d broken lines are left out, %d events are kept", journal, broken, len(rows))
    return rows


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
