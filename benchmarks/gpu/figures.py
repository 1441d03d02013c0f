"""What a part measured: kept in a file after every figure, so that a part that is cut short leaves what it has."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

Figure = float | int | bool | str


class Skipped(Exception):
    """A part cannot run here; the message says why."""


class Figures:
    """Figures of one part, and why some of them are missing.

    Args:
        path: JSON file that is written anew with every figure; None keeps them in memory alone.

    Attributes:
        values: figures by name.
        notes: by name of what is missing, the reason.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self.values: dict[str, Figure] = {}
        self.notes: dict[str, str] = {}

    def record(self, **values: Figure | None) -> None:
        """Keep figures; None is what cannot be measured here."""
        self.values |= {name: value for name, value in values.items() if value is not None}
        self._write()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """A measurement whose failure must not end the part; the error becomes the note `name`."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.notes[name] = one_line(error)
            self._write()
        if torch.cuda.is_available():  # here the frames of the error, and what they held, are gone
            torch.cuda.empty_cache()

    def _write(self) -> None:
        if self._path is None:
            return
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"figures": self.values, "notes": self.notes}), encoding="utf-8")
        partial.replace(self._path)


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
