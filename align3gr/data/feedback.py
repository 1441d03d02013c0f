"""Feedback in three levels, disliked, neutral and liked, wherever it comes from.

Levels are made from ratings here, from logs of events in `feedback_log`, from review texts in
`align3gr.encoders.sentiment`. An interaction without a level is unknown: it is neither liked nor disliked.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from align3gr.data.schema import (
    DISLIKED_RATING,
    FEEDBACK,
    FEEDBACK_LEVELS,
    FEEDBACKS,
    ITEM_ID,
    LIKED_RATING,
    POSITION,
    RANK,
    RATING,
    RATINGS,
    REQUEST_ID,
    REVIEW,
    TIMESTAMP,
    TIMESTAMPS,
    USER_ID,
    require_known,
)
from align3gr.data.tables import Split
from align3gr.errors import InputError

DISLIKED, NEUTRAL, LIKED = range(len(FEEDBACK_LEVELS))
# Level of an interaction about which nothing was said; request and rank of one that no log tells of.
UNKNOWN = -1
# A rating on the scale from 1 to 5 for each level.
_TYPICAL_RATINGS = (DISLIKED_RATING, 3.0, 5.0)


@dataclass(frozen=True)
class RatingScale:
    """Which ratings are liked and which disliked; those between are neutral.

    Attributes:
        liked_from: the lowest rating that is liked; 4 of 5 in the paper.
        disliked_to: the highest rating that is disliked; 1 of 5 in the paper.

    Raises:
        InputError: a rating would be both.

    >>> RatingScale().levels(np.array([1, 2, 3, 4, 5, np.nan])).tolist()
    [0, 1, 1, 2, 2, -1]
    """

    liked_from: float = LIKED_RATING
    disliked_to: float = DISLIKED_RATING

    def __post_init__(self) -> None:
        if not self.disliked_to < self.liked_from:
            raise InputError(
                f"disliked_to: got {self.disliked_to}, expected less than liked_from={self.liked_from}; a rating "
                "cannot be both"
            )

    def levels(self, ratings: np.ndarray) -> np.ndarray:
        """Level of each rating, `UNKNOWN` for NaN. Shape: any, float -> the same, int64."""
        ratings = np.asarray(ratings, dtype=np.float64)
        levels = np.where(ratings >= self.liked_from, LIKED, np.where(ratings <= self.disliked_to, DISLIKED, NEUTRAL))
        return np.where(np.isnan(ratings), UNKNOWN, levels)

    def on_five_points(self, split: Split) -> Split:
        """The split with ratings 5, 3 and 1 for liked, neutral and disliked, so that all that is said about liked and
        disliked targets is said on this scale. The paper's own scale changes nothing."""
        if self == RatingScale():
            return split

        def typical(values: pl.Series) -> pl.Series:
            levels = self.levels(values.cast(pl.Float64).fill_null(float("nan")).to_numpy())
            ratings = np.where(levels == UNKNOWN, np.nan, np.array(_TYPICAL_RATINGS)[levels])
            return pl.Series(values.name, ratings, nan_to_null=True)

        train = split.train.with_columns(
            pl.col(RATINGS).list.eval(pl.element().map_batches(typical, return_dtype=pl.Float64))
        )
        targets = {
            name: getattr(split, name).with_columns(typical(getattr(split, name)[RATING]))
            for name in ("validation", "test")
        }
        return dataclasses.replace(split, train=train, **targets)


@dataclass
class Feedback:
    """What users said about items, one entry an interaction of the train split or of a log; all `(entries,)` int64.

    Attributes:
        user_rows: rows of `Split.users`.
        item_rows: rows of `Split.items`.
        levels: `DISLIKED`, `NEUTRAL`, `LIKED` or `UNKNOWN`.
        timestamps: in the unit of the data.
        positions: place in the user's train sequence, -1 for an entry of a log.
        requests: number of the list that was shown, -1 where none is known.
        ranks: place in that list from 1, -1 where it is not known.
    """

    user_rows: np.ndarray
    item_rows: np.ndarray
    levels: np.ndarray
    timestamps: np.ndarray
    positions: np.ndarray
    requests: np.ndarray
    ranks: np.ndarray

    def __len__(self) -> int:
        return len(self.levels)

    @classmethod
    def joined(cls, parts: Sequence["Feedback"]) -> "Feedback":
        """All entries of some parts, of which at most one has requests."""
        names = [column.name for column in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def of_train(cls, split: Split, levels: np.ndarray) -> "Feedback":
        """Every train interaction with its level; `levels` as `train_levels` or `review_levels` give them."""
        sequences = split.train_sequences()
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        users = np.repeat(np.arange(len(lengths)), lengths)
        positions = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        items = np.concatenate([*sequences, np.empty(0, np.int64)])
        times = split.train[TIMESTAMPS].explode(empty_as_null=False).to_numpy().astype(np.int64)
        nothing = np.full(len(users), -1)
        return cls(users, items, levels, times, positions, nothing, nothing)

    @classmethod
    def of_table(cls, split: Split, table: pl.DataFrame, source: str) -> "Feedback":
        """A table of feedback (see `schema.validate_feedback`) in the numbers of the split.

        Raises:
            InputError: it names users or items that are not in the split.
        """
        require_known(table[USER_ID], split.users[USER_ID], source, "the users table of the run")
        require_known(table[ITEM_ID], split.items[ITEM_ID], source, "the items table of the run")
        requests = table[REQUEST_ID].rank("dense").cast(pl.Int64) - 1
        return cls(
            table[USER_ID].replace_strict(split.user_index, return_dtype=pl.Int64).to_numpy(),
            table[ITEM_ID].replace_strict(split.item_index, return_dtype=pl.Int64).to_numpy(),
            table[FEEDBACK]
            .replace_strict(list(FEEDBACK_LEVELS), [DISLIKED, NEUTRAL, LIKED])
            .cast(pl.Int64)
            .to_numpy(),
            table[TIMESTAMP].to_numpy(),
            np.full(table.height, -1),
            requests.fill_null(-1).to_numpy(),
            table[RANK].fill_null(-1).to_numpy(),
        )


def train_levels(split: Split, scale: RatingScale | None = None) -> np.ndarray:
    """Level of every train interaction, user by user: by the data's feedback where it has some, else by rating.

    Args:
        split: only its train part is looked at.
        scale: levels of ratings; the paper's if None.

    Returns:
        (train interactions,) int64, `UNKNOWN` where nothing was said.
    """
    if FEEDBACKS in split.train.columns:
        given = split.train[FEEDBACKS].explode(empty_as_null=False)
        if len(given) == _train_interactions(split) and given.null_count() < len(given):
            numbers = given.replace_strict(list(FEEDBACK_LEVELS), [DISLIKED, NEUTRAL, LIKED], default=UNKNOWN)
            return numbers.cast(pl.Int64).to_numpy()
    return (scale or RatingScale()).levels(train_ratings(split))


def train_ratings(split: Split) -> np.ndarray:
    """Rating of every train interaction, user by user; NaN where there is none. Shape: (train interactions,)."""
    ratings = split.train[RATINGS].explode(empty_as_null=False)
    if len(ratings) != _train_interactions(split):  # a user's list is null as a whole
        return np.full(_train_interactions(split), np.nan)
    return ratings.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def train_reviews(split: Split) -> tuple[np.ndarray, list[str]]:
    """Reviews of train interactions, and for each the number of its interaction, counted user by user.

    Raises:
        InputError: the data has no reviews.
    """
    if split.reviews is None:
        raise InputError(f"{split.source}: holds no reviews.parquet; prepare data with review texts, or use ratings")
    lengths = split.train[TIMESTAMPS].list.len().cast(pl.Int64)
    starts = pl.DataFrame({USER_ID: split.train[USER_ID], "start": lengths.cum_sum() - lengths})
    reviews = split.reviews.collect().join(starts, on=USER_ID, how="left", maintain_order="left")
    return (reviews["start"] + reviews[POSITION]).to_numpy(), reviews[REVIEW].to_list()


def _train_interactions(split: Split) -> int:
    return int(split.train[TIMESTAMPS].list.len().sum())
