"""Files in, files out: the same lists as in memory, the same bytes after a kill, and one line for what is wrong."""

import os
import random
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from align3gr.decoding.files import recommend_file
from align3gr.decoding.history_files import read_item_ids
from align3gr.decoding.recommender import Recommender
from align3gr.errors import InputError

HISTORIES = [["b", "c"], ["a"], [], ["d", "e", "a"], ["f"], None, ["b"]]
USERS = ["u1", "stranger", "u2", "u1", None, "x", "u2"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "histories.parquet"
    # Row groups of three do not fall together with parts of two or four users.
    pl.DataFrame({"user_id": USERS, "items": HISTORIES}).write_parquet(path, row_group_size=3)
    return path


@pytest.mark.parametrize("part_users", [2, 4, 100])
def test_a_file_holds_the_lists_of_memory(recommender, source, tmp_path, part_users):
    output = tmp_path / "recs.parquet"
    options = {"k": 3, "exclude_seen": True, "allowed": ["a", "b", "c", "d"]}
    users = recommend_file(recommender, source, output, part_users=part_users, progress=False, **options)
    lists = recommender.recommend([history or [] for history in HISTORIES], USERS, **options)
    expected = [
        (row, USERS[row], rank, entry.item_id, entry.title)
        for row, ranking in enumerate(lists)
        for rank, entry in enumerate(ranking, start=1)
    ]
    frame = pl.read_parquet(output)
    assert users == 7 and frame.columns == ["row", "user_id", "rank", "item_id", "title", "score"]
    assert frame.drop("score").rows() == expected
    assert frame["score"].to_list() == pytest.approx([entry.score for ranking in lists for entry in ranking], abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["histories.parquet", "recs.parquet"]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(recommender, source, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    recommender.recommend_file(source, whole, k=3, part_users=2, progress=False)
    rank, parts = Recommender.rank, []

    def dies_at_the_third(self, requests, *args):
        parts.append(requests[0].source)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return rank(self, requests, *args)

    monkeypatch.setattr(Recommender, "rank", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        recommender.recommend_file(source, killed, k=3, part_users=2, progress=False)
    assert not killed.exists()
    (tmp_path / "killed.parquet.parts" / "000002.parquet.partial").write_bytes(b"half a part")
    with pytest.raises(InputError, match=r"killed\.parquet\.parts: holds the parts of another call \(other k\)"):
        recommender.recommend_file(source, killed, k=2, part_users=2, progress=False)
    recommender.recommend_file(source, killed, k=3, part_users=2, progress=False)
    assert [text.rsplit(" ", 1)[1] for text in parts] == ["0", "2", "4", "4", "6"]
    assert killed.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "killed.parquet.parts").exists()


KILLED = """
import sys
from align3gr import Recommender

model, source, output = sys.argv[1:]
Recommender.from_pretrained(model, device="cpu", num_beams=6).recommend_file(source, output, k=3, part_users=4)
"""


def kill(command, parts, sign, delay: float) -> bool:
    """Starts the command and kills it `delay` seconds after `sign` is seen below `parts`; False if it ended before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 180
    while process.poll() is None and not list(parts.glob(sign)):
        assert time.monotonic() < until
        time.sleep(0.0005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.long
def test_killed_at_any_moment_nothing_is_half_written_and_the_end_is_the_same(recommender, tmp_path):
    source, whole, output = (tmp_path / f"{name}.parquet" for name in ("in", "whole", "out"))
    parts = tmp_path / "out.parquet.parts"
    rng = random.Random(0)
    histories = [rng.choices("abcdef", k=rng.randrange(12)) for _ in range(1203)]
    pl.DataFrame({"items": histories, "user_id": [f"u{row % 3}" for row in range(1203)]}).write_parquet(source)
    recommender.save_pretrained(tmp_path / "model")
    recommender.recommend_file(source, whole, k=3, part_users=4, progress=False)
    expected = pl.read_parquet(whole)
    (tmp_path / "run.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "run.py", tmp_path / "model", source, output]
    # The beginning, random moments around random parts, the last parts, and the moment in which the output is written.
    moments = [("settings.json", 0.0)]
    moments += [
        (f"{rng.randrange(start, start + 40):06d}.parquet", rng.uniform(0, 0.04)) for start in range(5, 280, 55)
    ]
    moments += [("000299.parquet", 0.0), ("out.parquet.*.partial", 0.0)]
    found = []
    for sign, delay in moments:
        assert kill(command, parts, sign, delay), (sign, delay, found)
        assert not output.exists()
        done = sorted(parts.glob("*.parquet"))
        for path in done:  # each is whole, and what the undisturbed run has in its place
            first = 4 * int(path.stem)
            assert pl.read_parquet(path).equals(expected.filter(pl.col("row").is_between(first, first + 3)))
        found.append(len(done))
    assert found == sorted(found) and 0 < found[1] < found[3] < found[5] < 301 == found[-1]
    subprocess.run(command, check=True, env=os.environ | {"TQDM_DISABLE": "1"})
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.parquet",
        "model",
        "out.parquet",
        "run.py",
        "whole.parquet",
    ]


def test_what_a_kill_left_of_removed_parts_is_not_taken_for_parts(recommender, source, tmp_path):
    recommender.recommend_file(source, tmp_path / "three.parquet", k=3, part_users=4, progress=False)
    recommender.recommend_file(source, tmp_path / "two.parquet", k=2, part_users=4, progress=False)
    parts = tmp_path / "again.parquet.parts"
    parts.mkdir()
    # The settings were removed first: these lists are three items long.
    (tmp_path / "three.parquet").rename(parts / "000000.parquet")
    recommender.recommend_file(source, tmp_path / "again.parquet", k=2, part_users=4, progress=False)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_parts_of_another_model_or_input_are_not_mixed(recommender, source, tmp_path, monkeypatch):
    output = tmp_path / "recs.parquet"
    monkeypatch.setattr("align3gr.decoding.files._table", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        recommender.recommend_file(source, output, progress=False, k=3)
    recommender.model.lm_head.weight.data += 0.01
    with pytest.raises(InputError, match="other made_from"):
        recommender.recommend_file(source, output, progress=False, k=3)


def test_integer_ids_and_no_users(recommender, tmp_path):
    numbered = recommender.items.with_columns(item_id=pl.Series(range(6)))
    other = Recommender(recommender.model, recommender.tokenizer, numbered, num_beams=6)
    pl.DataFrame({"items": [[1, 2]]}).write_parquet(tmp_path / "in.parquet")
    other.recommend_file(tmp_path / "in.parquet", tmp_path / "out.parquet", k=2, progress=False)
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert frame["item_id"].to_list() == [entry.item_id for entry in other.recommend([["1", "2"]], k=2)[0]]
    assert frame["user_id"].to_list() == [None, None] and frame["row"].to_list() == [0, 0]
    pl.DataFrame({"items": []}, schema={"items": pl.List(pl.String)}).write_parquet(tmp_path / "in.parquet")
    assert other.recommend_file(tmp_path / "in.parquet", tmp_path / "none.parquet", k=2, progress=False) == 0
    assert pl.read_parquet(tmp_path / "none.parquet").shape == (0, 6)


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (pl.DataFrame({"history": [["a"]]}), {}, r"in\.parquet: column 'items' is missing, it has history"),
        (pl.DataFrame({"items": ["a b"]}), {}, "column 'items' has type .*, expected lists of item ids"),
        (pl.DataFrame({"items": [["a"], [], ["b", "zz"]]}), {}, r"in\.parquet: row 2, column 'items' names 'zz'"),
        (pl.DataFrame({"items": [["a"], ["b", None]]}), {}, r"in\.parquet: row 1, column 'items' names None"),
        (pl.DataFrame({"items": [["a"]]}), {"k": 7}, "k: got 7, expected 1 to num_beams=6; raise num_beams"),
        (pl.DataFrame({"items": [["a"]]}), {"batch_size": 0}, "batch_size: got 0"),
        (pl.DataFrame({"items": [["a"]]}), {"allowed": ["a", "yy"]}, "allowed names item 'yy'"),
    ],
)
def test_what_cannot_be_served_is_named_and_leaves_nothing(recommender, tmp_path, frame, options, message):
    frame.write_parquet(tmp_path / "in.parquet")
    with pytest.raises(InputError, match=message):
        recommender.recommend_file(
            tmp_path / "in.parquet",
            tmp_path / "out.parquet",
            **({"k": 2, "part_users": 2, "progress": False} | options),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_unknown_items_can_be_skipped(recommender, tmp_path):
    pl.DataFrame({"items": [["b", "zz", None]]}).write_parquet(tmp_path / "in.parquet")
    recommender.recommend_file(
        tmp_path / "in.parquet", tmp_path / "out.parquet", k=6, unknown_items="skip", progress=False
    )
    ids = pl.read_parquet(tmp_path / "out.parquet")["item_id"].to_list()
    assert ids == [entry.item_id for entry in recommender.recommend([["b"]], k=6)[0]]


def test_files_that_are_none_are_named(recommender, tmp_path):
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"text\.parquet: not a readable Parquet file"):
        recommender.recommend_file(tmp_path / "text.parquet", tmp_path / "out.parquet")
    with pytest.raises(InputError, match=r"no\.parquet: not found"):
        recommender.recommend_file(tmp_path / "no.parquet", tmp_path / "out.parquet")


def test_item_ids_from_text_and_parquet(tmp_path):
    (tmp_path / "items.txt").write_text("a\n\n b \n")
    pl.DataFrame({"item_id": [3, 4]}).write_parquet(tmp_path / "items.parquet")
    assert read_item_ids(tmp_path / "items.txt") == ["a", "b"]
    assert read_item_ids(tmp_path / "items.parquet") == ["3", "4"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.txt: names no item"):
        read_item_ids(tmp_path / "empty.txt")
    pl.DataFrame({"item": [3]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(InputError, match="column 'item_id' is missing, it has item"):
        read_item_ids(tmp_path / "items.parquet")
