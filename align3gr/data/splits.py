"""From raw tables to a split: repeats, k-core, time order, and what is held out: leave-one-out or by time."""

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
    PROFILE,
    RATING,
    RATINGS,
    REVIEW,
    TIMESTAMP,
    TIMESTAMPS,
    USER_ID,
)
from align3gr.data.tables import Split, Tables
from align3gr.data.time_boundaries import boundary
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

# A user needs one item to learn from, one to validate and one to test on.
MIN_EVALUATED = 3
NOT_USED, TRAIN, VALIDATION, TEST = range(4)


def k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """The largest part of the table in which every user and every item has at least `k` interactions.

    Users and items with fewer are removed again and again until none is left. Interactions are counted, not distinct
    pairs: the result then does not depend on which of two users got which item, so held-out targets cannot leak in.

    Args:
        interactions: table with user_id, item_id and timestamp; the row order is kept.
        k: smallest number of interactions; 0 and 1 keep everything.
    """
    return interactions[EncodedLog(interactions).core_rows(np.arange(interactions.height), k)]


def leave_one_out(tables: Tables, min_interactions: int = 5, duplicates: str = "keep") -> Split:
    """Split each user's interactions in time: the last is test, the one before it validation, the others train.

    Ties: interactions of a user with the same timestamp keep the row order of the table. Users with fewer than three
    interactions are train only.

    Items keep the order of the items table; users keep the order of the users table, or are sorted by id where there
    is none, so that no row number depends on a target. With `min_interactions` of 1 or more, items and users without
    any interaction leave the catalogue too.

    Args:
        tables: raw tables.
        min_interactions: k of the k-core filter; 5 is the paper's, 0 keeps the whole catalogue.
        duplicates: what becomes of repeated (user, item) rows, before anything is counted: "keep" keeps them all, a
            repeat is a real answer; "first" and "last" keep the earliest or latest of each pair. With these two it
            depends on the targets which interactions are train; with "keep" nothing does.

    Raises:
        InputError: nothing is left, or an argument has another value.
    """
    draft = _leave_one_out(tables, min_interactions, duplicates)
    del tables  # of millions of rows, freed by the draft when it no longer needs them
    return draft.split()


def time_split(
    tables: Tables,
    validation_from: str | int | float,
    test_from: str | int | float,
    min_interactions: int = 5,
    duplicates: str = "keep",
) -> Split:
    """Split the log at two moments: what came before the first is train.

    A user's validation target is the first interaction from `validation_from` on and before `test_from`, the test
    target the first from `test_from` on; later ones of the same period are not used. Only train decides who is in: the
    k-core filter counts train interactions; users without one are left out; items that occur only later are in no
    catalogue (unless `min_interactions` is 0, which keeps the whole items table), and interactions with them are left
    out before the targets are chosen. Ties, order of users and items: see `leave_one_out`.

    Args:
        tables: raw tables.
        validation_from: a moment; see `boundary` for its forms.
        test_from: a later moment.
        min_interactions: k of the k-core filter on the train interactions.
        duplicates: see `leave_one_out`; "last" is refused, with it the future would remove train interactions.

    Raises:
        InputError: nothing is left, or an argument has another value.
    """
    draft = _time_split(tables, validation_from, test_from, min_interactions, duplicates)
    del tables
    return draft.split()


def _leave_one_out(tables: Tables, min_interactions: int, duplicates: str) -> "_Draft":
    log = EncodedLog(tables.interactions)
    distinct = log.distinct_rows(duplicates)
    core = log.core_rows(distinct, min_interactions)
    users, items = _users(tables, log, core, min_interactions), _items(tables, log, core, min_interactions)
    ordered = log.ordered(core, users[USER_ID])
    part = np.full(len(core), TRAIN, dtype=np.int8)
    evaluated = ordered.counts >= MIN_EVALUATED
    part[evaluated & (ordered.from_end == 2)] = VALIDATION
    part[evaluated & (ordered.from_end == 1)] = TEST
    extra = {} if duplicates == "keep" else {"removed_duplicates": tables.interactions.height - len(distinct)}
    return _Draft(tables, log, ordered, part, users, items, extra)


def _time_split(
    tables: Tables,
    validation_from: str | int | float,
    test_from: str | int | float,
    min_interactions: int,
    duplicates: str,
) -> "_Draft":
    if duplicates == "last":
        raise InputError(
            "duplicates: 'last' lets later interactions remove train ones in a split by time; use 'first'"
        )
    log = EncodedLog(tables.interactions)
    begin = boundary(log.timestamps, validation_from, "validation_from")
    end = boundary(log.timestamps, test_from, "test_from")
    if begin >= end:
        raise InputError(f"test_from: {test_from} is timestamp {end}, expected one after validation_from ({begin})")
    distinct = log.distinct_rows(duplicates)
    past = log.timestamps[distinct] < begin
    core = log.core_rows(distinct[past], min_interactions)
    users, items = _users(tables, log, core, min_interactions), _items(tables, log, core, min_interactions)
    later = distinct[~past]
    known = (log.users.rows_in(users[USER_ID], later) >= 0) & (log.items.rows_in(items[ITEM_ID], later) >= 0)
    ordered = log.ordered(np.sort(np.concatenate([core, later[known]])), users[USER_ID])
    times = log.timestamps[ordered.rows]
    part = TRAIN + (times >= begin).astype(np.int8) + (times >= end)
    first = np.append(True, (np.diff(part) != 0) | (np.diff(ordered.user_rows) != 0))
    part[~first & (part != TRAIN)] = NOT_USED
    extra = {"validation_from": begin, "test_from": end, "unused_interactions": int((part == NOT_USED).sum())}
    if duplicates != "keep":
        extra["removed_duplicates"] = tables.interactions.height - len(distinct)
    return _Draft(tables, log, ordered, part, users, items, extra)


def _users(tables: Tables, log: EncodedLog, core: np.ndarray, min_interactions: int) -> pl.DataFrame:
    if not len(core):
        raise InputError(
            f"{tables.source}: none of {tables.interactions.height:,} interactions is in the {min_interactions}-core; "
            f"lower min_interactions"
        )
    present = log.users.distinct(core)
    if tables.users is None:
        return present.sort().to_frame().with_columns(pl.lit("").alias(PROFILE))
    # A user without interactions has no train row, hence cannot be a row of the split.
    return tables.users.filter(pl.col(USER_ID).is_in(present.implode()))


def _items(tables: Tables, log: EncodedLog, core: np.ndarray, min_interactions: int) -> pl.DataFrame:
    return tables.catalogue(log.items.distinct(core) if min_interactions else None)


@dataclass
class _Draft:
    """A split in numbers: which row of the log goes where."""

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
