import numpy as np
import polars as pl
import pytest

from align3gr.data import Split
from align3gr.errors import InputError
from align3gr.scid import category_codes, item_categories


def items(*texts):
    return pl.DataFrame({"title": [text.partition(".")[0] for text in texts], "text": texts})


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Joe's", "Joe's. Diners, Greek", ["Diners", "Greek"]),
        ("Joe's", "Joe's. Greek, Diners, Greek. Phoenix", ["Greek", "Diners"]),
        ("Mr. Pop (1995)", "Mr. Pop. Drama, War. 1995", ["Drama", "War"]),
        ("Joe's", "Joe's", []),
        ("Joe's", "Joe's. Greek.", ["Greek"]),
        ("A title that is not there", "Something. Greek, Pizza", ["Greek", "Pizza"]),
    ],
)
def test_categories_stand_behind_the_title(title, text, expected):
    assert item_categories(title, text) == expected


def test_the_wider_category_comes_first_whatever_the_order_of_the_text():
    # Food 4 times, Pizza 2, Bars 2 (Pizza is named first), Wine 1.
    table = items("a. Pizza, Food", "b. Food, Bars", "c. Food, Pizza", "d. Wine, Bars, Food", "e. Shops", "f")
    codes = category_codes(table, 3)
    # Level 1: Food 0 (4 items), Shops 1, nothing 2. Level 2: Pizza 0, Bars 1, nothing 2. Level 3: Wine 0, nothing 1.
    assert codes.tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 1, 0], [1, 2, 1], [2, 2, 1]]
    assert category_codes(table, 1).tolist() == [[0], [0], [0], [0], [1], [2]]
    assert category_codes(table, 9).shape == (6, 3)


def test_a_tree_of_categories_keeps_its_order():
    # Each item names its path: no category is rarer than one below it, ties keep the order of the text.
    table = items("a. Music, Guitars, Electric", "b. Music, Guitars, Acoustic", "c. Music, Drums, Snares")
    codes = category_codes(table, 3)
    assert codes[:, 0].tolist() == [0, 0, 0] and codes[:, 1].tolist() == [0, 0, 1]
    assert len(np.unique(codes, axis=0)) == 3


def test_what_cannot_be_coded_is_refused():
    with pytest.raises(InputError, match="category_levels: got 0"):
        category_codes(items("a. Food"), 0)
    with pytest.raises(InputError, match="no item text names categories"):
        category_codes(items("a", "b"), 2)


def test_the_market_names_category_and_brand(run_stage, tmp_path):
    run_stage("prepare", tmp_path)
    table = Split.load(tmp_path / "data").items
    codes = category_codes(table, 2)
    named = [text.split(". ")[1].split(", ") for text in table["text"]]
    assert len(np.unique(codes, axis=0)) == len({frozenset(pair) for pair in named})
