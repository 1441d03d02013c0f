"""The two shapes that data has here: raw tables, and a leave-one-out split of them.

Both are folders of Parquet files that can be opened with anything. In numeric code an item is its row number in
`Split.items` and a user the row number in `Split.users`.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from align3gr.data import schema
from align3gr.data.schema import ITEM_ID, ITEMS, RATING, RATINGS, TIMESTAMP, TIMESTAMPS, USER_ID
from align3gr.errors import InputError

TARGET_SCHEMA = {USER_ID: pl.String, ITEM_ID: pl.String, TIMESTAMP: pl.Int64, RATING: pl.Float64}
TRAIN_SCHEMA = {
    USER_ID: pl.String,
    ITEMS: pl.List(pl.String),
    TIMESTAMPS: pl.List(pl.Int64),
    RATINGS: pl.List(pl.Float64),
}


@dataclass
class Tables:
    """Interactions, items and users as they came, checked.

    Attributes:
        interactions: user_id, item_id, timestamp and optionally rating, feedback, review; any order.
        items: item_id, title, text. Its row order is the order of the catalogue.
        users: user_id, profile; or None where nothing is known about the users.

    Raises:
        InputError: a table does not fit its schema, or an interaction names an unknown item or user.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame | None = None
    source: str = "tables"

    def __post_init__(self) -> None:
        interactions, items, users = (f"{self.source}: {name}" for name in ("interactions", "items", "users"))
        self.interactions = schema.validate_interactions(self.interactions, interactions)
        self.items = schema.validate_items(self.items, items)
        schema.require_known(self.interactions[ITEM_ID], self.items[ITEM_ID], interactions, "the items table")
        if self.users is not None:
            self.users = schema.validate_users(self.users, users)
            schema.require_known(self.interactions[USER_ID], self.users[USER_ID], interactions, "the users table")

    def save(self, folder: str | Path) -> None:
        """Write interactions.parquet, items.parquet and, where there are users, users.parquet."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.interactions.write_parquet(folder / "interactions.parquet")
        self.items.write_parquet(folder / "items.parquet")
        if self.users is None:
            # A file left by an earlier save would otherwise be loaded as this table's users.
            (folder / "users.parquet").unlink(missing_ok=True)
        else:
            self.users.write_parquet(folder / "users.parquet")

    @classmethod
    def load(cls, folder: str | Path) -> "Tables":
        """Read what `save`, or any other program, wrote.

        Raises:
            InputError: the folder or a file is missing or unreadable, or a table does not fit its schema.
        """
        folder = Path(folder)
        users = read_parquet(folder, "users.parquet") if (folder / "users.parquet").exists() else None
        return cls(
            interactions=read_parquet(folder, "interactions.parquet"),
            items=read_parquet(folder, "items.parquet"),
            users=users,
            source=str(folder),
        )


@dataclass
class EvaluationSet:
    """What one pass of leave-one-out asks.

    Attributes:
        user_rows: (users,) int64 rows of `Split.users`.
        histories: for each user the indices of all items before the target, oldest first (int64).
        targets: (users,) int64 item indices.
        ratings: (users,) float64 rating of the target, NaN where there is none; None if no target has one.
        max_history: length to which `recent` cuts.
        num_users: users of the split, asked or not.
        num_items: items of the catalogue.
    """

    user_rows: np.ndarray
    histories: list[np.ndarray]
    targets: np.ndarray
    ratings: np.ndarray | None
    max_history: int
    num_users: int
    num_items: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def recent(self) -> list[np.ndarray]:
        """The latest `max_history` items of each history: what a model is shown. Masking uses the whole of it."""
        return [history[-self.max_history :] for history in self.histories]

    def subset(self, rows: np.ndarray) -> "EvaluationSet":
        """The questions at `rows` (positions in this set), for evaluation on a sample."""
        return EvaluationSet(
            user_rows=self.user_rows[rows],
            histories=[self.histories[row] for row in rows],
            targets=self.targets[rows],
            ratings=None if self.ratings is None else self.ratings[rows],
            max_history=self.max_history,
            num_users=self.num_users,
            num_items=self.num_items,
        )


@dataclass
class Split:
    """A leave-one-out split: the folder that every later stage reads.

    Attributes:
        items: item_id, title, text; the row is the item's index.
        users: user_id, profile; the row is the user's index.
        train: user_id, items, timestamps, ratings (lists in time order); the same rows as `users`.
        validation: user_id, item_id, timestamp, rating; at most one row a user.
        test: the same.
        statistics: counts, none of which depends on which user got which target.

    Raises:
        InputError: a table has another layout, or names an unknown item or user.
    """

    items: pl.DataFrame
    users: pl.DataFrame
    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    statistics: dict[str, Any] = field(default_factory=dict)
    source: str = "split"

    def __post_init__(self) -> None:
        self.items = schema.validate_items(self.items, f"{self.source}: items")
        self.users = schema.validate_users(self.users, f"{self.source}: users")
        self.train = _with_schema(self.train, TRAIN_SCHEMA, f"{self.source}: train")
        if not self.train[USER_ID].equals(self.users[USER_ID]):
            raise InputError(
                f"{self.source}: train and users must hold the same {USER_ID} in the same order; prepare again"
            )
        items = self.train[ITEMS].explode(empty_as_null=False).alias(ITEM_ID)
        schema.require_known(items, self.items[ITEM_ID], f"{self.source}: train", "the items table")
        for name in ("validation", "test"):
            source = f"{self.source}: {name}"
            targets = _with_schema(getattr(self, name), TARGET_SCHEMA, source)
            schema.require_known(targets[ITEM_ID], self.items[ITEM_ID], source, "the items table")
            schema.require_known(targets[USER_ID], self.users[USER_ID], source, "the users table")
            if targets[USER_ID].is_duplicated().any():
                raise InputError(f"{source}: a {USER_ID} stands there twice, expected one target a user")
            setattr(self, name, targets)

    @cached_property
    def item_index(self) -> dict[str, int]:
        """item_id -> item index."""
        return {item_id: row for row, item_id in enumerate(self.items[ITEM_ID])}

    @cached_property
    def user_index(self) -> dict[str, int]:
        """user_id -> user row."""
        return {user_id: row for row, user_id in enumerate(self.users[USER_ID])}

    def train_sequences(self) -> list[np.ndarray]:
        """For each row of `users` the int64 item indices of its train interactions, oldest first."""
        items = self.train[ITEMS].explode(empty_as_null=False)
        lengths = self.train[ITEMS].list.len().to_numpy()
        return np.split(_rows(items, self.items[ITEM_ID]), np.cumsum(lengths)[:-1]) if len(lengths) else []

    def histories(self, split: Literal["validation", "test"], max_history: int = 20) -> EvaluationSet:
        """The questions of validation (history: the train items) or test (train items, then the validation item)."""
        if split not in ("validation", "test"):
            raise InputError(f"split: got {split!r}, expected 'validation' or 'test'")
        if max_history < 1:
            raise InputError(f"max_history: got {max_history}, expected at least 1")
        targets = self.validation if split == "validation" else self.test
        sequences = self.train_sequences()
        if split == "test":
            held_out = zip(self._user_rows(self.validation), self._item_rows(self.validation), strict=True)
            for row, item in held_out:
                sequences[row] = np.append(sequences[row], item)
        user_rows = self._user_rows(targets)
        ratings = targets[RATING]
        return EvaluationSet(
            user_rows=user_rows,
            histories=[sequences[row] for row in user_rows],
            targets=self._item_rows(targets),
            ratings=None if ratings.null_count() == len(ratings) else ratings.fill_null(float("nan")).to_numpy(),
            max_history=max_history,
            num_users=self.users.height,
            num_items=self.items.height,
        )

    def save(self, folder: str | Path) -> None:
        """Write items, users, train, validation and test as Parquet, and statistics.json last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("items", "users", "train", "validation", "test"):
            getattr(self, name).write_parquet(folder / f"{name}.parquet")
        (folder / "statistics.json").write_text(json.dumps(self.statistics, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Split":
        """Read a folder that `save` wrote.

        Raises:
            InputError: the folder or a file is missing or unreadable, or a table has another layout.
        """
        folder = Path(folder)
        frames = {
            name: read_parquet(folder, f"{name}.parquet") for name in ("items", "users", "train", "validation", "test")
        }
        statistics = folder / "statistics.json"
        try:
            counts = json.loads(statistics.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{statistics}: no such file, the folder is incomplete; prepare the data again") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{statistics}: not JSON ({error}); prepare the data again") from None
        return cls(**frames, statistics=counts, source=str(folder))

    def _user_rows(self, targets: pl.DataFrame) -> np.ndarray:
        return _rows(targets[USER_ID], self.users[USER_ID])

    def _item_rows(self, targets: pl.DataFrame) -> np.ndarray:
        return _rows(targets[ITEM_ID], self.items[ITEM_ID])


def read_parquet(folder: Path, name: str) -> pl.DataFrame:
    """One Parquet file of a folder; `InputError` where folder or file is missing or the file is not Parquet."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds {name}")
    path = folder / name
    if not path.exists():
        present = sorted(entry.name for entry in folder.iterdir())[:8]
        raise InputError(f"{folder}: {name} is missing, the folder holds {present}; give a folder that has it")
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.ComputeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason}); write it again") from None


def _rows(values: pl.Series, order: pl.Series) -> np.ndarray:
    """The position of each value in `order`, int64. All must be there (checked when the table was made)."""
    positions = pl.DataFrame({"value": order, "row": np.arange(len(order), dtype=np.int64)})
    joined = pl.DataFrame({"value": values}).join(positions, on="value", how="left", maintain_order="left")
    return joined["row"].to_numpy().astype(np.int64)


def _with_schema(frame: pl.DataFrame, expected: dict[str, Any], source: str) -> pl.DataFrame:
    for name, dtype in expected.items():
        if name not in frame.columns:
            raise InputError(f"{source}: column {name!r} is missing, the columns are {frame.columns}")
        # A column with nothing in it has the type Null (or a list of it), which any type can take.
        if frame[name].dtype not in (dtype, pl.Null, pl.List(pl.Null)):
            raise InputError(f"{source}: column {name!r} has type {frame[name].dtype}, expected {dtype}")
        if name not in (RATING, RATINGS) and frame[name].null_count():
            raise InputError(f"{source}: column {name!r} has {frame[name].null_count():,} nulls, expected none")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in expected.items())
