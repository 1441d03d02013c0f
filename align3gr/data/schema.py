"""Column names of the tables, and their checks at the door.

Every table that enters the package passes through one of the `validate_*` functions. They return the table with
the canonical columns in canonical types, rows in the order in which they came, or raise an `InputError` that names
source and column.
"""

import polars as pl

from align3gr.errors import InputError

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
RATING = "rating"
FEEDBACK = "feedback"
REVIEW = "review"
TITLE = "title"
TEXT = "text"
PROFILE = "profile"

# Columns of train.parquet, which holds one list a user.
ITEMS = "items"
TIMESTAMPS = "timestamps"
RATINGS = "ratings"
FEEDBACKS = "feedbacks"

# Column of reviews.parquet: the place of the interaction in its user's train list, from 0.
POSITION = "position"

# The paper's three levels of feedback, worst first.
FEEDBACK_LEVELS = ("disliked", "neutral", "liked")

# The paper's levels of a rating from 1 to 5: liked 4-5, neutral 2-3, disliked 1.
LIKED_RATING = 4.0
DISLIKED_RATING = 1.0

# Columns of a log of events, beside user, item and time. A request is one list that was shown.
EVENT = "event"
REQUEST_ID = "request_id"
RANK = "rank"
SCORE = "score"

# What may happen to a shown item, the weakest sign first.
EVENTS = ("impression", "click", "like", "purchase", "dislike")


def validate_interactions(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Check a table of interactions, one row each; repeated (user, item) rows are kept.

    Args:
        frame: user_id, item_id (strings or integers), timestamp (integers of any unit, or dates), and optionally
            rating (number or null), feedback ("disliked", "neutral", "liked" or null) and review (text or null).
        source: what to call the table in an error, usually its path.

    Returns:
        The canonical columns: strings (or Categorical, where they came so) for ids, strings for texts, Int64
        timestamps (dates become microseconds), Float64 ratings.

    Raises:
        InputError: a column is missing, holds nulls where none may be, or has a type or a value that cannot be used.
    """
    _require_columns(frame, (USER_ID, ITEM_ID, TIMESTAMP), source)
    columns = [_ids(frame, USER_ID, source), _ids(frame, ITEM_ID, source), _timestamps(frame, source)]
    if RATING in frame.columns:
        columns.append(_numbers(frame, RATING, source))
    if FEEDBACK in frame.columns:
        columns.append(_feedback(frame, source))
    if REVIEW in frame.columns:
        columns.append(_texts(frame, REVIEW, source, nulls=True))
    return pl.DataFrame(columns)


def validate_items(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Check a table of items: item_id (unique), title and text.

    Raises:
        InputError: a column is missing, holds nulls or another type, or an item_id stands there twice.
    """
    _require_columns(frame, (ITEM_ID, TITLE, TEXT), source)
    item_ids = _unique(_ids(frame, ITEM_ID, source), source)
    return pl.DataFrame([item_ids, _texts(frame, TITLE, source), _texts(frame, TEXT, source)])


def validate_users(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Check a table of users: user_id (unique) and profile, a text that may be empty.

    Raises:
        InputError: a column is missing, holds nulls or another type, or a user_id stands there twice.
    """
    _require_columns(frame, (USER_ID, PROFILE), source)
    return pl.DataFrame([_unique(_ids(frame, USER_ID, source), source), _texts(frame, PROFILE, source)])


def validate_events(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Check a log of events, one row each.

    Args:
        frame: user_id, item_id (strings or integers), timestamp (integers in the unit of the data, or dates), event
            (one of `EVENTS`), and optionally request_id (string, integer or null: the list that was shown), rank
            (integer from 1 or null: the place in it) and score (number or null: of the model that made it).
        source: what to call the table in an error, usually its path.

    Returns:
        All seven columns in canonical types; null where the log does not have a column.

    Raises:
        InputError: a column is missing, holds nulls where none may be, or has a type or a value that cannot be used.
    """
    _require_columns(frame, (USER_ID, ITEM_ID, TIMESTAMP, EVENT), source)
    columns = [_ids(frame, USER_ID, source), _ids(frame, ITEM_ID, source), _timestamps(frame, source)]
    events = _texts(frame, EVENT, source)
    _one_of(events, EVENTS, source)
    absent = [name for name in (REQUEST_ID, RANK, SCORE) if name not in frame.columns]
    frame = frame.with_columns(pl.lit(None).alias(name) for name in absent)
    return pl.DataFrame([*columns, events, *_request_and_rank(frame, source), _numbers(frame, SCORE, source)])


def validate_feedback(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Check a table of feedback, one row a user, item and request: user_id, item_id, timestamp, feedback (one of
    `FEEDBACK_LEVELS`), and request_id and rank, which may be null, as in `validate_events`.

    Raises:
        InputError: a column is missing, holds nulls where none may be, or has a type or a value that cannot be used.
    """
    _require_columns(frame, (USER_ID, ITEM_ID, TIMESTAMP, FEEDBACK, REQUEST_ID, RANK), source)
    levels = _feedback(frame, source)
    _refuse_nulls(levels, source)
    ids = [_ids(frame, USER_ID, source), _ids(frame, ITEM_ID, source)]
    return pl.DataFrame([*ids, _timestamps(frame, source), levels, *_request_and_rank(frame, source)])


def require_known(values: pl.Series, known: pl.Series, source: str, known_source: str) -> None:
    """Check that every id of `values` stands in `known`.

    Raises:
        InputError: names the first row and id that does not.
    """
    if isinstance(values.dtype, pl.Categorical):
        known = known.cast(values.dtype)
    unknown = (~values.is_in(known.implode())).arg_true()
    if len(unknown):
        row = unknown[0]
        raise InputError(
            f"{source}: row {row} has {values.name} {values[row]!r}, which is not in {known_source} "
            f"({len(unknown):,} such rows); add it there or remove the rows"
        )


def _require_columns(frame: pl.DataFrame, required: tuple[str, ...], source: str) -> None:
    missing = [name for name in required if name not in frame.columns]
    if missing:
        raise InputError(
            f"{source}: column {missing[0]!r} is missing, the columns are {frame.columns}; "
            f"rename or add it (needed: {', '.join(required)})"
        )


def _refuse_nulls(column: pl.Series, source: str) -> None:
    if column.null_count():
        row = column.is_null().arg_true()[0]
        raise InputError(
            f"{source}: column {column.name!r} is null in row {row} ({column.null_count():,} nulls in all); "
            f"remove or fill these rows"
        )


def _ids(frame: pl.DataFrame, name: str, source: str) -> pl.Series:
    column = frame[name]
    _refuse_nulls(column, source)
    # Floats are refused rather than cast: 7.0 would become another id than 7.
    textual = isinstance(column.dtype, pl.String | pl.Categorical)
    if not (textual or column.dtype.is_integer() or column.is_empty()):
        raise InputError(
            f"{source}: column {name!r} has type {column.dtype}, expected strings or integers; cast it before saving"
        )
    if not isinstance(column.dtype, pl.Categorical):  # codes take less memory; they stay
        column = column.cast(pl.String)
    distinct = column.unique().cast(pl.String) if isinstance(column.dtype, pl.Categorical) else column
    if (distinct == "").any():
        row = (column.cast(pl.String) == "").arg_true()[0]
        raise InputError(f"{source}: column {name!r} is the empty string in row {row}; give it an id")
    return column


def _unique(column: pl.Series, source: str) -> pl.Series:
    repeated = column.filter(column.is_duplicated())
    if len(repeated):
        raise InputError(
            f"{source}: column {column.name!r} has {repeated[0]!r} more than once "
            f"({len(repeated):,} rows share an id); keep one row an id"
        )
    return column


def _timestamps(frame: pl.DataFrame, source: str) -> pl.Series:
    column = frame[TIMESTAMP]
    _refuse_nulls(column, source)
    if column.dtype in (pl.Datetime, pl.Date):
        return column.dt.epoch("us").alias(TIMESTAMP)
    if not (column.dtype.is_integer() or column.is_empty()):
        raise InputError(
            f"{source}: column {TIMESTAMP!r} has type {column.dtype}, expected integers or datetimes; "
            f"convert it, for example to seconds since 1970"
        )
    return _whole_numbers(column, source)


def _request_and_rank(frame: pl.DataFrame, source: str) -> tuple[pl.Series, pl.Series]:
    request, rank = frame[REQUEST_ID], frame[RANK]
    if not (isinstance(request.dtype, pl.String | pl.Categorical | pl.Null) or request.dtype.is_integer()):
        raise InputError(
            f"{source}: column {REQUEST_ID!r} has type {request.dtype}, expected strings, integers or nulls; cast it"
        )
    if not (rank.dtype.is_integer() or rank.dtype == pl.Null):
        raise InputError(f"{source}: column {RANK!r} has type {rank.dtype}, expected integers or nulls; cast it")
    rank = _whole_numbers(rank, source)
    wrong = (rank < 1).fill_null(False).arg_true()
    if len(wrong):
        raise InputError(f"{source}: column {RANK!r} is {rank[wrong[0]]} in row {wrong[0]}; the first place is 1")
    return request.cast(pl.String), rank


def _whole_numbers(column: pl.Series, source: str) -> pl.Series:
    """A column of integers or nulls as Int64."""
    numbers = column.cast(pl.Int64, strict=False)
    wrong = (numbers.is_null() & column.is_not_null()).arg_true()
    if len(wrong):
        raise InputError(
            f"{source}: column {column.name!r} is {column[wrong[0]]} in row {wrong[0]}, expected a whole number of 64 "
            "bits with a sign; correct or remove the row"
        )
    return numbers


def _numbers(frame: pl.DataFrame, name: str, source: str) -> pl.Series:
    column = frame[name]
    if not (column.dtype.is_numeric() or column.dtype == pl.Null):
        raise InputError(
            f"{source}: column {name!r} has type {column.dtype}, expected numbers or nulls; cast it to float"
        )
    column = column.cast(pl.Float64)
    not_finite = (~column.is_finite().fill_null(True)).arg_true()
    if len(not_finite):
        raise InputError(
            f"{source}: column {name!r} is {column[not_finite[0]]} in row {not_finite[0]}; "
            f"use a finite number, or null where there is no {name}"
        )
    return column


def _feedback(frame: pl.DataFrame, source: str) -> pl.Series:
    column = _texts(frame, FEEDBACK, source, nulls=True)
    _one_of(column, FEEDBACK_LEVELS, source, " or null")
    return column


def _one_of(column: pl.Series, values: tuple[str, ...], source: str, or_null: str = "") -> None:
    unknown = column.drop_nulls().filter(~column.drop_nulls().is_in(values))
    if len(unknown):
        raise InputError(
            f"{source}: column {column.name!r} has the value {unknown[0]!r}, "
            f"expected one of {', '.join(values)}{or_null}"
        )


def _texts(frame: pl.DataFrame, name: str, source: str, nulls: bool = False) -> pl.Series:
    column = frame[name]
    if not nulls:
        _refuse_nulls(column, source)
    if not isinstance(column.dtype, pl.String | pl.Categorical | pl.Null):
        raise InputError(f"{source}: column {name!r} has type {column.dtype}, expected strings; cast it before saving")
    return column.cast(pl.String)
