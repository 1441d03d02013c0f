import json

import numpy as np
import polars as pl
import pytest

from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.errors import InputError
from align3gr.scid import (
    load_codebook_sizes,
    load_codes,
    read_code_table,
    save_codebook_sizes,
    save_codes,
    save_index,
)
from tests.conftest import data_folder


def test_codes_come_back_in_the_order_asked_for(tmp_path):
    save_codes(tmp_path / "c.parquet", USER_ID, ["a", "b", "c"], np.array([[1, 2], [3, 4], [5, 6]]))
    assert load_codes(tmp_path / "c.parquet", USER_ID, pl.Series(["c", "a", "c"])).tolist() == [[5, 6], [1, 2], [5, 6]]
    table = read_code_table(tmp_path / "c.parquet", USER_ID)
    assert table.ids == ["a", "b", "c"] and table.codes.dtype == np.int64


def test_an_index_of_lcrec_is_read_and_written(tmp_path):
    index = {"7": ["<a_12>", "<b_3>"], "x": ["<a_0>", "<b_255>"]}
    (tmp_path / "Shop.index.json").write_text(json.dumps(index))
    table = read_code_table(tmp_path / "Shop.index.json")
    assert table.ids == ["7", "x"] and table.codes.tolist() == [[12, 3], [0, 255]]
    assert load_codes(tmp_path / "Shop.index.json", ITEM_ID, ["x"]).tolist() == [[0, 255]]
    save_index(tmp_path / "again.json", table.ids, table.codes)
    assert json.loads((tmp_path / "again.json").read_text()) == index


def test_integer_ids_and_fixed_width_columns_of_other_programs_are_read(tmp_path):
    codes = pl.Series("codes", [[1, 2], [3, 4]], dtype=pl.Array(pl.UInt8, 2))
    pl.DataFrame({ITEM_ID: [10, 20], "codes": codes, "title": ["A", "B"]}).write_parquet(tmp_path / "c.parquet")
    assert load_codes(tmp_path / "c.parquet", ITEM_ID, ["20"]).tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"1": ["<a_1>", "<b_2>"], "2": ["<a_1>"]}, r"item '2' has \['<a_1>'\], expected a list of 2 tokens"),
        ({"1": ["<a_1>", "<a_2>"]}, r"item '1' has '<a_2>' at level 1, expected a token like <b_12>"),
        ({"1": ["<i0_1>"]}, r"'<i0_1>' at level 0, expected a token like <a_12>"),
        ({"1": ["<a_-1>"]}, "'<a_-1>' at level 0"),
        ({"1": [5]}, "has 5 at level 0"),
        ({"1": "<a_1>"}, "expected a list"),
        ({"1": [], "2": ["<a_1>"]}, r"item '1' has \[\], expected a list of tokens"),
        ({"1": [], "2": []}, r"item '1' has \[\], expected a list of tokens"),
        ({"1": ["<a_1>"], "2": []}, r"item '2' has \[\], expected a list of tokens"),
        ({}, "with at least one item"),
        ([1], "expected {item"),
    ],
)
def test_an_index_of_another_form_is_refused(content, words, tmp_path):
    path = tmp_path / "Shop.index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as error:
        read_code_table(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_item_that_stands_twice_in_an_index_is_refused(tmp_path):
    (tmp_path / "Shop.index.json").write_text('{"1": ["<a_1>"], "2": ["<a_2>"], "1": ["<a_3>"]}')
    with pytest.raises(InputError, match=r"Shop\.index\.json: item '1' stands there twice"):
        read_code_table(tmp_path / "Shop.index.json")


@pytest.mark.parametrize("content", ["{}", "[]", "no", '{"item": [4], "user": 5}', '{"item": [4, "x"], "user": []}'])
def test_codebook_sizes_of_another_file_are_refused(content, tmp_path):
    (tmp_path / "codebooks.json").write_text(content)
    with pytest.raises(InputError, match=r"codebooks\.json: .*run the scid stage again") as error:
        load_codebook_sizes(tmp_path / "codebooks.json")
    assert "\n" not in str(error.value)
    save_codebook_sizes(tmp_path / "codebooks.json", [4, 8], [])
    assert load_codebook_sizes(tmp_path / "codebooks.json") == ([4, 8], [])


LISTS = {"codes": [[1, 2], [3, 4]]}


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ({ITEM_ID: ["a", "b"]}, "column 'codes' is missing, it has item_id"),
        (LISTS, "column 'item_id' is missing"),
        ({ITEM_ID: ["a", "a"], **LISTS}, "item_id 'a' is null or stands in two rows"),
        ({ITEM_ID: ["a", None], **LISTS}, "item_id None is null"),
        ({ITEM_ID: ["a", "b"], "codes": [[1, 2], [3]]}, r"rows of \[1, 2\] levels"),
        ({ITEM_ID: ["a", "b"], "codes": [[1, 2], None]}, r"rows of \[None, 2\] levels"),
        ({ITEM_ID: ["a", "b"], "codes": [[1, 2], [3, -4]]}, "a null or a negative number"),
        ({ITEM_ID: ["a", "b"], "codes": [[1, 2], [3, None]]}, "a null or a negative number"),
        ({ITEM_ID: ["a", "b"], "codes": [1, 2]}, "type Int64, expected lists of integers"),
        ({ITEM_ID: ["a", "b"], "codes": [["x"], ["y"]]}, "expected lists of integers"),
    ],
)
def test_a_parquet_table_of_another_form_is_refused(frame, words, tmp_path):
    pl.DataFrame(frame).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match=words):
        read_code_table(tmp_path / "c.parquet")


def test_files_that_are_none_and_unknown_ids_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet: not found"):
        load_codes(tmp_path / "none.parquet", ITEM_ID, [])
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_code_table(tmp_path / "c.parquet")
    (tmp_path / "c.json").write_text('{"1": ')
    with pytest.raises(InputError, match="not JSON"):
        read_code_table(tmp_path / "c.json")
    save_codes(tmp_path / "c.parquet", ITEM_ID, ["a"], np.array([[1]]))
    with pytest.raises(InputError, match=r"'q' has no codes \(2 of 3 have none\)"):
        load_codes(tmp_path / "c.parquet", ITEM_ID, ["a", "q", "r"])
    with pytest.raises(InputError, match="27 levels"):
        save_index(tmp_path / "i.json", ["a"], np.zeros((1, 27), dtype=int))


def test_the_published_codes_of_letter_on_yelp(tmp_path):
    path = data_folder("yelp") / "Yelp.index.json"
    table = read_code_table(path)
    assert table.codes.shape == (20033, 4) and table.codes.max(axis=0).tolist() == [255] * 4
    assert table.select(["0"]).tolist() == [[80, 235, 240, 54]]
    save_index(tmp_path / "again.json", table.ids, table.codes)
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())
