import json

import pytest

from align3gr.data import LogSource, find_files, read_log
from align3gr.errors import InputError

REVIEWS = [
    {"review_id": "r1", "user_id": "u1", "business_id": "b1", "stars": 4.0, "useful": 0, "funny": 0, "cool": 0,
     "text": "Good\n\nfood", "date": "1970-01-01 00:00:02"},
    {"review_id": "r2", "user_id": "u1", "business_id": "b2", "stars": 1.0, "text": "", "date": "1970-01-02"},
]  # fmt: skip
BUSINESSES = [
    {"business_id": "b1", "name": "Joe's &amp; Sons", "city": "Reno", "state": "NV", "stars": 4.5,
     "categories": "Pizza, Bars, Pizza", "is_open": 1},
    {"business_id": "b2", "name": "", "city": "", "categories": None},
    {"business_id": "b3", "name": "Nobody's", "city": "Reno", "categories": "Bars"},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name, records in (("review", REVIEWS), ("business", BUSINESSES)):
        content = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"yelp_academic_dataset_{name}.json").write_text(content)
    return tmp_path


def read(folder, **options):
    options = LogSource(**options)
    return read_log("yelp", find_files("yelp", folder, options), options)


def test_the_academic_dataset(folder):
    tables = read(folder)
    assert tables.interactions.rows() == [("u1", "b1", 2_000_000, 4.0), ("u1", "b2", 86_400_000_000, 1.0)]
    assert tables.reviews.collect()["review"].to_list() == ["Good food", None]
    assert tables.catalogue().rows() == [
        ("b1", "Joe's & Sons", "Joe's & Sons. Pizza, Bars. Reno"),
        ("b2", "b2", "b2"),
    ]


def test_what_is_wrong_is_named(folder):
    path = folder / "yelp_academic_dataset_review.json"
    path.write_text(path.read_text() + json.dumps(REVIEWS[0] | {"date": "soon"}) + "\n")
    with pytest.raises(InputError, match=r"review\.json: line 3 has date 'soon', expected a whole number or an ISO"):
        read(folder)
    (folder / "yelp_academic_dataset_business.json").unlink()
    with pytest.raises(InputError, match=r"items: .*business\.json does not exist"):
        read(folder)
    path.write_text(json.dumps(REVIEWS[0]) + "\n")
    assert read(folder, items="none").catalogue().rows() == [("b1", "b1", "b1")]
