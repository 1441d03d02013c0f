"""Rows of token ids and labels as a `Dataset` in memory."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

IGNORE = -100
BRANCH_STARTS, BRANCH_SEEN = "branch_starts", "branch_seen"  # columns of rows with branches, see `tree_rows`
ROWS_A_CHUNK = 10_000


def plain_row(*parts: np.ndarray | list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Input ids and labels of parts in a row, flattened; the last part is the response and carries the loss."""
    input_ids = np.concatenate([np.asarray(part, np.int64).ravel() for part in parts])
    labels = input_ids.copy()
    labels[: len(labels) - np.size(parts[-1])] = IGNORE
    return input_ids, labels


def dataset_of(rows: Iterator[tuple[np.ndarray, ...]], names: Sequence[str]) -> Dataset:
    """Rows of integer arrays under these column names, without a Python list of them all."""
    schema = pa.schema([(name, pa.list_(pa.int64())) for name in names])
    tables = [schema.empty_table()]
    while chunk := list(islice(rows, ROWS_A_CHUNK)):
        columns = []
        for arrays in zip(*chunk, strict=True):
            offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
            columns.append(pa.ListArray.from_arrays(offsets, np.concatenate(arrays)))
        tables.append(pa.Table.from_arrays(columns, schema=schema))
    return Dataset(InMemoryTable(pa.concat_tables(tables)))
