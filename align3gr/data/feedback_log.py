"""Feedback from a log of events: what a served model showed, and what users did with it.

For each user, item and request, the latest explicit event decides: a dislike is disliked, a like or a purchase liked.
Without one, a click is liked, and an impression that nobody clicked is neutral. Events without a request belong
together by user and item.
"""

import logging
from pathlib import Path
from typing import Any

import polars as pl

from align3gr.data.parquet_files import scan_parquet
from align3gr.data.schema import (
    EVENT,
    FEEDBACK,
    FEEDBACK_LEVELS,
    ITEM_ID,
    RANK,
    REQUEST_ID,
    SCORE,
    TIMESTAMP,
    USER_ID,
    validate_events,
    validate_feedback,
)
from align3gr.data.tables import Split
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

# Event -> what counts more than what, and the level it stands for.
_WEIGHT = {"impression": 0, "click": 1, "like": 2, "purchase": 2, "dislike": 2}
_LEVEL = {"impression": "neutral", "click": "liked", "like": "liked", "purchase": "liked", "dislike": "disliked"}
_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP, FEEDBACK, REQUEST_ID, RANK)


def read_events(path: str | Path) -> pl.DataFrame:
    """A log of events, a Parquet file or a folder of them, checked by `schema.validate_events`.

    Args:
        path: a Parquet file, or a folder of them.

    Raises:
        InputError: there is nothing, it is not Parquet, or the table does not fit.
    """
    return validate_events(_read(path, "log"), str(path))


def read_feedback(path: str | Path) -> pl.DataFrame:
    """A table of feedback, as `align3gr feedback` writes it, checked by `schema.validate_feedback`.

    Args:
        path: a Parquet file.

    Raises:
        InputError: there is nothing, it is not Parquet, or the table does not fit.
    """
    return validate_feedback(_read(path, "feedback_table"), str(path))


def feedback_of_events(events: pl.DataFrame) -> pl.DataFrame:
    """One row for each user, item and request with its level, in the order of the first event of each.

    Args:
        events: checked by `schema.validate_events`.

    Returns:
        user_id, item_id, timestamp (of the event that decided), feedback, request_id and rank (the best place the item
        was shown at; where the log has no rank of it, its place among the request's items by their best scores).
    """
    weighted = events.with_columns(
        pl.col(EVENT).replace_strict(_WEIGHT).alias("weight"),
        pl.col(EVENT).replace_strict(_LEVEL).alias(FEEDBACK),
    ).with_row_index("row")
    decided = weighted.sort("weight", TIMESTAMP, "row").group_by(USER_ID, ITEM_ID, REQUEST_ID, maintain_order=True)
    table = decided.agg(pl.col(TIMESTAMP, FEEDBACK).last(), pl.col(RANK, "row").min(), pl.col(SCORE).max())
    place = pl.col(SCORE).rank("ordinal", descending=True).over(USER_ID, REQUEST_ID).cast(pl.Int64)
    by_score = pl.when(pl.col(REQUEST_ID).is_not_null()).then(place)
    return table.sort("row").with_columns(pl.coalesce(RANK, by_score).alias(RANK)).select(_COLUMNS)


def feedback_of_log(events: pl.DataFrame, split: Split) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The feedback of a log on the users and items of a split, and what became of its rows.

    Events of other users and items are left out, and so are those that *are* a held-out interaction (same user, item
    and time), as in a log of the period of the data: validation and test targets are never trained on.

    Args:
        events: checked by `schema.validate_events`.
        split: the run's data.

    Returns:
        The table of `feedback_of_events`, and counts: `events`, `unknown_users`, `unknown_items` and `held_out` (rows
        left out for each reason), `feedback` (rows of the table), `users`, `requests`, and rows of each level.

    Raises:
        InputError: nothing is left.
    """
    known_user = events[USER_ID].cast(pl.String).is_in(split.users[USER_ID].implode())
    known_item = events[ITEM_ID].cast(pl.String).is_in(split.items[ITEM_ID].implode())
    held_out = pl.concat([split.validation, split.test]).select(USER_ID, ITEM_ID, TIMESTAMP)
    ours = events.filter(known_user & known_item).with_columns(pl.col(USER_ID, ITEM_ID).cast(pl.String))
    usable = ours.join(held_out, on=[USER_ID, ITEM_ID, TIMESTAMP], how="anti", maintain_order="left")
    if not len(usable):
        raise InputError(
            f"log: none of {len(events):,} events is of a user and an item of {split.source} "
            f"({(~known_user).sum():,} of unknown users, {(~known_item).sum():,} of unknown items); give the log of a "
            "model of this run"
        )
    also = usable.join(held_out, on=[USER_ID, ITEM_ID], how="semi").height
    if also:
        # Left in: leaving them out would let the held-out targets choose what is trained on.
        logger.warning(
            "%d events are of a user and their held-out item at another time; is the log in the unit of the data?",
            also,
        )
    table = feedback_of_events(usable)
    counts = {level: int((table[FEEDBACK] == level).sum()) for level in FEEDBACK_LEVELS}
    return table, {
        "events": len(events),
        "unknown_users": int((~known_user).sum()),
        "unknown_items": int((~known_item).sum()),
        "held_out": len(ours) - len(usable),
        "feedback": len(table),
        "users": table[USER_ID].n_unique(),
        "requests": table[REQUEST_ID].drop_nulls().n_unique(),
        **counts,
    }


def _read(path: str | Path, option: str) -> pl.DataFrame:
    if not Path(path).exists():
        raise InputError(f"--{option} {path}: not found; give a Parquet file, or a folder of them")
    return scan_parquet(Path(path)).collect()
