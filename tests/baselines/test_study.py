import dataclasses
import json
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from align3gr.baselines import ItemKNN, Study, StudySettings, systems
from align3gr.baselines.systems import SYSTEMS, draw_trials
from align3gr.baselines.tables import tuning_table
from align3gr.cli.results import results_page
from align3gr.data import Split
from align3gr.errors import InputError
from align3gr.evaluation import compare, three_columns
from tests.conftest import ROOT, SMOKE

pytest.importorskip("implicit")
pytest.importorskip("torch_geometric")

INPUTS = {"train.parquet": "a", "validation.parquet": "b", "test.parquet": "c"}


@pytest.fixture(scope="module")
def market(tmp_path_factory, run_stage):
    """The folder of prepared data of the smoke market."""
    run_dir = tmp_path_factory.mktemp("market")
    run_stage("prepare", run_dir)
    return run_dir / "data"


@pytest.fixture(scope="module")
def split(market):
    return Split.load(market)


@pytest.fixture(scope="module")
def finished(market, tmp_path_factory, run_stage):
    """A finished study of every system. Read only."""
    run_dir = tmp_path_factory.mktemp("study")
    run_stage("baselines", run_dir, data=market, published="yelp")
    return run_dir


def quick(**options) -> StudySettings:
    values = {"systems": ["popularity", "item-kNN", "MF"], "trials": 3, "seeds": [1, 2], "k": 10}
    return StudySettings(**values | options)


def test_the_tables_have_every_system_beside_the_published_rows(finished):
    rows = json.loads((finished / "evaluation" / "results.json").read_text())
    assert list(rows) == list(SYSTEMS)
    for name, row in rows.items():
        assert 0 < row["seen_allowed"]["ndcg@10"] <= row["seen_allowed"]["recall@10"] <= 1, name
        assert row["seeds"] == ([1, 2] if SYSTEMS[name].seeded else [0]), name
    page = (finished / "evaluation" / "results.md").read_text()
    assert "Not finished" not in page and "Published discriminative baselines mask seen items" in page
    assert "| *TIGER, published* | 0.0253 | 0.0407 | 0.0164 | 0.0213 | - | - |" in page
    assert "| *SASRec, published* | - | - | - | - | 0.0183 | 0.0296 | 0.0116 | 0.0152 |" in page
    # The lists of the two-tower retriever are longer than those of the others.
    assert "| R@100 | masked R@100 |" in page and ("recall@100" in rows["MF"]["seen_masked"]) is False
    two_tower = rows["two-tower"]["seen_masked"]
    assert 0 < two_tower["recall@10"] < two_tower["recall@100"] <= 1
    assert "validation by the mean ndcg@10 of seen_allowed and seen_masked: at most 2 settings" in page


def test_means_are_those_of_the_ranks_of_every_user(finished):
    row = json.loads((finished / "evaluation" / "results.json").read_text())["SASRec"]
    ranks = pl.read_parquet(finished / "evaluation" / "per_user.parquet")
    names = ["popularity", "history, latest first", "item-kNN", "history, then item-kNN"]
    names += [f"{name}, seed {seed}" for name, system in SYSTEMS.items() if system.seeded for seed in (1, 2)]
    assert set(ranks["system"]) == set(names)
    for column, rank in (("seen_allowed", "rank_allowed"), ("seen_masked", "rank_masked")):
        recalls = [
            (ranks.filter(pl.col("system") == f"SASRec, seed {seed}")[rank] <= 10).fill_null(False).mean()
            for seed in (1, 2)
        ]
        assert row[column]["recall@10"] == pytest.approx(np.mean(recalls))
        assert row["sd"][column]["recall@10"] == pytest.approx(abs(recalls[0] - recalls[1]) / 2**0.5)
    test = compare(finished, finished, "SASRec, seed 1", "MF, seed 2", column="seen_masked")
    assert test.users == 200 and 0 <= test.p_value <= 1


def test_a_second_run_computes_nothing(finished, market, run_stage, capsys):
    cells = {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}
    table = (finished / "evaluation" / "results.md").read_text()
    run_stage("baselines", finished, data=market, published="yelp")
    assert "0 fits computed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()} == cells
    assert (finished / "evaluation" / "results.md").read_text() == table


def test_results_joins_baselines_with_runs(finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "align3gr.cli", "results", str(finished), "--output", str(tmp_path / "r.md")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.md").read_text()
    assert f"## {finished.name}" in page and "200 users" in page and "| LightGCN |" in page and "implicit" in page


def test_a_record_holds_the_tables_and_spares_another_machine_the_fits(market, tmp_path, run_stage, capsys):
    record = tmp_path / "record"
    options = {"data": market, "systems": ["popularity", "item-kNN"], "record": record}
    run_stage("baselines", tmp_path / "one", **options)
    assert "0 fits computed" not in capsys.readouterr().out
    for path in ("evaluation/results.md", "evaluation/results.json"):
        assert (record / path).read_bytes() == (tmp_path / "one" / path).read_bytes()
    assert sorted(path.name for path in (record / "evaluation").iterdir()) == [
        "manifest.json",
        "results.json",
        "results.md",
    ]
    assert str(tmp_path) not in "".join(path.read_text() for path in record.rglob("*.[jm][sd]*"))
    run_stage("baselines", tmp_path / "two", **options)
    assert "0 fits computed" in capsys.readouterr().out
    tables = [pl.read_parquet(tmp_path / name / "evaluation" / "per_user.parquet") for name in ("one", "two")]
    assert tables[0].equals(tables[1])
    page = results_page([record], tmp_path)
    assert "200 users" in page and "| item-kNN |" in page and "numpy" in page


def test_a_killed_study_keeps_its_cells_and_goes_on(market, tmp_path, finished, run_stage):
    command = [sys.executable, str(ROOT / "recipes" / "baselines.py"), "--config", str(SMOKE / "baselines.yaml")]
    chosen = ["item-kNN", "MF", "SASRec"]
    command += ["--run_dir", str(tmp_path), "--data", str(market), "--systems", *chosen]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("cells/*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*.json")}
    assert 3 <= len(kept) < 3 * 2 + 1 + 2 + 2
    # What a kill in the middle of a write leaves behind is no cell.
    (tmp_path / "cells" / "MF-trial-0123456789ab.tmp").write_text("{")
    run_stage("baselines", tmp_path, data=market, systems=chosen)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    results = [json.loads((run / "evaluation" / "results.json").read_text()) for run in (tmp_path, finished)]
    for rows in results:
        for row in rows.values():
            del row["tuning"]["tuning_seconds"]
    assert results[0] == {name: results[1][name] for name in chosen}


def test_an_unfinished_study_says_what_is_missing(split, tmp_path):
    study = Study(split, INPUTS, quick(), tmp_path)
    assert study.missing()[0] == "popularity: 0 of at most 3 trials done, no final run"
    said = []

    def interrupt():
        said.append(study.missing())
        if study.computed == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(interrupt)
    # 1 + 3 + 3 trials; then the first seed of popularity and item-kNN.
    assert said[4][1:] == ["item-kNN: final runs of seed 0", "MF: 1 of at most 3 trials done, no final run"]
    assert study.missing() == ["MF: final runs of seed 1, 2"]
    again = Study(split, INPUTS, quick(), tmp_path)
    again.run()
    assert again.computed == 2 and again.missing() == []


def test_systems_that_do_not_run_now_stand_in_the_tables_as_far_as_they_are(market, tmp_path, run_stage):
    options = {"data": market, "systems": ["popularity", "item-kNN"], "record": tmp_path / "record"}
    run_stage("baselines", tmp_path / "run", **options, only=["popularity"])
    page = (tmp_path / "record" / "evaluation" / "results.md").read_text()
    assert "| popularity |" in page and "Missing: item-kNN" in page and "| item-kNN |" not in page
    run_stage("baselines", tmp_path / "run", **options, only=["item-kNN"])
    page = (tmp_path / "record" / "evaluation" / "results.md").read_text()
    assert "| popularity |" in page and "| item-kNN |" in page and "Missing" not in page
    manifest = json.loads((tmp_path / "record" / "evaluation" / "manifest.json").read_text())
    assert "only" not in manifest["settings"]


def test_a_damaged_cell_is_computed_again(split, tmp_path):
    Study(split, INPUTS, quick(systems=["item-kNN"]), tmp_path).run()
    next(tmp_path.glob("item-kNN-trial-*.json")).write_text("{")
    next(tmp_path.glob("item-kNN-final-*.parquet")).unlink()
    study = Study(split, INPUTS, quick(systems=["item-kNN"]), tmp_path)
    study.run()
    assert study.computed == 2 and study.missing() == []


def test_fits_of_the_record_are_found_on_another_machine_and_not_computed(split, tmp_path):
    record = tmp_path / "record"
    first = Study(split, INPUTS, quick(), tmp_path / "one", record=record)
    first.run()
    assert {path.name for path in record.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    second = Study(split, INPUTS, quick(seeds=[1, 2, 3]), tmp_path / "two", record=record)
    assert second.missing() == ["MF: final runs of seed 3"]
    second.run()
    assert second.computed == 1
    again = Study(split, INPUTS, quick(seeds=[1, 2, 3]), tmp_path / "three", record=record)
    again.run()
    assert again.computed == 0 and again.per_user().equals(second.per_user())
    assert again.per_user().filter(pl.col("system") != "MF, seed 3").equals(first.per_user())
    # What a study has and its record lacks is copied there; what was damaged in it is computed again.
    for path in record.iterdir():
        path.unlink()
    next((tmp_path / "one").glob("item-kNN-final-*.parquet")).unlink()
    third = Study(split, INPUTS, quick(), tmp_path / "one", record=record)
    third.run()
    assert third.computed == 1 and len(list(record.iterdir())) == len(list((tmp_path / "one").iterdir()))


def test_a_folder_that_cannot_be_made_is_named(split, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run_dir: cannot write .*file/cells"):
        Study(split, INPUTS, quick(), tmp_path / "file" / "cells").run()


def test_rows_are_those_of_the_evaluator(split, tmp_path):
    study = Study(split, INPUTS, quick(systems=["item-kNN"], trials=1), tmp_path)
    study.run()
    questions = split.histories("test")
    model = ItemKNN().fit(split.train_sequences(), questions.num_items)
    lists = [model.rank(questions.histories, 10, exclude_seen=seen) for seen in (False, True)]
    expected = three_columns(*lists, questions.targets, questions.histories, (5, 10), questions.ratings)
    got = study.final_run("item-kNN", 0)["results"]
    for column, metrics in expected.items():
        assert {name: got[column][name] for name in metrics} == metrics, column


def test_the_best_trial_on_validation_is_chosen(split, tmp_path):
    study = Study(split, INPUTS, quick(systems=["item-kNN"], trials=16), tmp_path)
    study.run()
    trials = study.trials("item-kNN")
    assert len(trials) == 16
    questions = split.histories("validation")
    values = []
    for cell in trials:
        model = ItemKNN(**cell["setting"]).fit(split.train_sequences(), questions.num_items)
        lists = [model.rank(questions.histories, 10, exclude_seen=seen) for seen in (False, True)]
        columns = three_columns(*lists, questions.targets, questions.histories, (10,))
        values.append((columns["seen_allowed"]["ndcg@10"] + columns["seen_masked"]["ndcg@10"]) / 2)
    assert [cell["value"] for cell in trials] == pytest.approx(values)
    assert study.chosen("item-kNN") == trials[int(np.argmax(values))]


def test_no_trial_begins_after_the_seconds(split, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr("align3gr.baselines.study.time.process_time", lambda: next(clock))
    study = Study(split, INPUTS, quick(systems=["MF"], trials=6, tuning_seconds=10), tmp_path)
    study.run()
    # Each trial asks the clock three times: it takes 8 seconds; the third would begin at 16.
    assert [cell["seconds"] for cell in study.trials("MF")] == [8, 8]
    assert study.missing() == []


def test_cells_depend_on_what_they_see(split, tmp_path):
    Study(split, INPUTS, quick(), tmp_path).run()

    def computed(inputs=INPUTS, **options) -> int:
        study = Study(split, inputs, quick(**options), tmp_path)
        study.run()
        return study.computed

    assert computed() == 0
    assert computed(seeds=[1, 2, 5]) == 1
    assert computed(max_epochs=7) == 0  # none of these trains in epochs
    assert computed(k=20) == 1 + 1 + 2
    # Other test targets change no trial; other validation targets change everything.
    assert computed(inputs=INPUTS | {"test.parquet": "other"}) == 1 + 1 + 2
    assert computed(inputs=INPUTS | {"validation.parquet": "other"}) == (1 + 3 + 3) + (1 + 1 + 2)
    assert computed(select_by="recall@10") == (1 + 3 + 3) + (1 + 1 + 2)


def test_lists_are_as_long_as_a_system_needs_at_least(split, tmp_path):
    for k in (10, 20, 120):
        options = {"trials": 1, "seeds": [1], "max_epochs": 1}
        study = Study(split, INPUTS, quick(systems=["two-tower"], k=k, **options), tmp_path)
        study.run()
        assert study.per_user()["list_length"].unique().to_list() == [max(k, 100)]
        # Lists that are longer anyway are the same final run.
        assert study.computed == {10: 2, 20: 0, 120: 1}[k]


@pytest.mark.parametrize("system", ["SASRec", "two-tower"])
def test_test_targets_change_no_fit(split, tmp_path, system):
    permuted = dataclasses.replace(
        split, test=split.test.with_columns(pl.Series("item_id", split.test["item_id"].to_numpy()[::-1]))
    )
    curves = []
    for number, data in enumerate((split, permuted)):
        settings = quick(systems=[system], trials=1, seeds=[1], max_epochs=2)
        study = Study(data, INPUTS, settings, tmp_path / str(number))
        study.run()
        curves.append([cell["curve"] for cell in (*study.trials(system), study.final_run(system, 1))])
    assert curves[0] == curves[1]


def test_no_trials_take_the_default_setting_and_say_so(split, tmp_path):
    study = Study(split, INPUTS, quick(systems=["MF"], trials=0, seeds=[1]), tmp_path)
    study.run()
    assert study.computed == 1 and study.missing() == []
    setting = {name: values[0] for name, values in SYSTEMS["MF"].space.items()}
    final = study.final_run("MF", 1)
    assert final["setting"] == setting and study.chosen("MF") == {"setting": setting, "value": None}
    table = tuning_table({"MF": {"chosen": study.chosen("MF"), "trials": 0, "tuning_seconds": 0, "finals": [final]}})
    assert "| 0 | 0 | - | - |" in table.splitlines()[2]
    # A study that is tuned later takes the run up.
    tuned = Study(split, INPUTS, quick(systems=["MF"], trials=1, seeds=[1]), tmp_path)
    tuned.run()
    assert tuned.computed == 1 and tuned.final_run("MF", 1) == final


def test_trials_are_the_defaults_and_then_others_of_the_grid():
    space = SYSTEMS["MF"].space
    drawn = draw_trials(space, 1000)
    assert drawn[0] == {name: values[0] for name, values in space.items()}
    assert len({json.dumps(setting) for setting in drawn}) == len(drawn) == np.prod([len(v) for v in space.values()])
    assert draw_trials(space, 5) == drawn[:5] != draw_trials(space, 5, seed=1)
    assert draw_trials(SYSTEMS["popularity"].space, 3) == [{}]


@pytest.mark.parametrize("name", [name for name, system in systems.SYSTEMS.items() if system.space])
def test_every_value_of_a_space_is_accepted(name):
    system = SYSTEMS[name]
    texts = {"item_texts": ["a text"]} if system.reads_texts else {}
    for option, values in system.space.items():
        for value in values:
            system.make(**{key: choice[0] for key, choice in system.space.items()} | {option: value} | texts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"systems": ["MF", "GRU4Rec"]}, "systems: got .*GRU4Rec.*popularity"),
        ({"systems": []}, "systems: got"),
        ({"only": ["MF", "GRU4Rec"]}, "only: 'GRU4Rec' is none of the systems; choose from popularity"),
        ({"select_on": ["masked"]}, "select_on: got .*'masked'.*seen_masked"),
        ({"seeds": [1, 1]}, "seeds: got"),
        ({"trials": -1}, "trials: got -1, expected at least 0"),
        ({"max_epochs": 0}, "max_epochs: got 0"),
        ({"tuning_seconds": 0}, "tuning_seconds: got 0"),
        ({"k": 5}, "k: got 5, expected at least 10"),
    ],
)
def test_bad_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        StudySettings(**options)
