"""Collects a log that is larger than memory would like into `Tables`.

Interactions arrive in chunks. Ids become the codes of two Categorical columns at once, so that a row takes 24 bytes
whatever its ids look like; reviews and item texts go to temporary Parquet files, and only those that are left after
the k-core filter are read back (see `Tables`).
"""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from align3gr.data.schema import FEEDBACK, ITEM_ID, RATING, REVIEW, TEXT, TIMESTAMP, TITLE, USER_ID
from align3gr.data.tables import Tables
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

ITEM_SCHEMA = {ITEM_ID: pl.String, TITLE: pl.String, TEXT: pl.String}
ITEMS_IN_A_BLOCK = 20_000
MISSING_ITEMS = ("drop", "id")


class InteractionLog:
    """A growing log.

    Args:
        source: what to call it in an error, usually its path.

    Example:
        >>> log = InteractionLog("example")
        >>> log.add(pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]}))
        >>> log.tables().interactions.rows()
        [('u', 'a', 1)]
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.spool = tempfile.TemporaryDirectory(prefix="align3gr-")
        self._types: dict[str, Any] = {
            USER_ID: pl.Categorical(pl.Categories.random()),
            ITEM_ID: pl.Categorical(pl.Categories.random()),
            TIMESTAMP: pl.Int64,
            RATING: pl.Float64,
            FEEDBACK: pl.Categorical(pl.Categories.random()),
        }
        self._chunks: list[pl.DataFrame] = []
        self._reviews: pq.ParquetWriter | None = None

    def add(self, chunk: pl.DataFrame) -> None:
        """Append rows: user_id and item_id (strings), timestamp (integers), and optionally rating, feedback, review.
        Every chunk has the same columns."""
        if REVIEW in chunk.columns:
            table = chunk.select(pl.col(REVIEW).cast(pl.String)).to_arrow()
            if self._reviews is None:
                self._reviews = pq.ParquetWriter(self._path("reviews"), table.schema, compression="zstd")
            self._reviews.write_table(table)
        self._chunks.append(
            chunk.select(pl.col(name).cast(dtype) for name, dtype in self._types.items() if name in chunk.columns)
        )

    def tables(
        self,
        items: Iterable[tuple[str, str, str]] | None = None,
        users: pl.DataFrame | None = None,
        missing_items: str = "drop",
        items_source: str = "the items file",
    ) -> Tables:
        """Everything that was added, with the texts of its items.

        Args:
            items: (item_id, title, text) of items, at least of those in the log; the first row of an item counts.
                None makes the ids titles and texts, in the order of the ids.
            users: user_id, profile of users, or None; users without a row get the empty profile.
            missing_items: what becomes of interactions whose item has no row in `items`: "drop", or "id" to make the
                item's id its title and text.
            items_source: what to call `items` in an error.

        Raises:
            InputError: there are no interactions, or no item of the log has a row in `items`.
        """
        if missing_items not in MISSING_ITEMS:
            raise InputError(f"missing_items: got {missing_items!r}, choose from {', '.join(MISSING_ITEMS)}")
        interactions = self._finished()
        ids = interactions[ITEM_ID].unique().cast(pl.String).sort()
        known = self._write_items(items, set(ids)) if items is not None else set()
        if items is not None and not known:
            raise InputError(
                f"{items_source}: has none of the {len(ids):,} items of {self.source}, such as {ids[0]!r}; "
                f"give the file that belongs to it"
            )
        unknown = ids.filter([item_id not in known for item_id in ids])
        reviews = pl.scan_parquet(self._path("reviews")) if self._reviews else None
        frames = [pl.scan_parquet(self._path("items"))] if known else []
        if len(unknown) and (missing_items == "id" or items is None):
            frames.append(pl.LazyFrame({ITEM_ID: unknown, TITLE: unknown, TEXT: unknown}))
        elif len(unknown):
            interactions, reviews = self._without(interactions, reviews, unknown)
        return Tables(
            interactions=interactions,
            items=pl.concat(frames),
            users=None if users is None else _with_all(users, interactions),
            source=self.source,
            reviews=reviews,
            spool=self.spool,
        )

    def _finished(self) -> pl.DataFrame:
        if self._reviews is not None:
            self._reviews.close()
        if not sum(map(len, self._chunks)):
            raise InputError(f"{self.source}: holds no interactions; give a log with at least one")
        # Column by column, so that only one of them is in memory twice.
        names = self._chunks[0].columns
        columns = []
        for name in names:
            columns.append(pl.concat([chunk[name] for chunk in self._chunks], rechunk=True))
            self._chunks = [chunk.drop(name) for chunk in self._chunks]
        logger.info("%s: %s interactions", self.source, f"{len(columns[0]):,}")
        return pl.DataFrame(columns)

    def _write_items(self, items: Iterable[tuple[str, str, str]], wanted: set[str]) -> set[str]:
        """Writes the wanted items to the spool; returns those that were there."""
        known: set[str] = set()
        block: list[tuple[str, str, str]] = []
        writer = None
        for row in items:
            if row[0] in wanted and row[0] not in known:
                known.add(row[0])
                block.append(row)
            if len(block) == ITEMS_IN_A_BLOCK:
                writer = self._write_block(block, writer)
                block = []
        if block:
            writer = self._write_block(block, writer)
        if writer is not None:
            writer.close()
        return known

    def _write_block(self, block: list[tuple[str, str, str]], writer: pq.ParquetWriter | None) -> pq.ParquetWriter:
        table = pl.DataFrame(block, schema=ITEM_SCHEMA, orient="row").to_arrow()
        writer = writer or pq.ParquetWriter(self._path("items"), table.schema, compression="zstd")
        writer.write_table(table)
        return writer

    def _without(
        self, interactions: pl.DataFrame, reviews: pl.LazyFrame | None, unknown: pl.Series
    ) -> tuple[pl.DataFrame, pl.LazyFrame | None]:
        """The log and its reviews without the interactions with unknown items."""
        gone = unknown.cast(interactions[ITEM_ID].dtype).to_physical()
        kept = ~interactions[ITEM_ID].to_physical().is_in(gone.implode())
        logger.info(
            "%s: %s items have no row in the items file; their %s interactions are left out",
            self.source,
            f"{len(unknown):,}",
            f"{len(kept) - kept.sum():,}",
        )
        if reviews is not None:
            flags = pl.LazyFrame({"kept": kept})
            reviews = pl.concat([reviews, flags], how="horizontal").filter("kept").select(REVIEW)
        return interactions.filter(kept), reviews

    def _path(self, name: str) -> Path:
        return Path(self.spool.name) / f"{name}.parquet"


def _with_all(users: pl.DataFrame, interactions: pl.DataFrame) -> pl.DataFrame:
    """The users table with an empty profile for those that it lacks, sorted by id behind the others."""
    present = interactions[USER_ID].unique().cast(pl.String)
    missing = present.filter(~present.is_in(users[USER_ID].implode())).sort()
    return pl.concat([users, pl.DataFrame({USER_ID: missing}).with_columns(profile=pl.lit(""))])
