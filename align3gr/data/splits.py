"""From raw tables to a split: repeats, k-core, time order, and what is held out: leave-one-out or by time."""

import numpy as np
import polars as pl

from align3gr.data.encoded_log import EncodedLog
from align3gr.data.schema import ITEM_ID, PROFILE, USER_ID
from align3gr.data.split_draft import NOT_USED, TEST, TRAIN, VALIDATION, Draft
from align3gr.data.tables import Split, Tables
from align3gr.data.time_boundaries import Moment, boundary
from align3gr.errors import InputError

# A user needs one item to learn from, one to validate and one to test on.
MIN_EVALUATED = 3


def k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """The largest part of the table in which every user and every item has at least `k` interactions.

    Users and items with fewer are removed again and again until none is left. Interactions are counted, not distinct
    pairs: the result then does not depend on which of two users got which item, so held-out targets cannot leak in.

    Args:
        interactions: table with user_id, item_id and timestamp; the row order is kept.
        k: smallest number of interactions; 0 and 1 keep everything.
    """
    return interactions[EncodedLog(interactions).core_rows(np.arange(interactions.height), k)]


def leave_one_out(
    tables: Tables,
    min_interactions: int = 5,
    duplicates: str = "keep",
    since: Moment | None = None,
    until: Moment | None = None,
) -> Split:
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
        since: moment from which on interactions count, first of all; see `boundary` for its forms.
        until: moment before which they count.

    Raises:
        InputError: nothing is left, or an argument has another value.
    """
    draft = _leave_one_out(tables, min_interactions, duplicates, since, until)
    del tables  # of millions of rows, freed by the draft when it no longer needs them
    return draft.split()


def time_split(
    tables: Tables,
    validation_from: Moment,
    test_from: Moment,
    min_interactions: int = 5,
    duplicates: str = "keep",
    since: Moment | None = None,
    until: Moment | None = None,
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
        since: see `leave_one_out`.
        until: see `leave_one_out`.

    Raises:
        InputError: nothing is left, or an argument has another value.
    """
    draft = _time_split(tables, validation_from, test_from, min_interactions, duplicates, since, until)
    del tables
    return draft.split()


def _leave_one_out(
    tables: Tables, min_interactions: int, duplicates: str, since: Moment | None, until: Moment | None
) -> Draft:
    log = EncodedLog(tables.interactions)
    inside = log.rows_between(since, until)
    distinct = log.distinct_rows(inside, duplicates)
    core = log.core_rows(distinct, min_interactions)
    users, items = _users(tables, log, core, min_interactions), _items(tables, log, core, min_interactions)
    ordered = log.ordered(core, users[USER_ID])
    part = np.full(len(core), TRAIN, dtype=np.int8)
    evaluated = ordered.counts >= MIN_EVALUATED
    part[evaluated & (ordered.from_end == 2)] = VALIDATION
    part[evaluated & (ordered.from_end == 1)] = TEST
    extra = {} if duplicates == "keep" else {"removed_duplicates": len(inside) - len(distinct)}
    return Draft(tables, log, ordered, part, users, items, extra)


def _time_split(
    tables: Tables,
    validation_from: Moment,
    test_from: Moment,
    min_interactions: int,
    duplicates: str,
    since: Moment | None,
    until: Moment | None,
) -> Draft:
    if duplicates == "last":
        raise InputError(
            "duplicates: 'last' lets later interactions remove train ones in a split by time; use 'first'"
        )
    log = EncodedLog(tables.interactions)
    begin = boundary(log.timestamps, validation_from, "validation_from")
    end = boundary(log.timestamps, test_from, "test_from")
    if begin >= end:
        raise InputError(f"test_from: {test_from} is timestamp {end}, expected one after validation_from ({begin})")
    inside = log.rows_between(since, until)
    distinct = log.distinct_rows(inside, duplicates)
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
        extra["removed_duplicates"] = len(inside) - len(distinct)
    return Draft(tables, log, ordered, part, users, items, extra)


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
