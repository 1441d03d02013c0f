import json
import os
from pathlib import Path

import pytest

from align3gr.data.movielens import read_movielens_100k
from align3gr.data.readers import read_lcrec, read_tables
from align3gr.data.splits import leave_one_out
from align3gr.errors import InputError

DATA = Path(os.environ.get("ALIGN3GR_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def needs(name):
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"{DATA / name} is absent; set ALIGN3GR_DATA")


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "Shop.inter.json").write_text(json.dumps({"0": [1, 0, 1], "1": [0]}))
    items = {"0": {"title": "Tea", "description": "Hot, Drinks"}, "1": {"title": "Cup", "description": ""}}
    (tmp_path / "Shop.item.json").write_text(json.dumps(items))
    return tmp_path


@pytest.fixture
def movies(tmp_path):
    (tmp_path / "u.data").write_text("2\t1\t5\t100\n1\t2\t3\t50\n")
    (tmp_path / "u.genre").write_text("unknown|0\nDrama|1\n\n")
    (tmp_path / "u.item").write_bytes("1|Amélie (2001)|25-Apr-2001||x|0|1\n2|Nothing||||1|0\n".encode("latin-1"))
    (tmp_path / "u.user").write_text("1|24|M|writer|85711\n2|53|F|none|94043\n")
    return tmp_path


def test_lcrec(shop):
    tables = read_lcrec(shop)
    assert tables.interactions.rows() == [("0", "1", 0), ("0", "0", 1), ("0", "1", 2), ("1", "0", 0)]
    assert tables.items.rows() == [("0", "Tea", "Tea. Hot, Drinks"), ("1", "Cup", "Cup")]
    assert tables.users.rows() == [("0", ""), ("1", "")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("Shop.inter.json", b'{"0": [1, 0', "not valid JSON at line 1 column 12"),
        ("Shop.inter.json", b"[1]", "JSON list, expected an object"),
        ("Shop.inter.json", b'{"0": []}', "user '0' has an empty history"),
        ("Shop.inter.json", b'{"0": 5}', "user '0' has a int, expected a list"),
        ("Shop.inter.json", b'{"0": [1], "5": [0, 9]}', "user '5' has item '9', which Shop.item.json does not have"),
        ("Shop.item.json", b'{"0": {"title": "\xff"}}', "byte 17 is not valid UTF-8"),
        ("Shop.item.json", b'{"0": {"title": "Tea"}}', "item '0' has no text 'description'"),
    ],
)
def test_bad_lcrec_files_are_named(shop, name, content, words):
    (shop / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_lcrec(shop)
    assert str(shop / name) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_missing_lcrec_files(shop, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_lcrec(tmp_path / "nowhere")
    (shop / "Shop.item.json").unlink()
    with pytest.raises(InputError, match=r"Shop\.item\.json: no such file"):
        read_lcrec(shop)
    (shop / "Other.inter.json").write_text("{}")
    with pytest.raises(InputError, match=r"expected exactly one file \*\.inter\.json, found"):
        read_lcrec(shop)


def test_movielens(movies):
    tables = read_movielens_100k(movies)
    assert tables.interactions.rows() == [("2", "1", 100, 5.0), ("1", "2", 50, 3.0)]
    assert tables.items.rows() == [
        ("1", "Amélie (2001)", "Amélie. Drama. 2001"),
        ("2", "Nothing", "Nothing. unknown"),
    ]
    assert tables.users.rows() == [
        ("1", "A man of 24 years, occupation: writer."),
        ("2", "A woman of 53 years, occupation: none."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("u.data", "1\t2\t3\t4\n1\t2\t3\n", "line 2 has 3 columns, expected 4"),
        ("u.data", "1\t2\tgood\t4\n", "line 1 has rating 'good'"),
        ("u.data", "1\t2\t3\tnow\n", "line 1 has timestamp 'now'"),
        ("u.item", "1|A|||x|0\n", "line 1 has 6 columns, expected 7"),
        ("u.user", "1|24|X|writer|85711\n", "line 1 has gender 'X'"),
        ("u.user", "1|old|M|writer|85711\n", "line 1 has age 'old'"),
        ("u.genre", "Drama|1\n", "must be 0 to 0"),
    ],
)
def test_bad_movielens_lines_are_named(movies, name, content, words):
    (movies / name).write_text(content)
    with pytest.raises(InputError) as error:
        read_movielens_100k(movies)
    assert str(error.value).startswith(f"{movies / name}: ") and words in str(error.value)


def test_a_missing_movielens_file_is_named(movies):
    (movies / "u.user").unlink()
    with pytest.raises(InputError, match=r"u\.user: no such file"):
        read_movielens_100k(movies)


def test_canonical_tables(shop, tmp_path):
    read_lcrec(shop).save(tmp_path / "tables")
    assert read_tables(tmp_path / "tables").interactions.height == 4


@needs("yelp")
def test_published_yelp():
    split = leave_one_out(read_lcrec(DATA / "yelp"))
    assert (split.users.height, split.items.height) == (30431, 20033)
    assert split.statistics["interactions"] == 316354
    assert split.statistics["removed_interactions"] == 0
    test = split.histories("test")
    # The third user of the file is [61, 62, 63, 64, 65, 66, 67].
    assert test.histories[2].tolist() == [61, 62, 63, 64, 65, 66] and test.targets[2] == 67


@needs("ml-100k")
def test_published_movielens():
    tables = read_movielens_100k(DATA / "ml-100k")
    assert (tables.interactions.height, tables.items.height, tables.users.height) == (100000, 1682, 943)
    split = leave_one_out(tables, min_interactions=0)
    assert split.statistics["users_with_tied_last_timestamp"] == 415
    assert split.items["text"][0] == "Toy Story. Animation, Children's, Comedy. 1995"
    ratings = split.histories("test").ratings
    assert 0.4 < (ratings <= 3).mean() < 0.6
