"""The Yelp academic dataset, as Yelp publishes it: yelp_academic_dataset_{review,business}.json, JSON lines.

The file of users is not read: what it says of their taste (average stars, counts, compliments) sums up all of their
reviews, those held out included. Profiles are made from the train split instead.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from align3gr.data.interaction_log import InteractionLog
from align3gr.data.lines import json_records, read_json_lines
from align3gr.data.schema import ITEM_ID, RATING, REVIEW, TIMESTAMP, USER_ID
from align3gr.data.source import LogFiles, LogSource, existing_folder, named_file, optional_file
from align3gr.data.tables import Tables
from align3gr.data.texts import as_texts, distinct, review_texts, sentences
from align3gr.data.values import TimestampColumn, numbered
from align3gr.errors import InputError

PREFIX = "yelp_academic_dataset_"
REVIEW_SCHEMA = {
    "user_id": pl.String,
    "business_id": pl.String,
    "date": pl.String,
    "stars": pl.Float64,
    "text": pl.String,
}


def yelp_files(source: str | Path, options: LogSource) -> LogFiles:
    """The files of the data set.

    Raises:
        InputError: the folder, the reviews or the businesses are missing.
    """
    folder = existing_folder(source)
    reviews, businesses = (f"{PREFIX}{name}.json" for name in ("review", "business"))
    log = optional_file(folder, options.interactions, [reviews], "interactions")
    items = optional_file(folder, options.items, [businesses], "items")
    return LogFiles(
        str(folder),
        log or named_file(folder, reviews, "interactions"),
        items if items or options.items == "none" else named_file(folder, businesses, "items"),
    )


def read_yelp(files: LogFiles, missing_items: str = "drop") -> Tables:
    """Read the data set. Stars are ratings, dates become microseconds since 1970.

    An item's title is the business's name (its categories where that is empty, else the id), its text name, categories
    and city.

    Args:
        files: what `yelp_files` found.
        missing_items: see `InteractionLog.tables`.

    Raises:
        InputError: a file is damaged or a line cannot be used; file, line and field are named.
    """
    log = InteractionLog(files.source)
    dates = TimestampColumn(files.interactions, "date")
    for lines, frame in read_json_lines(files.interactions, REVIEW_SCHEMA, ("user_id", "business_id", "date")):
        ids = [pl.col(USER_ID), pl.col("business_id").alias(ITEM_ID)]
        reviews = review_texts(None, frame["text"]).alias(REVIEW)
        times = dates.read(frame["date"], numbered("line", lines))
        log.add(frame.select(*ids, times.alias(TIMESTAMP), pl.col("stars").alias(RATING), reviews))
    items = _items(files.items) if files.items else None
    return log.tables(items, missing_items=missing_items, items_source=str(files.items))


def _items(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, record in json_records(path):
        business = record.get("business_id")
        if not isinstance(business, str) or not business:
            raise InputError(f"{path}: line {number} has no field 'business_id'; correct or remove the line")
        categories = record.get("categories")
        # One text with commas since 2018, a list before.
        names = distinct(as_texts(categories.split(",") if isinstance(categories, str) else categories))
        title = " ".join(as_texts(record.get("name"))) or " ".join(names) or business
        yield business, title, sentences(title, ", ".join(names), " ".join(as_texts(record.get("city"))))
