"""Levels of feedback from ratings, and feedback in the numbers of a split."""

import numpy as np
import polars as pl
import pytest

from align3gr.data import Feedback, RatingScale, Split, train_levels
from align3gr.data.feedback import train_reviews
from align3gr.errors import InputError

ITEMS = list("abcd")


def split_of(ratings, feedbacks=None, reviews=None, targets=(None, None)) -> Split:
    train = {"user_id": ["u", "v"], "items": [["a", "b", "c"], ["d"]], "timestamps": [[1, 2, 3], [9]]}
    train |= {"ratings": ratings} | ({"feedbacks": feedbacks} if feedbacks else {})
    held_out = {"user_id": ["u", "v"], "item_id": ["d", "a"], "timestamp": [10, 11], "rating": list(targets)}
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float64}
    return Split(
        items=pl.DataFrame({"item_id": ITEMS, "title": ITEMS, "text": ITEMS}),
        users=pl.DataFrame({"user_id": ["u", "v"], "profile": ["", ""]}),
        train=pl.DataFrame(train),
        validation=pl.DataFrame(held_out, schema=schema),
        test=pl.DataFrame(schema=schema),
        reviews=reviews,
    )


def test_the_papers_levels_and_other_scales():
    assert RatingScale().levels(np.array([1, 1.5, 2, 3, 3.9, 4, 5, np.nan])).tolist() == [0, 1, 1, 1, 1, 2, 2, -1]
    assert RatingScale(liked_from=8, disliked_to=4).levels(np.array([4, 5, 7.5, 8, 10])).tolist() == [0, 1, 1, 2, 2]
    # A scale of thumbs has nothing between.
    assert RatingScale(1, 0).levels(np.array([0, 1])).tolist() == [0, 2]
    with pytest.raises(InputError, match=r"disliked_to: got 4.0, expected less than liked_from=4.0"):
        RatingScale(disliked_to=4.0)


def test_levels_of_the_train_split_come_from_feedback_where_there_is_some_else_from_ratings():
    ratings = [[5.0, None, 1.0], [3.0]]
    assert train_levels(split_of(ratings)).tolist() == [2, -1, 0, 1]
    given = [["disliked", None, "liked"], ["neutral"]]
    assert train_levels(split_of(ratings, given)).tolist() == [0, -1, 2, 1]
    assert train_levels(split_of(ratings, [[None] * 3, [None]])).tolist() == [2, -1, 0, 1]
    assert train_levels(split_of([None, None])).tolist() == [-1] * 4
    assert train_levels(split_of([[9.0, 6.0, 3.0], [8.0]]), RatingScale(8, 4)).tolist() == [2, 1, 0, 2]


def test_a_split_on_five_points_keeps_who_likes_what():
    split = split_of([[9.0, None, 3.0], [8.0]], targets=(7.0, 2.0))
    mapped = RatingScale(8, 4).on_five_points(split)
    assert mapped.train["ratings"].to_list() == [[5.0, None, 1.0], [5.0]]
    assert mapped.validation["rating"].to_list() == [3.0, 1.0]
    assert train_levels(mapped).tolist() == train_levels(split, RatingScale(8, 4)).tolist() == [2, -1, 0, 2]
    assert RatingScale().on_five_points(split) is split


def test_train_entries_know_their_place_and_time():
    feedback = Feedback.of_train(split_of([None, None]), np.array([2, -1, 0, 1]))
    assert feedback.user_rows.tolist() == [0, 0, 0, 1] and feedback.item_rows.tolist() == [0, 1, 2, 3]
    assert feedback.positions.tolist() == [0, 1, 2, 0] and feedback.timestamps.tolist() == [1, 2, 3, 9]
    assert set(feedback.requests.tolist()) == set(feedback.ranks.tolist()) == {-1}


def table(**columns) -> pl.DataFrame:
    rows = {"user_id": ["v", "u", "v"], "item_id": ["a", "d", "c"], "timestamp": [20, 21, 22]}
    rows |= {"feedback": ["liked", "disliked", "neutral"], "request_id": ["r2", None, "r2"], "rank": [1, None, 4]}
    return pl.DataFrame(rows | columns)


def test_a_table_in_the_numbers_of_the_split():
    split = split_of([None, None])
    feedback = Feedback.of_table(split, table(), "log.parquet")
    assert feedback.user_rows.tolist() == [1, 0, 1] and feedback.item_rows.tolist() == [0, 3, 2]
    assert feedback.levels.tolist() == [2, 0, 1] and feedback.positions.tolist() == [-1] * 3
    assert feedback.requests.tolist() == [0, -1, 0] and feedback.ranks.tolist() == [1, -1, 4]
    both = Feedback.joined([Feedback.of_train(split, np.full(4, -1)), feedback])
    assert len(both) == 7 and both.timestamps.tolist() == [1, 2, 3, 9, 20, 21, 22]
    with pytest.raises(InputError, match=r"log.parquet: row 0 has item_id 'z'"):
        Feedback.of_table(split, table(item_id=["z", "d", "c"]), "log.parquet")


def test_reviews_find_their_interaction():
    reviews = pl.DataFrame({"user_id": ["v", "u"], "position": [0, 2], "review": ["nice", "awful"]}).lazy()
    places, texts = train_reviews(split_of([None, None], reviews=reviews))
    assert places.tolist() == [3, 2] and texts == ["nice", "awful"]
    with pytest.raises(InputError, match=r"holds no reviews.parquet"):
        train_reviews(split_of([None, None]))
