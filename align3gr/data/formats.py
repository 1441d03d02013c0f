"""Every layout that can be read, by its name."""

import dataclasses
from pathlib import Path

from align3gr.data.amazon import RELEASES, amazon_files, read_amazon
from align3gr.data.columns import ENDINGS, column_files, read_columns
from align3gr.data.frames import hub_files, read_hub
from align3gr.data.movielens import read_movielens_1m, read_movielens_100k
from align3gr.data.readers import read_lcrec, read_tables
from align3gr.data.source import LogFiles, LogSource, existing_folder
from align3gr.data.tables import Tables
from align3gr.data.yelp import read_yelp, yelp_files
from align3gr.errors import InputError

WHOLE_FOLDERS = {
    "lcrec": read_lcrec,
    "movielens-100k": read_movielens_100k,
    "movielens-1m": read_movielens_1m,
    "tables": read_tables,
}
HUB = "hub"
FORMATS = (*WHOLE_FOLDERS, *RELEASES, "yelp", *ENDINGS, HUB)
# Formats whose source may be a data set of the Hub.
FROM_HUB = ("amazon-2023", HUB)


def find_files(name: str, source: str | Path, options: LogSource) -> LogFiles:
    """The files of a data set, before any is read.

    Args:
        name: one of `FORMATS`.
        source: the folder; a file for csv, jsonl and parquet; a Hub data set for amazon-2023 and hub.
        options: see `LogSource`.

    Raises:
        InputError: a file is missing, or an option does not apply to the format.
    """
    if name not in FORMATS:
        raise InputError(f"format: got {name!r}, choose from {', '.join(FORMATS)}")
    applying = {"interactions", "items", "missing_items"} if name not in WHOLE_FOLDERS else set()
    applying |= {"category"} if name in RELEASES else set()
    applying |= {"users", "columns", "item_columns", "user_columns"} if name in (*ENDINGS, HUB) else set()
    for option in dataclasses.fields(options):
        if option.name not in applying and getattr(options, option.name) != option.default:
            raise InputError(f"{option.name}: does not apply to format '{name}'; leave it out")
    if name in WHOLE_FOLDERS:
        return LogFiles(str(source), existing_folder(source))
    if name in RELEASES:
        return amazon_files(name, source, options)
    if name == HUB:
        return hub_files(str(source))
    return yelp_files(source, options) if name == "yelp" else column_files(name, source, options)


def read_log(name: str, files: LogFiles, options: LogSource) -> Tables:
    """Read the files that `find_files` found.

    Args:
        name: the format, one of `FORMATS`.
        files: what `find_files` found.
        options: the settings of the log, its columns among them.

    Raises:
        InputError: a file is damaged or a line cannot be used; file, line and field are named.
    """
    if name in WHOLE_FOLDERS:
        return WHOLE_FOLDERS[name](files.interactions)
    if name in RELEASES:
        return read_amazon(name, files, options.missing_items)
    if name == HUB:
        return read_hub(files, options)
    return read_yelp(files, options.missing_items) if name == "yelp" else read_columns(name, files, options)
