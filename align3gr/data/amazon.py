"""Amazon reviews, the three releases of McAuley's group: 2014, 2018 and 2023.

The releases differ in file names, fields and units; what is made of them is the same:

- An item's title is the product's. Where that is empty, or left-over page code ("getTime"), it is brand and most
  specific category, else the id.
- An item's text is title, brand, categories, features and description.
- A review is the summary and the text, without markup.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from align3gr.data.delimited import read_csv
from align3gr.data.interaction_log import InteractionLog
from align3gr.data.lines import json_records, read_json_lines
from align3gr.data.schema import ITEM_ID, RATING, REVIEW, TIMESTAMP, USER_ID
from align3gr.data.source import AMAZON_HUB, LogFiles, LogSource, first_existing, named_file
from align3gr.data.tables import Tables
from align3gr.data.texts import as_texts, clean_text, distinct, review_texts, sentences
from align3gr.data.values import TimestampColumn, numbered, read_ids, read_ratings
from align3gr.errors import InputError


@dataclass(frozen=True)
class Release:
    """Names of one release.

    Attributes:
        logs: file names that the log of a category may have; where several are there, an option has to choose.
        metadata: file name of its items.
        user, item, rating, summary, text, timestamp: fields of a review; that of the item is the metadata's too.
        literal: whether metadata lines are Python literals.
    """

    logs: tuple[str, ...]
    metadata: str
    user: str
    item: str
    rating: str
    summary: str
    text: str
    timestamp: str
    literal: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        texts = dict.fromkeys((self.user, self.item, self.summary, self.text), pl.String)
        return {**texts, self.rating: pl.Float64, self.timestamp: pl.Int64}


_AMAZON_2018 = Release(
    logs=("{}_5.json", "{}.json", "{}.csv"),
    metadata="meta_{}.json",
    user="reviewerID",
    item="asin",
    rating="overall",
    summary="summary",
    text="reviewText",
    timestamp="unixReviewTime",
)
RELEASES = {
    "amazon-2014": replace(_AMAZON_2018, logs=("reviews_{}_5.json", "reviews_{}.json"), literal=True),
    "amazon-2018": _AMAZON_2018,
    "amazon-2023": Release(
        logs=("{}.jsonl",),
        metadata="meta_{}.jsonl",
        user="user_id",
        item="parent_asin",
        rating="rating",
        summary="title",
        text="text",
        timestamp="timestamp",
    ),
}
# Columns of the ratings-only files of 2018, which have no header: the item comes first.
RATINGS_2018 = [ITEM_ID, USER_ID, RATING, TIMESTAMP]


def amazon_files(name: str, source: str | Path, options: LogSource) -> LogFiles:
    """The log and the metadata of one category.

    Args:
        name: "amazon-2014", "amazon-2018" or "amazon-2023".
        source: folder of the files; for 2023 also a copy of the Hub data set or its name, from which the two files are
            fetched.
        options: `category` chooses among several; `interactions` and `items` name files with unusual names.

    Raises:
        InputError: a file is missing, or it is not clear which is meant.
    """
    release, folder = RELEASES[name], Path(source)
    if name == "amazon-2023" and not folder.is_dir():
        return _from_hub(str(source), options)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the data set")
    logs = metadata = folder
    if (folder / "raw" / "review_categories").is_dir():
        logs, metadata = folder / "raw" / "review_categories", folder / "raw" / "meta_categories"
    if options.interactions:
        log = named_file(folder, options.interactions, "interactions")
        category = options.category or _category(log, release)
    else:
        category = options.category or _only_category(metadata, logs, release)
        found = [path for path in (first_existing(logs, [n.format(category)]) for n in release.logs) if path]
        if len(found) != 1:
            wanted = ", ".join(n.format(category) for n in release.logs)
            names = [path.name for path in found]
            raise InputError(
                f"{logs}: expected one log of {wanted} (.gz or not), found {names or 'none'}; "
                f"{'choose with interactions' if found else 'fetch it, or correct category'}"
            )
        log = found[0]
    if options.items == "none":
        return LogFiles(str(source), log)
    if options.items:
        return LogFiles(str(source), log, named_file(folder, options.items, "items"))
    items = first_existing(metadata, [release.metadata.format(category)])
    if items is None:
        raise InputError(
            f"{metadata / release.metadata.format(category)}: no such file (.gz or not); fetch it, name it with "
            f"items, or set items to none: ids become the texts"
        )
    return LogFiles(str(source), log, items)


def read_amazon(name: str, files: LogFiles, missing_items: str = "drop") -> Tables:
    """Read one category.

    Timestamps are seconds (2014, 2018) or milliseconds (2023) since 1970.

    Args:
        name: see `amazon_files`.
        files: what `amazon_files` found.
        missing_items: see `InteractionLog.tables`; "drop" is what LC-Rec does.

    Raises:
        InputError: a file is damaged or a line cannot be used; file, line and field are named.
    """
    release, log = RELEASES[name], InteractionLog(files.source)
    for frame in _reviews(files.interactions, release):
        log.add(frame)
    if files.items is None:
        return log.tables()
    return log.tables(amazon_items(files.items, release), missing_items=missing_items, items_source=str(files.items))


def _reviews(path: Path, release: Release) -> Iterator[pl.DataFrame]:
    if ".csv" in path.suffixes:
        yield from _ratings_only(path)
        return
    ids = [pl.col(release.user).alias(USER_ID), pl.col(release.item).alias(ITEM_ID)]
    values = [pl.col(release.timestamp).alias(TIMESTAMP), pl.col(release.rating).alias(RATING)]
    required = (release.user, release.item, release.timestamp)
    loads = ast.literal_eval if release.literal else json.loads
    for _, frame in read_json_lines(path, release.schema, required, loads):
        reviews = review_texts(frame[release.summary], frame[release.text])
        yield frame.select(*ids, *values, reviews.alias(REVIEW))


def _ratings_only(path: Path) -> Iterator[pl.DataFrame]:
    times = TimestampColumn(path, TIMESTAMP)
    for first, frame in read_csv(path, RATINGS_2018, header=RATINGS_2018):
        place = numbered("row", range(first, first + len(frame)))
        yield pl.DataFrame(
            [
                read_ids(frame[USER_ID], path, place),
                read_ids(frame[ITEM_ID], path, place),
                times.read(frame[TIMESTAMP], place),
                read_ratings(frame[RATING], path, place),
            ]
        )


def amazon_items(path: Path, release: Release) -> Iterator[tuple[str, str, str]]:
    """(id, title, text) of each line of a metadata file."""
    item_field = release.item
    for number, record in json_records(path, ast.literal_eval if release.literal else json.loads):
        item_id = record.get(item_field)
        if not isinstance(item_id, str) or not item_id:
            raise InputError(
                f"{path}: line {number} has no field {item_field!r}, its fields are {list(record)[:12]}; "
                f"correct or remove the line"
            )
        yield item_id, *_item_texts(item_id, record)


def _item_texts(item_id: str, record: dict[str, Any]) -> tuple[str, str]:
    title = " ".join(as_texts(record.get("title")))
    if "getTime" in title:  # rows of 2018 whose page could not be read
        title = ""
    brand = clean_text(re.sub(r"^\s*by\s*\n", "", str(record.get("brand") or record.get("store") or "")))
    categories = _categories(record)
    title = title or " ".join(filter(None, [brand, *categories[-1:]])) or item_id
    features = distinct(as_texts(record.get("feature") or record.get("features")))
    description = " ".join(distinct(as_texts(record.get("description"))))
    return title, sentences(title, brand, ", ".join(categories), ", ".join(features), description)


def _categories(record: dict[str, Any]) -> list[str]:
    """From the widest to the narrowest. Lists of 2018 can end in product features, from the first with markup on."""
    raw = record.get("categories") or record.get("category") or record.get("main_category")
    names = []
    for part in raw if isinstance(raw, list) else [raw]:
        if isinstance(part, str) and "</span>" in part:
            break
        names += as_texts(part)
    return distinct(names)


def _category(log: Path, release: Release) -> str:
    """The category in the name of a log."""
    name = log.name.removesuffix(".gz")
    for pattern in release.logs:
        before, after = pattern.split("{}")
        if name.startswith(before) and name.endswith(after):
            return name.removeprefix(before).removesuffix(after)
    return name.split(".")[0]


def _only_category(metadata: Path, logs: Path, release: Release) -> str:
    before, after = release.metadata.split("{}")
    found = {
        path.name.removesuffix(".gz").removeprefix(before).removesuffix(after)
        for path in (metadata.iterdir() if metadata.is_dir() else [])
        if path.name.removesuffix(".gz").startswith(before) and path.name.removesuffix(".gz").endswith(after)
    }
    if not found:
        found = {_category(path, release) for path in logs.iterdir() if _is_log(path, release)}
    if len(found) != 1:
        raise InputError(f"{logs}: holds the categories {sorted(found) or 'none'}; choose one with category")
    return found.pop()


def _is_log(path: Path, release: Release) -> bool:
    return any(path.name.removesuffix(".gz").endswith(pattern.split("{}")[1]) for pattern in release.logs)


def _from_hub(repository: str, options: LogSource) -> LogFiles:
    """Both files of a category of a Hub data set with the layout of `McAuley-Lab/Amazon-Reviews-2023`.

    Its loading script (configurations raw_review_X and raw_meta_X) is not run by today's `datasets`; the files that
    the script names are fetched instead, and stay in the Hub's cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not options.category:
        raise InputError(f"category: needed to read the Hub data set {repository}, such as Musical_Instruments")
    names = [f"raw/review_categories/{options.category}.jsonl"]
    if options.items != "none":
        names.append(f"raw/meta_categories/meta_{options.category}.jsonl")
    paths = []
    for name in names:
        try:
            paths.append(Path(hf_hub_download(repository, name, repo_type="dataset")))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                raise InputError(f"{repository}: has no file {name}; correct category") from None
            raise InputError(
                f"{repository}: neither a folder here nor a data set that can be fetched from the Hub "
                f"({' '.join(str(error).split())[:160]}); the data set's name there is {AMAZON_HUB}"
            ) from None
    return LogFiles(repository, *paths)
