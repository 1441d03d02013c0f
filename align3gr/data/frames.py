"""Own logs that are in memory already: pandas, Polars, Arrow and `datasets`; and data sets of the Hub."""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from align3gr.data.columns import (
    ITEM_COLUMNS,
    LOG_COLUMNS,
    ROWS_AT_A_TIME,
    USER_COLUMNS,
    Chunk,
    Row,
    chosen_columns,
    interaction_rows,
    item_texts,
    user_profiles,
)
from align3gr.data.interaction_log import InteractionLog
from align3gr.data.schema import TIMESTAMP
from align3gr.data.source import LogFiles, LogSource
from align3gr.data.tables import Tables
from align3gr.data.values import TimestampColumn, numbered
from align3gr.errors import InputError
from align3gr.snapshots import local_folder
from align3gr.suggestions import did_you_mean

PARTS = ("interactions", "items", "users")


def read_frames(
    interactions: Any,
    items: Any = None,
    users: Any = None,
    columns: Mapping[str, Any] | None = None,
    item_columns: Mapping[str, Any] | None = None,
    user_columns: Mapping[str, Any] | None = None,
    missing_items: str = "drop",
    source: str = "frames",
) -> Tables:
    """Own logs in memory, as `read_log` reads them from files.

    A frame is a pandas or Polars one, an Arrow table or a `datasets.Dataset`.

    ```python
    split = leave_one_out(read_frames(clicks, products, columns={"user_id": "customer", "item_id": "sku"}))
    ```

    Args:
        interactions: the log; or a `DatasetDict` (any dictionary of frames) with the entries interactions, items and
            users, of which the first is needed.
        items: items with their texts; the ids are titles and texts where it is None.
        users: users with their profiles, or None.
        columns: columns of the log by the names user_id, item_id, timestamp, rating, feedback and review. What is not
            named is looked for under these names; the first three must be there.
        item_columns: the same for item_id, title and text; several columns in a list become one text.
        user_columns: the same for user_id and profile.
        missing_items: "drop" leaves out interactions with items that `items` lacks, "id" makes the id their text.
        source: what to call the frames in an error.

    Raises:
        InputError: a frame is of another kind or has no rows, a column is missing, or a value cannot be used; the row
            is named by its position, from 0.
    """
    if isinstance(interactions, Mapping):
        if items is not None or users is not None:
            raise InputError(f"{source}: items and users stand in the dictionary of frames; leave the arguments out")
        interactions, items, users = _parts(interactions, source)
    options = LogSource()
    options.columns, options.item_columns, options.user_columns = (
        None if mapping is None else dict(mapping) for mapping in (columns, item_columns, user_columns)
    )
    path = Path(f"{source}: interactions")
    chosen = chosen_columns(
        path, _names(interactions, path), options.mapping("columns"), LOG_COLUMNS[:3], LOG_COLUMNS[3:], "columns"
    )
    log, times = InteractionLog(source), TimestampColumn(path, chosen[TIMESTAMP][0])
    for place, frame in _chunks(interactions, chosen, path):
        log.add(interaction_rows(path, place, frame, chosen, times))
    profiles = None
    if users is not None:
        path = Path(f"{source}: users")
        rows = _rows(users, path, options.mapping("user_columns"), USER_COLUMNS, (), "user_columns")
        profiles = user_profiles(path, rows)
    if items is None:
        return log.tables(users=profiles)
    path = Path(f"{source}: items")
    rows = _rows(items, path, options.mapping("item_columns"), ITEM_COLUMNS[:1], ITEM_COLUMNS[1:], "item_columns")
    return log.tables(item_texts(path, rows), profiles, missing_items, items_source=str(path))


def hub_files(source: str) -> LogFiles:
    """A data set of the Hub, fetched into its cache; or a folder with the layout of one.

    Args:
        source: such as `me/shop`, or `me/shop@v1` for a branch, tag or commit; or a folder.

    Raises:
        InputError: there is neither such a folder nor such a data set.
    """
    name, _, revision = source.partition("@")
    folder = Path(source) if Path(source).is_dir() else local_folder(name, revision or None, kind="dataset")
    return LogFiles(source, folder)


def read_hub(files: LogFiles, options: LogSource) -> Tables:
    """Reads the tables of a data set with `datasets.load_dataset`.

    `interactions`, `items` and `users` of the options name a configuration, a split, or both: `ratings/train`. Without
    them the configurations or splits of these names are taken; a data set with one configuration and one split is the
    log. `items: none` reads no items.

    Raises:
        InputError: a configuration or split is missing or cannot be read, or is not said; see also `read_frames`.
    """
    # The common cache knows a file by its name and time, which may stay as they are where the contents change.
    with tempfile.TemporaryDirectory(prefix="align3gr-") as cache:
        frames = {part: _load(files, getattr(options, part), part, cache) for part in PARTS}
        return read_frames(
            frames["interactions"],
            frames["items"],
            frames["users"],
            options.mapping("columns"),
            options.mapping("item_columns"),
            options.mapping("user_columns"),
            options.missing_items,
            files.source,
        )


def _load(files: LogFiles, given: str | None, part: str, cache: str) -> Any:
    """One table of a data set; None where there is none and none was asked for."""
    import datasets

    if given == "none" and part != "interactions":
        return None
    source, folder = files.source, str(files.interactions)
    try:
        configurations = datasets.get_dataset_config_names(folder)
        config, _, split = (given or part).partition("/")
        if config not in configurations and len(configurations) == 1:
            config, split = configurations[0], split or config
        if config not in configurations:
            if given is None and part != "interactions":
                return None
            near = did_you_mean(config, configurations)
            raise InputError(f"{part}: {source} has no configuration '{config}', it has {configurations}{near}")
        loaded = datasets.load_dataset(folder, config, cache_dir=cache)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{source}: no data set that can be loaded ({type(error).__name__}: {reason})") from None
    if split in loaded:
        return loaded[split]
    if given is None and part != "interactions" and split:
        return None
    if len(loaded) == 1 and (given is None or not split):
        return next(iter(loaded.values()))
    raise InputError(
        f"{part}: {source}, configuration '{config}' has the splits {list(loaded)}; name one: {config}/..."
    )


def _parts(frames: Mapping[str, Any], source: str) -> list[Any]:
    """Log, items and users of a dictionary."""
    for name in frames:
        if name not in PARTS:
            near = did_you_mean(str(name), PARTS)
            raise InputError(
                f"{source}: has the entry {name!r}{near}, expected {', '.join(PARTS)}; rename or remove it"
            )
    if "interactions" not in frames:
        raise InputError(f"{source}: has no entry 'interactions', it has {list(frames)}; rename the log")
    return [frames.get(name) for name in PARTS]


def _rows(
    frame: Any,
    path: Path,
    mapping: Mapping[str, list[str]],
    required: Sequence[str],
    optional: Sequence[str],
    option: str,
) -> Iterator[Row]:
    chosen = chosen_columns(path, _names(frame, path), dict(mapping), required, optional, option)
    for place, chunk in _chunks(frame, chosen, path):
        for number, row in enumerate(chunk.iter_rows(named=True)):
            yield place(number), row, chosen


def _is(frame: Any, module: str, name: str) -> bool:
    """Whether a frame is of a class of a library, which is not imported to ask."""
    return module in sys.modules and isinstance(frame, getattr(sys.modules[module], name))


def _names(frame: Any, path: Path) -> list[str]:
    """The columns of a frame.

    Raises:
        InputError: it is none.
    """
    if isinstance(frame, pl.DataFrame):
        return frame.columns
    if isinstance(frame, pa.Table) or _is(frame, "datasets", "Dataset"):
        return list(frame.column_names)
    if _is(frame, "pandas", "DataFrame"):
        return [str(name) for name in frame.columns]
    raise InputError(
        f"{path}: is a {type(frame).__name__}, expected a pandas or Polars frame, an Arrow table or a datasets.Dataset"
    )


def _chunks(frame: Any, chosen: Mapping[str, list[str]], path: Path) -> Iterator[Chunk]:
    """The chosen columns of a frame, some rows at a time."""
    columns = list(dict.fromkeys(column for several in chosen.values() for column in several))
    if _is(frame, "datasets", "Dataset"):
        tables = frame.select_columns(columns).with_format("arrow").iter(ROWS_AT_A_TIME) if len(frame) else ()
    else:
        tables = (frame[start : start + ROWS_AT_A_TIME] for start in range(0, len(frame), ROWS_AT_A_TIME))
    first = 0
    for table in tables:
        try:
            part = _polars(table, columns)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{path}: a column has values of several types ({reason}); cast it") from None
        yield numbered("row", range(first, first + len(part))), part
        first += len(part)


def _polars(table: Any, columns: list[str]) -> pl.DataFrame:
    if isinstance(table, pl.DataFrame):
        return table.select(columns)
    if isinstance(table, pa.Table):
        return pl.DataFrame(pl.from_arrow(table.select(columns)))
    return pl.DataFrame({name: pl.from_pandas(table[name], nan_to_null=True) for name in columns})
