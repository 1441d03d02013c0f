"""Recommendations from a Parquet file of histories into a Parquet file, in parts that survive a kill.

`<output>.parts/` holds one file for each block of users, written under another name and renamed when it is whole, and
what they were made from. The same call goes on behind the last whole part. A part is always computed as a whole, so an
interrupted run and one that was not give the same bytes.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from align3gr.data.schema import ITEM_ID, ITEMS, PROFILE, TITLE, USER_ID
from align3gr.decoding.recommender import Recommender, UnknownItems
from align3gr.decoding.requests import Recommendation, Request
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

PART_USERS = 4096
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
    """Recommend to every row of a Parquet file.

    Args:
        recommender: the model with its catalogue.
        input_file: column `items` (a list of item ids, oldest first; null counts as empty), and optionally `user_id`
            and, for a recommender with an assigner, `profile`. Other columns are ignored.
        output_file: one row a recommendation, users in the order of the input: `row` (of the input, from 0), `user_id`
            (null where the input has none), `rank` (from 1), `item_id`, `title`, `score` (log-probability).
        k: length of the lists.
        batch_size: users in one search; the recommender's where it is None.
        exclude_seen: leave out every item of the history.
        allowed: item ids that alone may be shown.
        unknown_items: `"raise"` at, or `"skip"`, items outside the catalogue; the whole file is checked first.
        part_users: users in one part, the work that a kill can cost.
        progress: show a progress bar with the time left.

    Returns:
        Number of users.

    Raises:
        InputError: a file or a column is missing or cannot be used, an unknown item, `k` out of range, or the parts of
            another call lie beside the output.
    """
    source, output = Path(input_file), Path(output_file)
    check_histories(source)
    if not 1 <= k <= recommender.search.num_beams:
        raise InputError(
            f"k: got {k}, expected 1 to num_beams={recommender.search.num_beams}; raise num_beams for longer lists"
        )
    for name, number in (("batch_size", batch_size), ("part_users", part_users)):
        if number is not None and number < 1:
            raise InputError(f"{name}: got {number}, expected at least 1")
    if not output.parent.is_dir() or output.is_dir():
        raise InputError(f"{output}: cannot be written, its folder is missing or it is one; choose another file")
    indices = None if allowed is None else recommender.allowed_indices(allowed, unknown_items, 0)
    if unknown_items != "skip":
        _check_items(source, recommender, part_users)
    options: dict[str, Any] = {
        "k": k,
        "batch_size": batch_size or recommender.batch_size,
        "exclude_seen": exclude_seen,
    }
    options |= {"unknown_items": unknown_items, "part_users": part_users}
    parts = output.with_name(output.name + ".parts")
    _open_parts(parts, options | {"made_from": _fingerprint(recommender, source, allowed)})
    users, paths = pq.read_metadata(source).num_rows, []
    with tqdm(total=users, desc="recommending", unit="user", disable=not progress) as bar:
        for number, requests in enumerate(_requests(source, part_users, recommender.assigner is not None)):
            path = parts / f"{number:06d}.parquet"
            if not path.is_file():
                lists = recommender.rank(
                    requests, k, exclude_seen, unknown_items, indices, batch_size or recommender.batch_size
                )
                _write(path, [_table(requests, lists, first_row=number * part_users)])
            paths.append(path)
            bar.update(len(requests))
    _write(output, (pq.read_table(path) for path in paths))
    shutil.rmtree(parts)
    return users


def check_histories(path: str | Path) -> None:
    """Make sure that a file holds histories, without reading its rows.

    Raises:
        InputError: it is missing, not Parquet, or `items` is missing or no list of ids.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: not found; give a Parquet file with the column 'items'")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    if ITEMS not in schema.names:
        raise InputError(f"{path}: column 'items' is missing, it has {', '.join(schema.names)}; name the histories so")
    kind = schema.field(ITEMS).type
    inner = getattr(kind, "value_type", None)
    is_ids = inner is not None and (
        pa.types.is_integer(inner)
        or pa.types.is_string(inner)
        or pa.types.is_large_string(inner)
        or pa.types.is_string_view(inner)
    )
    if pa.types.is_dictionary(kind) or not is_ids:
        raise InputError(f"{path}: column 'items' has type {kind}, expected lists of item ids (strings or integers)")


def read_item_ids(path: str | Path) -> list[str]:
    """Item ids of a text file, one a line, or of the column `item_id` of a Parquet file.

    Raises:
        InputError: the file is missing, unreadable, or names no item.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: not found; give item ids, one a line, or Parquet with the column 'item_id'")
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
            if ITEM_ID not in frame.columns:
                raise InputError(f"{path}: column 'item_id' is missing, it has {', '.join(frame.columns)}")
            ids = frame[ITEM_ID].drop_nulls().cast(pl.String).to_list()
        else:
            ids = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not ids:
        raise InputError(f"{path}: names no item, so nothing could be recommended")
    return ids


def _blocks(path: Path, rows: int, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows in blocks of exactly `rows`, whatever the file's row groups are; ids as strings."""
    left: pl.DataFrame | None = None
    for batch in pq.ParquetFile(path).iter_batches(rows, columns=list(columns)):
        block = pl.DataFrame(pl.from_arrow(batch))
        left = block if left is None else pl.concat([left, block])
        while left.height >= rows:
            yield _canonical(left[:rows])
            left = left[rows:]
    if left is not None and left.height:
        yield _canonical(left)


def _canonical(block: pl.DataFrame) -> pl.DataFrame:
    texts = [pl.col(name).cast(pl.String) for name in block.columns if name != ITEMS]
    return block.with_columns(pl.col(ITEMS).cast(pl.List(pl.String)).fill_null([]), *texts)


def _requests(path: Path, rows: int, profiles: bool) -> Iterator[list[Request]]:
    known = pq.read_schema(path).names
    columns = [name for name in (ITEMS, USER_ID, PROFILE) if name in known and (name != PROFILE or profiles)]
    first = 0
    for block in _blocks(path, rows, columns):
        none = [None] * block.height
        users = block[USER_ID].to_list() if USER_ID in columns else none
        texts = block[PROFILE].to_list() if PROFILE in columns else none
        yield [
            Request(f"{path}: row {first + row}", *parts)
            for row, parts in enumerate(zip(block[ITEMS].to_list(), users, texts, strict=True))
        ]
        first += block.height


def _check_items(path: Path, recommender: Recommender, rows: int) -> None:
    known = recommender.items[ITEM_ID].implode()
    first = 0
    for block in _blocks(path, rows, [ITEMS]):
        lists = block[ITEMS]
        ids = lists.explode(empty_as_null=False)
        unknown = (~ids.is_in(known)).fill_null(True).arg_true()
        if len(unknown):
            at = int((lists.list.len().cum_sum() > unknown[0]).arg_max() or 0)
            raise InputError(
                f"{path}: row {first + at}, column 'items' names {ids[unknown[0]]!r}, which is not in the "
                f"catalogue of {recommender.items.height} items; correct it, or skip unknown items: "
                'unknown_items="skip", --unknown_items skip'
            )
        first += block.height


def _table(requests: Sequence[Request], lists: Sequence[Sequence[Recommendation]], first_row: int) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row, (request, ranking) in enumerate(zip(requests, lists, strict=True)):
        for rank, entry in enumerate(ranking, start=1):
            values = (first_row + row, request.user_id, rank, entry.item_id, entry.title, entry.score)
            for name, value in zip(SCHEMA.names, values, strict=True):
                columns[name].append(value)
    return pa.table(columns, schema=SCHEMA)


def _write(path: Path, tables: Any) -> None:
    """Write whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    partial.replace(path)


def _open_parts(parts: Path, settings: dict[str, Any]) -> None:
    about = parts / "settings.json"
    if not about.is_file():
        parts.mkdir(exist_ok=True)
        partial = about.with_suffix(".partial")
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        partial.replace(about)
        return
    before = json.loads(about.read_text(encoding="utf-8"))
    if before != settings:
        changed = ", ".join(name for name in settings if before.get(name) != settings[name])
        raise InputError(
            f"{parts}: holds the parts of another call (other {changed}); repeat that call to finish it, or remove it"
        )
    logger.info("%s: going on behind %d parts", parts, len(list(parts.glob("*.parquet"))))


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
