import numpy as np
import polars as pl
import pytest

from align3gr.encoders import Embeddings
from align3gr.errors import InputError


def test_embeddings_are_found_by_id_not_by_row(tmp_path):
    path = tmp_path / "items.parquet"
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    Embeddings(collaborative=values).save(path, "item_id", pl.Series(["a", "b", "c"]))
    loaded = Embeddings.load(path, "item_id", pl.Series(["c", "a"]))
    assert loaded.semantic is None and loaded.collaborative.tolist() == [[4, 5], [0, 1]]
    with pytest.raises(InputError, match="item_id 'd' has no vector"):
        Embeddings.load(path, "item_id", pl.Series(["a", "d"]))
    with pytest.raises(InputError, match="run the embed stage first"):
        Embeddings.load(tmp_path / "none.parquet", "item_id", pl.Series(["a"]))
