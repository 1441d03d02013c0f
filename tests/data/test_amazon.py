import gzip
import json
import shutil
from pathlib import Path

import pytest

from align3gr.data import LogSource, find_files, leave_one_out, read_log
from align3gr.errors import InputError

# The published lines, with what they are known for: half stars as floats, missing texts, markup, unread pages.
REVIEWS = [
    {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "summary": "Great", "reviewText": "Rings &amp; rings",
     "unixReviewTime": 30, "helpful": [0, 0], "reviewTime": "02 28, 2014"},
    {"reviewerID": "A1", "asin": "B2", "overall": 2.0, "unixReviewTime": 10, "verified": True},
    {"reviewerID": "A2", "asin": "B3", "overall": 3.0, "reviewText": "So<br />so", "unixReviewTime": 20},
    {"reviewerID": "A2", "asin": "B9", "overall": 1.0, "unixReviewTime": 40},
]  # fmt: skip
META_2014 = [
    {"asin": "B1", "title": "Strat", "description": "It's a guitar.", "price": 9.5, "brand": "Fender",
     "categories": [["Instruments", "Guitars"], ["Instruments"]], "related": {"also_bought": ["B2"]}},
    {"asin": "B2", "categories": [["Instruments", "Amps"]], "brand": "Vox"},
    {"asin": "B3"},
    {"asin": "B4", "title": "Nobody's"},
]  # fmt: skip
META_2018 = [
    {"asin": "B1", "title": "Strat &amp; Case", "description": ["Six strings.", "<b>Maple</b>"],
     "brand": "by\n    Fender", "category": ["Instruments", "Guitars", "</span></span></span>", "Weight: 3 kg"],
     "feature": ["Maple neck"],
     "price": "$9.50"},
    {"asin": "B1", "title": "A second row"},
    {"asin": "B2", "title": "var aPageStart = (new Date()).getTime();", "category": ["Instruments", "Amps"],
     "brand": "Vox", "description": "", "feature": []},
    {"asin": "B3", "title": "", "category": [], "description": [], "brand": ""},
]  # fmt: skip
REVIEWS_2023 = [
    {"rating": 4.0, "title": "Fine", "text": "Works", "images": [], "asin": "V1", "parent_asin": "P1",
     "user_id": "AE", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True},
    {"rating": 1.0, "title": "Bad!", "text": "Broke", "images": [], "asin": "V2", "parent_asin": "P2",
     "user_id": "AE", "timestamp": 1588687728000, "helpful_vote": 3, "verified_purchase": False},
]  # fmt: skip
META_2023 = [
    {"main_category": "Musical Instruments", "title": "Pick", "features": ["Thin"], "description": ["Twelve picks"],
     "price": 3.99, "store": "Dunlop", "categories": [], "parent_asin": "P1", "details": {}},
    {"main_category": None, "title": "Tuner", "features": [], "description": [], "price": None, "store": None,
     "categories": ["Instruments", "Tuners"], "parent_asin": "P2"},
]  # fmt: skip


def lines(path: Path, records, style=json.dumps):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(style(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(name, source, **options):
    options = LogSource(**options)
    return read_log(name, find_files(name, source, options), options)


@pytest.fixture
def release_2014(tmp_path):
    lines(tmp_path / "reviews_Guitars_5.json.gz", REVIEWS)
    lines(tmp_path / "meta_Guitars.json.gz", META_2014, repr)
    return tmp_path


@pytest.fixture
def release_2018(tmp_path):
    lines(tmp_path / "Guitars_5.json.gz", REVIEWS)
    lines(tmp_path / "meta_Guitars.json.gz", META_2018)
    return tmp_path


def test_2014(release_2014):
    tables = read("amazon-2014", release_2014)
    # B9 has no metadata: its interaction is left out.
    expected = [("A1", "B1", 30, 5.0), ("A1", "B2", 10, 2.0), ("A2", "B3", 20, 3.0)]
    assert tables.interactions.rows() == expected
    assert tables.reviews.collect()["review"].to_list() == ["Great. Rings & rings", None, "So so"]
    assert tables.catalogue().rows() == [
        ("B1", "Strat", "Strat. Fender. Instruments, Guitars. It's a guitar."),
        ("B2", "Vox Amps", "Vox Amps. Vox. Instruments, Amps"),
        ("B3", "B3", "B3"),
    ]


def test_2018_and_items_without_metadata_by_their_ids(release_2018):
    tables = read("amazon-2018", release_2018, missing_items="id")
    assert [row[:3] for row in tables.interactions.rows()] == [
        ("A1", "B1", 30),
        ("A1", "B2", 10),
        ("A2", "B3", 20),
        ("A2", "B9", 40),
    ]
    assert tables.catalogue().rows() == [
        ("B1", "Strat & Case", "Strat & Case. Fender. Instruments, Guitars. Maple neck. Six strings. Maple"),
        ("B2", "Vox Amps", "Vox Amps. Vox. Instruments, Amps"),
        ("B3", "B3", "B3"),
        ("B9", "B9", "B9"),
    ]


def test_the_ratings_of_2018_name_the_item_first(release_2018):
    (release_2018 / "Guitars_5.json.gz").unlink()
    (release_2018 / "Guitars.csv").write_text("B1,A1,5.0,30\nB2,A1,2.0,10\n")
    tables = read("amazon-2018", release_2018)
    assert tables.interactions.rows() == [("A1", "B1", 30, 5.0), ("A1", "B2", 10, 2.0)]
    assert tables.reviews is None
    (release_2018 / "Guitars.csv").write_text("B1,A1,5.0,30\nB2,A1,2.0\n")
    with pytest.raises(InputError, match=r"Guitars\.csv: .*Row #2: Expected 4 columns, got 3"):
        read("amazon-2018", release_2018)
    (release_2018 / "Guitars.csv").write_text("B1,A1,5.0,30\nB2,A1,2.0,soon\n")
    with pytest.raises(InputError, match=r"Guitars\.csv: row 2 has timestamp 'soon'"):
        read("amazon-2018", release_2018)


def test_2023(tmp_path):
    lines(tmp_path / "Guitars.jsonl", REVIEWS_2023)
    lines(tmp_path / "meta_Guitars.jsonl.gz", META_2023)
    tables = read("amazon-2023", tmp_path)
    assert tables.interactions.rows() == [("AE", "P1", 1588687728923, 4.0), ("AE", "P2", 1588687728000, 1.0)]
    assert tables.reviews.collect()["review"].to_list() == ["Fine. Works", "Bad! Broke"]
    assert tables.catalogue().rows() == [
        ("P1", "Pick", "Pick. Dunlop. Musical Instruments. Thin. Twelve picks"),
        ("P2", "Tuner", "Tuner. Instruments, Tuners"),
    ]


def test_2023_from_the_hub(tmp_path, monkeypatch):
    """A stand-in for the Hub: the layout of the data set in a folder, behind the function that fetches a file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    lines(tmp_path / "hub" / "raw" / "review_categories" / "Guitars.jsonl", REVIEWS_2023)
    lines(tmp_path / "hub" / "raw" / "meta_categories" / "meta_Guitars.jsonl", META_2023)
    fetched = []

    def hf_hub_download(repository, name, repo_type):
        fetched.append((repository, name, repo_type))
        if repository == "nobody/nothing":
            raise LocalEntryNotFoundError("no connection")
        if not (tmp_path / "hub" / name).exists():
            raise EntryNotFoundError(name)
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    hub = "McAuley-Lab/Amazon-Reviews-2023"
    assert len(read("amazon-2023", hub, category="Guitars").interactions) == 2
    assert fetched == [
        (hub, "raw/review_categories/Guitars.jsonl", "dataset"),
        (hub, "raw/meta_categories/meta_Guitars.jsonl", "dataset"),
    ]
    # A copy of the data set in a folder is read in place.
    assert len(read("amazon-2023", tmp_path / "hub").interactions) == 2
    with pytest.raises(InputError, match=r"has no file raw/review_categories/Drums\.jsonl; correct category"):
        read("amazon-2023", hub, category="Drums")
    with pytest.raises(InputError, match=r"category: needed .* Musical_Instruments"):
        read("amazon-2023", hub)
    with pytest.raises(InputError, match=r"nobody/nothing: neither a folder here nor .*no connection"):
        read("amazon-2023", "nobody/nothing", category="Guitars")


def test_which_file_is_meant_must_be_clear(release_2018):
    shutil.copy(release_2018 / "Guitars_5.json.gz", release_2018 / "Guitars.json.gz")
    with pytest.raises(
        InputError, match=r"found \['Guitars_5.json.gz', 'Guitars.json.gz'\]; choose with interactions"
    ):
        read("amazon-2018", release_2018)
    tables = read("amazon-2018", release_2018, interactions="Guitars.json.gz")
    assert tables.interactions.height == 3
    with pytest.raises(InputError, match=r"interactions: .*Drums.json does not exist, .* holds \['Guitars"):
        read("amazon-2018", release_2018, interactions="Drums.json")
    lines(release_2018 / "meta_Drums.json", META_2018)
    with pytest.raises(InputError, match=r"holds the categories \['Drums', 'Guitars'\]; choose one with category"):
        read("amazon-2018", release_2018)
    with pytest.raises(InputError, match=r"expected one log of Drums_5.json, .* found none; fetch it"):
        read("amazon-2018", release_2018, category="Drums")


def test_metadata_is_missed_unless_it_is_declined(release_2014):
    (release_2014 / "meta_Guitars.json.gz").unlink()
    with pytest.raises(InputError, match=r"meta_Guitars\.json: no such file .* set items to none"):
        read("amazon-2014", release_2014)
    tables = read("amazon-2014", release_2014, items="none")
    assert tables.interactions.height == 4
    assert tables.catalogue().rows() == [(item, item, item) for item in ("B1", "B2", "B3", "B9")]


def test_metadata_of_something_else_is_refused(release_2014):
    lines(release_2014 / "meta_Guitars.json.gz", [{"asin": "X"}], repr)
    with pytest.raises(InputError, match=r"meta_Guitars.json.gz: has none of the 4 items of .*, such as 'B1'"):
        read("amazon-2014", release_2014)
    lines(release_2014 / "meta_Guitars.json.gz", [{"asin": "B1"}, {"title": "x"}], repr)
    with pytest.raises(InputError, match=r"meta_Guitars.json.gz: line 2 has no field 'asin'"):
        read("amazon-2014", release_2014)


def test_reviews_follow_the_train_interactions(tmp_path):
    """One user: B4 B1 B2 | B3 | B5 in time, in another order in the file, each with a review that names its item."""
    times = {"B1": 2, "B5": 9, "B4": 1, "B2": 3, "B3": 4}
    records = [
        {"reviewerID": "A1", "asin": item, "overall": 4.0, "reviewText": f"about {item}", "unixReviewTime": time}
        for item, time in times.items()
    ]
    del records[3]["reviewText"]
    lines(tmp_path / "Guitars.json", records)
    lines(tmp_path / "meta_Guitars.json", [{"asin": item, "title": item} for item in times])
    split = leave_one_out(read("amazon-2018", tmp_path), min_interactions=1)
    assert split.train["items"].to_list() == [["B4", "B1", "B2"]]
    assert split.reviews.collect().rows() == [("A1", 1, "about B1"), ("A1", 0, "about B4")]


def test_options_of_other_formats_are_refused(release_2014):
    with pytest.raises(InputError, match="columns: does not apply to format 'amazon-2014'"):
        read("amazon-2014", release_2014, columns='{"user_id": "u"}')
    with pytest.raises(InputError, match="category: does not apply to format 'lcrec'"):
        read("lcrec", release_2014, category="x")
