"""A split in numbers, and the tables that are made of it."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from align3gr.data.encoded_log import EncodedLog, OrderedLog, as_lists
from align3gr.data.profiles import with_profiles
from align3gr.data.schema import (
    FEEDBACK,
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
from align3gr.data.tables import Split, Tables

logger = logging.getLogger(__name__)

NOT_USED, TRAIN, VALIDATION, TEST = range(4)


@dataclass
class Draft:
    """Which row of the log goes where.

    Attributes:
        tables: the raw tables.
        log: their codes.
        ordered: the rows that are left, by user and time.
        part: (n,) for each of these NOT_USED, TRAIN, VALIDATION or TEST.
        users: user_id, profile of the split.
        items: item_id, title, text of the split.
        extra: statistics beside the usual ones.
    """

    tables: Tables
    log: EncodedLog
    ordered: OrderedLog
    part: np.ndarray
    users: pl.DataFrame
    items: pl.DataFrame
    extra: dict[str, Any]

    def split(self) -> Split:
        """The tables. The numbers are gone afterwards."""
        users, items, source, spool = self.users, self.items, self.tables.source, self.tables.spool
        train = _train(self.tables, self.log, self.ordered, self.part == TRAIN, users, items)
        validation = _targets(self.tables, self.ordered, self.part == VALIDATION, users)
        test = _targets(self.tables, self.ordered, self.part == TEST, users)
        statistics = _statistics(self.tables, self.log, self.ordered, self.part, len(users), len(items)) | self.extra
        reviews = _reviews(self.tables, self.ordered, self.part == TRAIN)
        # Profiles and checks take memory of their own.
        del self.tables, self.log, self.ordered, self.part
        split = Split(
            items=items,
            users=with_profiles(users, train, items),
            train=train,
            validation=validation,
            test=test,
            statistics=statistics,
            source=source,
            reviews=reviews,
            spool=spool,
        )
        logger.info("Split of %s: %s", source, statistics)
        return split


def _train(
    tables: Tables, log: EncodedLog, ordered: OrderedLog, mask: np.ndarray, users: pl.DataFrame, items: pl.DataFrame
) -> pl.DataFrame:
    """Lists a user, in the order of `users`."""
    rows = ordered.rows[mask]
    lengths = np.bincount(ordered.user_rows[mask], minlength=users.height)
    interactions = tables.interactions
    columns = [
        users[USER_ID],
        as_lists(items[ITEM_ID].gather(log.items.rows_in(items[ITEM_ID], rows)).alias(ITEMS), lengths),
        as_lists(pl.Series(TIMESTAMPS, log.timestamps[rows]), lengths),
        as_lists(_ratings(interactions, rows).alias(RATINGS), lengths),
    ]
    if FEEDBACK in interactions.columns:
        columns.append(as_lists(interactions[FEEDBACK].gather(rows).alias(FEEDBACKS), lengths))
    return pl.DataFrame(columns)


def _targets(tables: Tables, ordered: OrderedLog, mask: np.ndarray, users: pl.DataFrame) -> pl.DataFrame:
    """user_id, item_id, timestamp, rating in the order of `users`."""
    rows = ordered.rows[mask]
    return pl.DataFrame(
        [
            users[USER_ID].gather(ordered.user_rows[mask]),
            tables.interactions[ITEM_ID].gather(rows).cast(pl.String),
            tables.interactions[TIMESTAMP].gather(rows),
            _ratings(tables.interactions, rows),
        ]
    )


def _ratings(interactions: pl.DataFrame, rows: np.ndarray) -> pl.Series:
    if RATING not in interactions.columns:
        return pl.repeat(None, len(rows), dtype=pl.Float64, eager=True).alias(RATING)
    return interactions[RATING].gather(rows)


def _reviews(tables: Tables, ordered: OrderedLog, mask: np.ndarray) -> pl.LazyFrame | None:
    """user_id, position, review of the train interactions that have one, in the order of the log."""
    if tables.reviews is None:
        return None
    rows, user_rows = ordered.rows[mask], ordered.user_rows[mask]
    starts = np.flatnonzero(np.append(True, np.diff(user_rows) != 0))
    position = np.full(tables.interactions.height, -1, dtype=np.int32)
    position[rows] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    places = pl.DataFrame([tables.interactions[USER_ID], pl.Series(POSITION, position)])
    return (
        pl.concat([places.lazy(), tables.reviews], how="horizontal")
        .filter(pl.col(POSITION) >= 0, pl.col(REVIEW).str.len_bytes() > 0)
        .with_columns(pl.col(USER_ID).cast(pl.String), pl.col(POSITION).cast(pl.Int64))
    )


def _statistics(
    tables: Tables, log: EncodedLog, ordered: OrderedLog, part: np.ndarray, users: int, items: int
) -> dict[str, Any]:
    """Counts that stay the same when targets are permuted between users."""
    count = int((part != NOT_USED).sum())
    last = np.flatnonzero((ordered.from_end == 1) & (ordered.counts >= 2))
    times = log.timestamps[ordered.rows]
    rated = tables.interactions[RATING].gather(ordered.rows).is_not_null().sum() if _rated(tables) else 0
    return {
        "users": users,
        "items": items,
        "interactions": count,
        "train_interactions": int((part == TRAIN).sum()),
        "validation_users": int((part == VALIDATION).sum()),
        "test_users": int((part == TEST).sum()),
        "removed_interactions": tables.interactions.height - len(ordered.rows),
        "mean_interactions_per_user": count / users,
        "density": count / (users * items),
        "rated_interactions": int(rated),
        # How many answers hang on the tie rule: the last two interactions share a timestamp.
        "users_with_tied_last_timestamp": int((times[last] == times[last - 1]).sum()),
    }


def _rated(tables: Tables) -> bool:
    return RATING in tables.interactions.columns
