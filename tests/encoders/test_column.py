import logging

import numpy as np
import polars as pl
import pytest

from align3gr.encoders import Embeddings, load_vectors
from align3gr.errors import InputError

IDS = pl.Series(["7", "8", "9"])


def write(path, **columns):
    pl.DataFrame(columns).write_parquet(path)
    return path


def test_vectors_are_joined_by_id_and_missing_ones_are_zero_and_counted(tmp_path, caplog):
    path = write(tmp_path / "v.parquet", item_id=[9, 1, 7], vector=[[1, 2], [3, 4], [5, 6]])
    with caplog.at_level(logging.INFO):
        vectors = load_vectors(path, "item_id", IDS)
    assert vectors.tolist() == [[5, 6], [0, 0], [1, 2]] and vectors.dtype == np.float32
    assert "1 of 3 ids have no vector" in caplog.text


def test_a_runs_own_table_names_its_kinds(tmp_path):
    Embeddings(np.ones((3, 2)), np.zeros((3, 4)) + 5).save(tmp_path / "v.parquet", "item_id", IDS)
    vectors = load_vectors(tmp_path / "v.parquet", "item_id", IDS, ("collaborative", "vector"))
    assert vectors.tolist() == [[5] * 4] * 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["7"], "vector": [[1.0]]}, "column 'item_id' is missing, it has id, vector"),
        ({"item_id": ["7"], "values": [[1.0]]}, "column 'vector' is missing, it has item_id, values"),
        ({"item_id": ["7"], "vector": [1.0]}, "column 'vector' has type Float64, expected lists"),
        ({"item_id": ["7"], "vector": [["a"]]}, "column 'vector' has type .*, expected lists of numbers"),
        ({"item_id": ["7", "8", "9"], "vector": [[1.0, 2], [1.0, 2], [1.0]]}, "'9' has a vector of 1 numbers.* 2"),
        ({"item_id": ["7", "7"], "vector": [[1.0], [2.0]]}, "item_id '7' has more than one vector"),
        ({"item_id": ["7"], "vector": [[float("nan")]]}, "holds a null, NaN or infinity"),
        ({"item_id": ["7"], "vector": [[1.0, None]]}, "holds a null, NaN or infinity"),
        ({"item_id": ["x"], "vector": [[1.0]]}, "none of the 3 ids has a vector"),
        ({"item_id": ["7"], "vector": pl.Series([[]], dtype=pl.List(pl.Float32))}, "holds no vector"),
    ],
)
def test_wrong_tables_are_named(tmp_path, columns, message):
    with pytest.raises(InputError, match=message):
        load_vectors(write(tmp_path / "v.parquet", **columns), "item_id", IDS)


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match="not found"):
        load_vectors(tmp_path / "v.parquet", "item_id", IDS)
    (tmp_path / "v.parquet").write_text("item_id,vector")
    with pytest.raises(InputError, match="no readable Parquet file"):
        load_vectors(tmp_path / "v.parquet", "item_id", IDS)
