"""The two shapes that data has here: raw tables, and a split of them.

Both are folders of Parquet files that can be opened with anything. In numeric code an item is its row number in
`Split.items` and a user the row number in `Split.users`.
"""

import json
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from align3gr.data import schema
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.data.parquet_files import read_parquet, scan_parquet
from align3gr.data.schema import (
    FEEDBACKS,
    ITEM_ID,
    ITEMS,
    POSITION,
    RATING,
    RATINGS,
    REVIEW,
    TIMESTAMP,
    TIMESTAMPS,
    USER_ID,
)
from align3gr.errors import InputError

TARGET_SCHEMA = {USER_ID: pl.String, ITEM_ID: pl.String, TIMESTAMP: pl.Int64, RATING: pl.Float64}
TRAIN_SCHEMA = {
    USER_ID: pl.String,
    ITEMS: pl.List(pl.String),
    TIMESTAMPS: pl.List(pl.Int64),
    RATINGS: pl.List(pl.Float64),
}
REVIEW_SCHEMA = {USER_ID: pl.String, POSITION: pl.Int64, REVIEW: pl.String}
# Rows in a block of reviews.parquet; smaller ones take less memory to write.
REVIEWS_AT_A_TIME = 65_536
MAY_BE_NULL = (RATING, RATINGS, FEEDBACKS)


@dataclass
class Tables:
    """Interactions, items and users as they came, checked.

    A log of millions of lines comes from its reader with Categorical ids, and with items and reviews as lazy tables of
    temporary files: only what is left after the k-core filter is read.

    Attributes:
        interactions: user_id, item_id, timestamp and optionally rating, feedback, review; any order.
        items: item_id, title, text. Its row order is the order of the catalogue. A lazy table is checked when it is
            read, and must hold every item of the log.
        users: user_id, profile; or None where nothing is known about the users.
        source: what to call the tables in an error.
        reviews: lazy table with the one column review, a row for each of `interactions` in the same order; for logs
            that hold their reviews outside `interactions`.
        spool: folder of the temporary files, removed with the tables.

    Raises:
        InputError: a table does not fit its schema, or an interaction names an unknown item or user.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | pl.LazyFrame
    users: pl.DataFrame | None = None
    source: str = "tables"
    reviews: pl.LazyFrame | None = None
    spool: "tempfile.TemporaryDirectory[str] | None" = None

    def __post_init__(self) -> None:
        interactions, items, users = (f"{self.source}: {name}" for name in ("interactions", "items", "users"))
        self.interactions = schema.validate_interactions(self.interactions, interactions)
        if self.reviews is None and REVIEW in self.interactions.columns:
            self.reviews = self.interactions.select(REVIEW).lazy()
        if isinstance(self.items, pl.DataFrame):
            self.items = schema.validate_items(self.items, items)
            schema.require_known(self.interactions[ITEM_ID], self.items[ITEM_ID], interactions, "the items table")
        if self.users is not None:
            self.users = schema.validate_users(self.users, users)
            schema.require_known(self.interactions[USER_ID], self.users[USER_ID], interactions, "the users table")

    def catalogue(self, item_ids: pl.Series | None = None) -> pl.DataFrame:
        """The items table in memory: all of it, or the rows of some ids."""
        items = self.items.lazy()
        if item_ids is not None:
            items = items.filter(pl.col(ITEM_ID).is_in(item_ids.implode()))
        # The streaming engine drops the other rows before it has read the next ones.
        return items.collect(engine="streaming") if isinstance(self.items, pl.LazyFrame) else items.collect()

    def save(self, folder: str | Path) -> None:
        """Write interactions.parquet, items.parquet and, where there are users, users.parquet."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        interactions = self.interactions.with_columns(pl.col(USER_ID, ITEM_ID).cast(pl.String))
        if self.reviews is not None and REVIEW not in interactions.columns:
            interactions = interactions.with_columns(self.reviews.collect()[REVIEW])
        interactions.write_parquet(folder / "interactions.parquet")
        self.catalogue().write_parquet(folder / "items.parquet")
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
class Split:
    """A split by users or by time: the folder that every later stage reads.

    Attributes:
        items: item_id, title, text; the row is the item's index.
        users: user_id, profile; the row is the user's index.
        train: user_id, items, timestamps, ratings and, where the data has feedback, feedbacks ("disliked", "neutral",
            "liked" or null): lists in time order; the same rows as `users`.
        validation: user_id, item_id, timestamp, rating; at most one row a user.
        test: the same.
        statistics: counts, none of which depends on which user got which target.
        source: what to call the split in an error.
        reviews: user_id, position (from 0, in the user's train lists), review, in the order of the log: the reviews of
            train interactions, as a lazy table because they may exceed memory; None where the data has none.
        spool: folder of the temporary files behind `reviews`, removed with the split.

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
    reviews: pl.LazyFrame | None = None
    spool: "tempfile.TemporaryDirectory[str] | None" = None

    def __post_init__(self) -> None:
        self.items = schema.validate_items(self.items, f"{self.source}: items")
        self.users = schema.validate_users(self.users, f"{self.source}: users")
        columns = TRAIN_SCHEMA | ({FEEDBACKS: pl.List(pl.String)} if FEEDBACKS in self.train.columns else {})
        self.train = _with_schema(self.train, columns, f"{self.source}: train")
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
        if self.reviews is not None and self.reviews.collect_schema() != REVIEW_SCHEMA:
            raise InputError(
                f"{self.source}: reviews has columns {dict(self.reviews.collect_schema())}, expected {REVIEW_SCHEMA}; "
                f"prepare again"
            )

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
        """Write items, users, train, validation, test and, where there are some, reviews as Parquet, and
        statistics.json last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("items", "users", "train", "validation", "test"):
            getattr(self, name).write_parquet(folder / f"{name}.parquet")
        if self.reviews is None:
            (folder / "reviews.parquet").unlink(missing_ok=True)
        else:
            # Renamed when it is whole: the table may be a view of the very file that it replaces.
            self.reviews.sink_parquet(folder / "reviews.parquet.tmp", row_group_size=REVIEWS_AT_A_TIME)
            (folder / "reviews.parquet.tmp").replace(folder / "reviews.parquet")
        (folder / "statistics.json").write_text(json.dumps(self.statistics, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Split":
        """Read a folder that `save` wrote.

        Raises:
            InputError: the folder or a file is missing or unreadable, or a table has another layout.
        """
        folder = Path(folder)
        names = ("items", "users", "train", "validation", "test")
        items, users, train, validation, test = (read_parquet(folder, f"{name}.parquet") for name in names)
        statistics = folder / "statistics.json"
        try:
            counts = json.loads(statistics.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{statistics}: no such file, the folder is incomplete; prepare the data again") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{statistics}: not JSON ({error}); prepare the data again") from None
        reviews = folder / "reviews.parquet"
        return cls(
            items=items,
            users=users,
            train=train,
            validation=validation,
            test=test,
            statistics=counts,
            source=str(folder),
            reviews=scan_parquet(reviews) if reviews.exists() else None,
        )

    def _user_rows(self, targets: pl.DataFrame) -> np.ndarray:
        return _rows(targets[USER_ID], self.users[USER_ID])

    def _item_rows(self, targets: pl.DataFrame) -> np.ndarray:
        return _rows(targets[ITEM_ID], self.items[ITEM_ID])


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
        if name not in MAY_BE_NULL and frame[name].null_count():
            raise InputError(f"{source}: column {name!r} has {frame[name].null_count():,} nulls, expected none")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in expected.items())
