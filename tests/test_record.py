"""What is kept of a study: ranks alone, from which the table of every user comes back, and pages that are finished."""

import numpy as np
import polars as pl
import pytest

from align3gr.data import Split
from align3gr.errors import InputError
from align3gr.evaluation import FullEvaluation
from align3gr.record import CellFiles, keep_cell, make_record, publish, read_ranks, restore_cell, write_ranks


@pytest.fixture(scope="module")
def judged(smoke_run):
    """Two systems on the test users, and the questions."""
    split = Split.load(smoke_run / "data")
    questions, evaluation = split.histories("test"), FullEvaluation(split)
    rng = np.random.default_rng(0)
    for name in ("one", "other"):
        lists = [rng.permutation(len(split.items)) for _ in range(len(questions))]
        unseen = [items[~np.isin(items, seen)] for items, seen in zip(lists, questions.histories, strict=True)]
        evaluation.add(name, questions, *(np.array([items[:20] for items in part]) for part in (lists, unseen)))
    return evaluation, questions


def test_the_table_of_every_user_comes_back_from_the_ranks(judged, tmp_path):
    evaluation, questions = judged
    per_user = evaluation.per_user()
    assert per_user["rank_allowed"].null_count() and per_user["rank_allowed"].max() > 10
    write_ranks(per_user, tmp_path / "ranks.parquet")
    assert read_ranks(tmp_path / "ranks.parquet", evaluation.asked(questions)).equals(per_user)
    kept = pl.read_parquet(tmp_path / "ranks.parquet")
    assert kept.columns == ["system", "rank_allowed", "rank_masked", "list_length"] and kept.dtypes[1] == pl.Int8


def test_ranks_of_other_questions_and_damaged_ones_are_not_taken(judged, tmp_path):
    evaluation, questions = judged
    write_ranks(evaluation.per_user(), tmp_path / "ranks.parquet")
    asked = evaluation.asked(questions)
    for other in (asked.reverse(), asked.head(5), asked.with_columns(pl.col("history_length") + 1)):
        assert read_ranks(tmp_path / "ranks.parquet", other) is None
    (tmp_path / "ranks.parquet").write_text("<<<<<<< HEAD")
    assert read_ranks(tmp_path / "ranks.parquet", asked) is None
    mixed = evaluation.per_user().tail(-1)  # of the first system one question less
    with pytest.raises(ValueError, match="its 2 systems answer different questions"):
        write_ranks(mixed, tmp_path / "ranks.parquet")


def test_a_cell_goes_into_the_record_and_comes_back(judged, tmp_path):
    evaluation, questions = judged
    cell = CellFiles(tmp_path / "cell.json", tmp_path / "per_user.parquet")
    cell.result.write_text("{}")
    evaluation.per_user().write_parquet(cell.ranks)
    kept = CellFiles(tmp_path / "record" / "deep" / "cell.json", tmp_path / "record" / "deep" / "ranks.parquet")
    keep_cell(cell, kept)
    again = CellFiles(tmp_path / "again" / "cell.json", tmp_path / "again" / "per_user.parquet")
    assert not restore_cell(kept, again, evaluation.asked(questions).reverse()) and not again.result.exists()
    assert restore_cell(kept, again, evaluation.asked(questions)) and again.exist
    assert again.result.read_text() == "{}" and pl.read_parquet(again.ranks).equals(evaluation.per_user())
    assert sorted(path.name for path in kept.result.parent.iterdir()) == ["cell.json", "ranks.parquet"]


def test_an_unfinished_page_does_not_replace_a_finished_one(tmp_path):
    record, names = tmp_path / "record", ("table.md", "table.csv", "figure.svg")

    def published(page, **files):
        for name, text in {"table.md": page, **files}.items():
            (tmp_path / name).write_text(text)
        publish(tmp_path, names, record)
        return (record / "table.md").read_text()

    assert published("Not finished: a.") == "Not finished: a."
    assert published("Not finished: b.", **{"figure.svg": "<svg/>"}) == "Not finished: b."
    assert (record / "figure.svg").is_file() and not (record / "table.csv").exists()
    (tmp_path / "figure.svg").unlink()
    assert published("all") == "all" and not (record / "figure.svg").exists()
    assert published("Not finished: c.", **{"table.csv": "c"}) == "all" and not (record / "table.csv").exists()
    assert published("all again") == "all again" and (record / "table.csv").read_text() == "c"


def test_a_record_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"record: cannot write .*file/below: .*; choose another folder"):
        make_record(tmp_path / "file" / "below")
