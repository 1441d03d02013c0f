"""Recommendations from a file of histories into a file, in parts that survive a kill.

`<output>.parts/` holds one file for each block of users, written under another name and renamed when it is whole, and
what they were made from. The same call makes the parts that are missing. A part is always computed as a whole, by one
process, so an interrupted run, a run in several processes and an undisturbed one give the same bytes.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from align3gr.data.schema import ITEM_ID, TITLE, USER_ID
from align3gr.decoding.history_files import (
    check_histories,
    check_items,
    check_output,
    count_rows,
    kind_of,
    read_requests,
)
from align3gr.decoding.recommender import Recommender
from align3gr.decoding.request_prompts import UnknownItems
from align3gr.decoding.requests import Recommendation, Request
from align3gr.errors import InputError
from align3gr.processes import launched, share
from align3gr.progress import ProgressBar

logger = logging.getLogger(__name__)

# Few enough that the processes of a launch end at about the same time, many enough that a batch holds like lengths.
PART_USERS = 1024
SETTINGS_FILE = "settings.json"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        (USER_ID, pa.string()),
        ("rank", pa.int32()),
        (ITEM_ID, pa.string()),
        (TITLE, pa.string()),
        ("score", pa.float32()),
    ]
)


def recommend_file(
    recommender: Recommender,
    input_file: str | Path,
    output_file: str | Path,
    k: int = 10,
    batch_size: int | None = None,
    exclude_seen: bool = False,
    allowed: Sequence[str] | None = None,
    unknown_items: UnknownItems = "raise",
    part_users: int = PART_USERS,
    progress: bool = True,
) -> int:
    """Recommend to every row of a file: Parquet, CSV or JSON lines, by its ending.

    In a launch of several processes all must make the call and see one file system; each computes its share of the
    parts, and the main process puts the output together.

    Args:
        recommender: the model with its catalogue.
        input_file: column `items` (a list of item ids, oldest first; null counts as empty), and optionally `user_id`
            and, for a recommender with an assigner, `profile`. Other columns are ignored. In CSV blanks stand between
            the ids, or the list is JSON.
        output_file: ends with .parquet, .csv or .jsonl; one row a recommendation, users in the order of the input:
            `row` (of the input, from 0), `user_id` (null where the input has none), `rank` (from 1), `item_id`,
            `title`, `score` (log-probability).
        k: length of the lists.
        batch_size: users in one search; the recommender's where it is None.
        exclude_seen: leave out every item of the history.
        allowed: item ids that alone may be shown.
        unknown_items: `"raise"` at, or `"skip"`, items outside the catalogue; the whole file is checked first.
        part_users: users in one part, the work that a kill can cost each process.
        progress: show a progress bar with the time left.

    Returns:
        Number of users.

    Raises:
        InputError: a file or a column is missing or cannot be used, an unknown item, `k` out of range, or the parts of
            another call lie beside the output.
    """
    process = launched()
    source, output = Path(input_file), Path(output_file)
    _check_call(recommender, source, output, k, batch_size=batch_size, part_users=part_users)
    indices = None if allowed is None else recommender.item_sets(allowed, unknown_items, 0)
    if unknown_items != "skip":
        check_items(source, recommender.items[ITEM_ID], part_users)
    size = batch_size or recommender.batch_size
    options: dict[str, Any] = {"k": k, "batch_size": size, "exclude_seen": exclude_seen}
    options |= {"unknown_items": unknown_items, "part_users": part_users}
    parts = output.with_name(output.name + ".parts")
    about = options | {"made_from": _fingerprint(recommender, source, allowed)}
    _check_parts(parts, about)
    process.wait_for_everyone()
    if process.is_main_process:
        _open_parts(parts, about)
    process.wait_for_everyone()
    users = count_rows(source)
    paths = [parts / f"{number:06d}.parquet" for number in range(-(-users // part_users))]
    mine = set(share([path for path in paths if not path.is_file()]))
    process.wait_for_everyone()  # all have looked before one writes
    with ProgressBar(users, "recommending", "user", shown=progress and process.is_main_process) as bar:
        for number, requests in enumerate(read_requests(source, part_users, recommender.assigner is not None)):
            if paths[number] in mine:
                lists = recommender.rank(requests, k, exclude_seen, unknown_items, indices, size)
                _write(paths[number], parts, [_table(requests, lists, first_row=number * part_users)])
            bar.update(len(requests))
    process.wait_for_everyone()
    if process.is_main_process:
        _write_output(output, parts, paths)
        shutil.rmtree(parts)
    process.wait_for_everyone()
    return users


def _check_call(recommender: Recommender, source: Path, output: Path, k: int, **sizes: int | None) -> None:
    check_histories(source)
    check_output(output, source)
    if not 1 <= k <= recommender.search.num_beams:
        raise InputError(
            f"k: got {k}, expected 1 to num_beams={recommender.search.num_beams}; raise num_beams for longer lists"
        )
    for name, number in sizes.items():
        if number is not None and number < 1:
            raise InputError(f"{name}: got {number}, expected at least 1")
    if not output.parent.is_dir() or output.is_dir():
        raise InputError(f"{output}: cannot be written, its folder is missing or it is one; choose another file")


def _table(requests: Sequence[Request], lists: Sequence[Sequence[Recommendation]], first_row: int) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row, (request, ranking) in enumerate(zip(requests, lists, strict=True)):
        for rank, entry in enumerate(ranking, start=1):
            values = (first_row + row, request.user_id, rank, entry.item_id, entry.title, entry.score)
            for name, value in zip(SCHEMA.names, values, strict=True):
                columns[name].append(value)
    return pa.table(columns, schema=SCHEMA)


def _write(path: Path, work: Path, tables: Any) -> None:
    """Write whole or not at all.

    What is not whole lies in the folder of parts, under a name of this process: a worker that outlives its killed
    launch does not write into the file of the next one.
    """
    partial = work / f"{path.name}.{os.getpid()}.partial"
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    partial.replace(path)


def _write_output(output: Path, work: Path, parts: Sequence[Path]) -> None:
    """Puts the parts together, as what the ending of the output says."""
    if (kind := kind_of(output)) == "parquet":
        _write(output, work, (pq.read_table(path) for path in parts))
        return
    partial = work / f"{output.name}.{os.getpid()}.partial"
    with partial.open("wb") as file:
        if kind == "csv":
            pl.DataFrame(pl.from_arrow(SCHEMA.empty_table())).write_csv(file)
        for path in parts:
            frame = pl.read_parquet(path)
            if kind == "csv":
                frame.write_csv(file, include_header=False)
            else:
                frame.write_ndjson(file)
    partial.replace(output)


def _check_parts(parts: Path, settings: dict[str, Any]) -> None:
    about = parts / SETTINGS_FILE
    before = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else settings
    if before != settings:
        changed = ", ".join(name for name in settings if before.get(name) != settings[name])
        raise InputError(
            f"{parts}: holds the parts of another call (other {changed}); repeat that call to finish it, or remove it"
        )


def _open_parts(parts: Path, settings: dict[str, Any]) -> None:
    about = parts / SETTINGS_FILE
    if about.is_file():
        logger.info("%s: going on with %d parts", parts, len(list(parts.glob("*.parquet"))))
        return
    # Parts without settings are what a kill left of a folder that was being removed: nobody knows of which call.
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    partial = about.with_suffix(".partial")
    partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    partial.replace(about)


def _fingerprint(recommender: Recommender, source: Path, allowed: Sequence[str] | None) -> str:
    """Content hash of what the lists depend on: input, catalogue, prompts, search and model."""
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    search = recommender.search
    about: list[Any] = [
        search.widths,
        search.normalizer,
        recommender.prompt_builder.settings,
        sorted(allowed or ["*"]),
    ]
    about += [recommender.items[ITEM_ID].to_list(), recommender.assigner is not None]
    if recommender.history_cache is not None and recommender.history_cache.share:
        about.append(recommender.history_cache.settings)
    digest.update(json.dumps(about).encode())
    digest.update(search.trie.item_codes().cpu().numpy().tobytes())
    if recommender.users is not None:
        digest.update(json.dumps(recommender.users.to_dict(as_series=False)).encode())
    _digest_weights(digest, recommender.model)
    return digest.hexdigest()


def _digest_weights(digest: Any, model: PreTrainedModel) -> None:
    # Some numbers of every tensor: another training changes these too, and a large model is not read as a whole.
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 256)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + some.numpy().tobytes())
