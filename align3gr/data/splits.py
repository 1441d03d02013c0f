"""From raw tables to a leave-one-out split: k-core, time order, the last two items of each user held out."""

import logging
from typing import Any

import polars as pl

from align3gr.data.profiles import with_profiles
from align3gr.data.schema import ITEM_ID, ITEMS, PROFILE, RATING, RATINGS, TIMESTAMP, TIMESTAMPS, USER_ID
from align3gr.data.tables import Split, Tables
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

# A user needs one item to learn from, one to validate and one to test on.
MIN_EVALUATED = 3


def k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """The largest part of the table in which every user and every item has at least `k` interactions.

    Users and items with fewer are removed again and again until none is left. Interactions are counted, not distinct
    pairs: the result then does not depend on which of two users got which item, so held-out targets cannot leak in.

    Args:
        interactions: table with user_id and item_id; the row order is kept.
        k: smallest number of interactions; 0 and 1 keep everything.
    """
    if k < 0:
        raise InputError(f"k: got {k}, expected 0 or more interactions")
    while True:
        kept = interactions.filter(pl.len().over(USER_ID) >= k).filter(pl.len().over(ITEM_ID) >= k)
        if kept.height == interactions.height:
            return kept
        interactions = kept


def leave_one_out(tables: Tables, min_interactions: int = 5) -> Split:
    """Split each user's interactions in time: the last is test, the one before it validation, the others train.

    Ties: interactions of a user with the same timestamp keep the row order of the table. Users with fewer than three
    interactions are train only. Repeated (user, item) rows stay: a repeat is a real answer.

    Items keep the order of the items table; users keep the order of the users table, or are sorted by id where there
    is none, so that no row number depends on a target. With `min_interactions` of 1 or more, items and users without
    any interaction leave the catalogue too.

    Args:
        tables: raw tables.
        min_interactions: k of the k-core filter; 5 is the paper's, 0 keeps the whole catalogue.

    Raises:
        InputError: nothing is left.
    """
    interactions = k_core(tables.interactions, min_interactions)
    if interactions.is_empty():
        raise InputError(
            f"{tables.source}: none of {tables.interactions.height:,} interactions is in the {min_interactions}-core; "
            f"lower min_interactions"
        )
    users, items = _kept_users(tables, interactions), tables.items
    if min_interactions:
        items = items.filter(pl.col(ITEM_ID).is_in(interactions[ITEM_ID].unique().implode()))
    if RATING not in interactions.columns:
        interactions = interactions.with_columns(pl.lit(None, dtype=pl.Float64).alias(RATING))

    ordered = _numbered(interactions)
    train, validation, test = _held_out(ordered, users)
    split = Split(
        items=items,
        users=with_profiles(users, train, items),
        train=train,
        validation=validation,
        test=test,
        statistics=_statistics(tables, ordered, users, items, validation.height, test.height),
        source=tables.source,
    )
    logger.info("Split of %s: %s", tables.source, split.statistics)
    return split


def _numbered(interactions: pl.DataFrame) -> pl.DataFrame:
    """In time order, with the user's `count` of interactions and the position `from_end` (1 is the last)."""
    # A stable sort by time alone keeps file order within equal timestamps, which is the stated tie rule.
    return interactions.sort(TIMESTAMP, maintain_order=True).with_columns(
        from_end=pl.len().over(USER_ID) - pl.int_range(pl.len()).over(USER_ID), count=pl.len().over(USER_ID)
    )


def _held_out(ordered: pl.DataFrame, users: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Train (lists), validation and test rows, each in the order of `users`."""
    evaluated = pl.col("count") >= MIN_EVALUATED
    train = users.select(USER_ID).join(
        ordered.filter(~evaluated | (pl.col("from_end") > 2))
        .group_by(USER_ID, maintain_order=True)
        .agg(pl.col(ITEM_ID).alias(ITEMS), pl.col(TIMESTAMP).alias(TIMESTAMPS), pl.col(RATING).alias(RATINGS)),
        on=USER_ID,
        how="left",
        maintain_order="left",
    )
    validation, test = (
        users.select(USER_ID).join(
            ordered.filter(evaluated & (pl.col("from_end") == position)).select(USER_ID, ITEM_ID, TIMESTAMP, RATING),
            on=USER_ID,
            how="inner",
            maintain_order="left",
        )
        for position in (2, 1)
    )
    return train, validation, test


def _kept_users(tables: Tables, interactions: pl.DataFrame) -> pl.DataFrame:
    present = interactions[USER_ID].unique()
    if tables.users is None:
        return present.sort().to_frame().with_columns(pl.lit("").alias(PROFILE))
    # A user without interactions has no train row, hence cannot be a row of the split.
    return tables.users.filter(pl.col(USER_ID).is_in(present.implode()))


def _statistics(
    tables: Tables, ordered: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, validation: int, test: int
) -> dict[str, Any]:
    """Counts that stay the same when targets are permuted between users."""
    ties = ordered.filter(pl.col("from_end") <= 2).group_by(USER_ID).agg(pl.col(TIMESTAMP).n_unique(), pl.len())
    rated = ordered.height - ordered[RATING].null_count()
    return {
        "users": users.height,
        "items": items.height,
        "interactions": ordered.height,
        "train_interactions": ordered.height - validation - test,
        "validation_users": validation,
        "test_users": test,
        "removed_interactions": tables.interactions.height - ordered.height,
        "mean_interactions_per_user": ordered.height / users.height,
        "density": ordered.height / (users.height * items.height),
        "rated_interactions": rated,
        # How many answers hang on the tie rule: the last two interactions share a timestamp.
        "users_with_tied_last_timestamp": ties.filter((pl.col("len") == 2) & (pl.col(TIMESTAMP) == 1)).height,
    }
