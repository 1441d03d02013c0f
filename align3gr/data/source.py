"""Where the raw data lies: the options of every reader, and the files that they name."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align3gr.errors import InputError

AMAZON_HUB = "McAuley-Lab/Amazon-Reviews-2023"


@dataclass
class LogSource:
    """A raw data set on disk or, for some formats, on the Hub.

    `columns`, `item_columns` and `user_columns` map the package's names to those of the files; in a YAML file they are
    mappings, on the command line JSON. Several columns become one text: `{"text": ["name", "brand"]}`.
    """

    interactions: str | None = field(
        default=None,
        metadata={
            "help": "File or folder of the log below the source (hub: configuration/split); else found by its name."
        },
    )
    items: str | None = field(
        default=None, metadata={"help": "File of the items below the source, or 'none': ids are their own texts."}
    )
    users: str | None = field(default=None, metadata={"help": "File of the users below the source."})
    category: str | None = field(
        default=None, metadata={"help": "Amazon: the category, as it stands in the file names."}
    )
    columns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Columns of the log: user_id, item_id, timestamp, rating, feedback, review."}
    )
    item_columns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Columns of the items: item_id, title, text."}
    )
    user_columns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Columns of the users: user_id, profile."}
    )
    missing_items: str = field(
        default="drop",
        metadata={
            "help": "Interactions with items that the items file lacks: left out, or the id is the text.",
            "choices": ["drop", "id"],
        },
    )

    def mapping(self, name: str) -> dict[str, list[str]]:
        """One of the three mappings, each name with the list of its columns; empty where it was not given.

        Raises:
            InputError: it is no JSON object of texts or lists of texts.
        """
        value: Any = getattr(self, name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise InputError(f"{name}: not JSON ({error.msg} at character {error.pos}): {value}") from None
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise InputError(f"{name}: got {value!r}, expected a mapping such as {{user_id: uid}}")
        mapping = {key: [column] if isinstance(column, str) else column for key, column in value.items()}
        for key, chosen in mapping.items():
            if not (isinstance(chosen, list) and chosen and all(isinstance(column, str) for column in chosen)):
                raise InputError(f"{name}: {key!r} has {value[key]!r}, expected a column or a list of columns")
        return mapping


@dataclass
class LogFiles:
    """The files that a reader reads.

    Attributes:
        source: the folder, or the Hub data set, for messages.
        interactions: the log: a file, or a folder of files.
        items: its items, or None where ids are their own texts.
        users: its users, or None.
    """

    source: str
    interactions: Path
    items: Path | None = None
    users: Path | None = None

    @property
    def inputs(self) -> list[Path]:
        """All of them, for the manifest."""
        return [path for path in (self.interactions, self.items, self.users) if path is not None]


def existing_folder(folder: str | Path) -> Path:
    """The folder; `InputError` where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the data set")
    return folder


def named_file(folder: Path, name: str, option: str) -> Path:
    """The file (or folder) that an option names, below the source."""
    path = folder / name
    if not path.exists():
        present = sorted(entry.name for entry in folder.iterdir())[:12] if folder.is_dir() else []
        raise InputError(f"{option}: {path} does not exist, {folder} holds {present}; correct the name")
    return path


def first_existing(folder: Path, names: list[str]) -> Path | None:
    """The first of some names that is a file of the folder, plain or packed (.gz)."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def optional_file(folder: Path, given: str | None, usual: list[str], option: str) -> Path | None:
    """The file that an option names, else the usual one where it is there; None for 'none'."""
    if given == "none":
        return None
    return named_file(folder, given, option) if given else first_existing(folder, usual)
