"""Rows of preference training in a table: where they start, what is measured, which models are kept."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from align3gr.ablation import AblationArguments, run_table, table_cells
from align3gr.ablation.judging import curriculum_record
from align3gr.ablation.stages_table import stages_table
from align3gr.errors import InputError
from align3gr.pipeline import FOLDERS
from tests.conftest import SMOKE

ROWS = {
    "SFT": {},
    "SP": {"stage": "sp_dpo", "after": "SFT", "stages": ["easy", {"hard": {"beta": 0.2}}]},
    "RF": {"stage": "rf_dpo", "after": "SP", "sft_coefficient": 0.3, "against": "SFT"},
}
BASES = {name: str(SMOKE / f"{name}.yaml") for name in ("sft", "sp_dpo", "rf_dpo")}


@pytest.fixture
def run_dir(smoke_run, tmp_path):
    for name in ("data", "scid"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    return tmp_path / "run"


def arguments_of(run_dir, **options):
    table = {"run_dir": str(run_dir), "name": "t", "base": BASES, "rows": ROWS, "seeds": [7]}
    return AblationArguments(**(table | options))


class Trainings:
    """In place of each training the folder that the smoke run has of its stage; remembers what was asked for."""

    def __init__(self, smoke_run):
        self.smoke_run, self.asked, self.failing = smoke_run, [], set()

    def __call__(self, command):
        stage, *words = command[command.index("align3gr.cli") + 1 :]
        folder = Path(words[words.index("--run_dir") + 1])
        links = {name: (folder / name).resolve() for name in FOLDERS.values() if (folder / name).is_symlink()}
        self.asked.append((stage, words, links))
        if stage in self.failing:
            return 1
        shutil.copytree(self.smoke_run / stage, folder / stage)
        return 0

    @property
    def stages(self):
        return [stage for stage, _, _ in self.asked]


@pytest.fixture
def trainings(smoke_run, monkeypatch):
    trainings = Trainings(smoke_run)
    monkeypatch.setattr("align3gr.stage_processes.call", trainings)
    return trainings


def test_each_row_starts_from_the_row_it_comes_after(run_dir, trainings, caplog):
    with caplog.at_level("INFO"):
        run_table(arguments_of(run_dir))
    table, inputs = run_dir / "t", {"data": run_dir / "data", "scid": run_dir / "scid"}
    sft, sp = {"sft": table / "sft/seed-7/sft"}, {"sp_dpo": table / "sp/seed-7/sp_dpo"}
    assert [(name, links) for name, _, links in trainings.asked] == [
        ("sft", inputs),
        ("sp_dpo", inputs | sft),
        ("rf_dpo", inputs | sft | sp),
    ]
    assert trainings.asked[1][1] == [
        *("--config", BASES["sp_dpo"], "--run_dir", str(table / "sp/seed-7"), "--seed", "7"),
        *("--stages", "easy", '{"hard": {"beta": 0.2}}'),
    ]
    assert trainings.asked[2][1][6:] == ["--sft_coefficient", "0.3", "--start_from", "sp_dpo"]
    assert "minutes left" in caplog.text
    # All are done: no model is left, and no link to one.
    left = {path.name for folder in table.glob("*/seed-7") for path in folder.iterdir()}
    assert left == {"data", "scid", "cell.json", "per_user.parquet"}


def test_cells_say_what_the_evaluation_of_the_same_models_says(smoke_run, run_dir, trainings):
    run_table(arguments_of(run_dir))
    found = json.loads((smoke_run / "evaluation" / "results.json").read_text())
    cells = {
        row: json.loads((run_dir / "t" / row / "seed-7" / "cell.json").read_text()) for row in ("sft", "sp", "rf")
    }
    pairs = [
        (cells["sft"]["metrics"], found["SFT"]),
        (cells["sp"]["metrics"], found["SP-DPO, best stage on validation"]),
        (cells["sp"]["last_policy"], found["SP-DPO hard"]),
        (cells["rf"]["metrics"], found["RF-DPO, best stage on validation"]),
        (cells["rf"]["last_policy"], found["RF-DPO neutral"]),
    ]
    for metrics, expected in pairs:
        for column in ("seen_allowed", "discoveries", "seen_allowed_repeats", "seen_allowed_liked"):
            assert metrics[column]["ndcg@10"] == pytest.approx(expected[column]["ndcg@10"], abs=1e-12), column
        disliked = expected["beyond_accuracy"]["seen_allowed"]["disliked@10"]
        assert metrics["beyond_accuracy"]["disliked@10"] == pytest.approx(disliked, abs=1e-12)
    assert "curriculum" not in cells["sft"] and cells["rf"]["curriculum"]["metric"] == "seen_allowed_liked/recall@10"
    stage = json.loads((smoke_run / "sp_dpo" / "curriculum.json").read_text())["stages"][2]
    kept = cells["sp"]["curriculum"]["stages"][2]
    assert kept["after"] == stage["metrics"] and kept["start_accuracy"] == stage["statistics"]["start_accuracy"]

    page = (run_dir / "t" / "table.md").read_text()
    liked = found["RF-DPO, best stage on validation"]["seen_allowed_liked"]["recall@10"]
    header = next(line for line in page.splitlines() if "liked recall@10" in line).split(" | ")
    row = next(line for line in page.splitlines() if line.startswith("| RF |")).split(" | ")
    assert row[header.index("liked recall@10")] == f"{liked:.4f}"
    (line,) = [line for line in page.splitlines() if line.startswith("| SP | 7 | hard |")]
    assert line.endswith(f"| {found['SP-DPO hard']['seen_allowed']['recall@10']:.4f} |")


def test_a_table_with_the_history_cache_has_the_figures_of_the_evaluation(smoke_run, run_dir, trainings):
    share = yaml.safe_load((SMOKE / "evaluate.yaml").read_text())["history_cache"]
    before = next(table_cells(arguments_of(run_dir))).key
    arguments = arguments_of(run_dir, rows={"SFT": {}}, history_cache=share)
    assert next(table_cells(arguments)).key != before
    run_table(arguments)
    found = json.loads((smoke_run / "evaluation" / "results.json").read_text())
    page = (run_dir / "t" / "table.md").read_text().splitlines()
    header = next(line for line in page if "masked recall@10" in line).split(" | ")
    row = next(line for line in page if line.startswith("| SFT |")).split(" | ")
    for name, kind in (
        ("SFT + history cache", "with history cache"),
        ("five latest, then SFT", "five latest, then it"),
    ):
        for metric in ("recall@10", "ndcg@10"):
            assert row[header.index(f"{kind} {metric}")] == f"{found[name]['seen_allowed'][metric]:.4f}"
    assert json.loads((run_dir / "t" / "settings.json").read_text())["table"]["history_cache"] == share
    with pytest.raises(InputError, match=r"history_cache: got 1.0, expected a share of 0 \(off\) to below 1"):
        arguments_of(run_dir, history_cache=1.0)


def test_an_interrupted_table_goes_on_and_a_later_row_gets_its_model_back(run_dir, trainings):
    trainings.failing = {"rf_dpo"}
    with pytest.raises(InputError, match="RF, seed 7: the training ended with status 1"):
        run_table(arguments_of(run_dir))
    table = run_dir / "t"
    assert (table / "sft/seed-7/sft/model").is_dir() and (table / "sp/seed-7/sp_dpo/model").is_dir()
    trainings.failing, trainings.asked = set(), []
    run_table(arguments_of(run_dir))
    assert trainings.stages == ["rf_dpo"]
    trainings.asked = []
    # The models are gone by now, so the rows that the new one needs are trained again; RF is not.
    more = ROWS | {"RF, mixed": {"stage": "rf_dpo", "after": "SP", "stages": ["mixed"]}}
    run_table(arguments_of(run_dir, rows=more))
    assert trainings.stages == ["sft", "sp_dpo", "rf_dpo"]
    assert "--stages" in trainings.asked[2][1] and not list(table.glob("*/*/*_dpo"))


def test_cells_of_the_record_are_found_on_another_machine_and_not_trained(run_dir, trainings, tmp_path):
    record = tmp_path / "record"
    run_table(arguments_of(run_dir, record=str(record), only=["SFT", "SP"]))
    assert not (record / "rf").exists() and "Not finished: RF" in (record / "table.md").read_text()
    kept = {path.relative_to(record).as_posix() for path in record.rglob("*") if path.is_file()}
    tables = {"table.md", "table.csv", "cells.csv", "settings.json"}
    assert kept == tables | {
        f"{row}/seed-7/{name}" for row in ("sft", "sp") for name in ("cell.json", "ranks.parquet")
    }
    assert str(tmp_path) not in "".join((record / path).read_text() for path in kept if not path.endswith("parquet"))
    other = tmp_path / "other"
    for name in ("data", "scid"):
        shutil.copytree(run_dir / name, other / name)
    trainings.asked = []
    run_table(arguments_of(other, record=str(record), only=["SFT", "SP"]))
    assert trainings.stages == []
    for path in ("table.md", "table.json", "cells.csv", "sp/seed-7/cell.json"):
        assert (other / "t" / path).read_bytes() == (run_dir / "t" / path).read_bytes(), path
    ranks = [pl.read_parquet(folder / "t/sp/seed-7/per_user.parquet") for folder in (run_dir, other)]
    assert ranks[0].equals(ranks[1]) and ranks[0]["system"].n_unique() == 2
    # The models stayed on the first machine, so the row that needs them has them trained again.
    run_table(arguments_of(other, record=str(record)))
    assert trainings.stages == ["sft", "sp_dpo", "rf_dpo"] and (record / "rf/seed-7/cell.json").is_file()
    assert "Not finished" not in (record / "table.md").read_text()
    trainings.asked = []
    # A cell of another key is none, and a finished one that the record lacks is copied into it.
    run_table(arguments_of(other, record=str(record), rows=ROWS | {"SFT": {"dropout": 0.5}}, only=["SFT"]))
    assert trainings.stages == ["sft"]
    shutil.rmtree(record)
    run_table(arguments_of(run_dir, record=str(record), only=["SFT", "SP"]))
    assert trainings.stages == ["sft"] and (record / "sp/seed-7/ranks.parquet").is_file()


def test_models_stay_for_rows_that_do_not_run_yet_or_when_asked_for(run_dir, trainings):
    run_table(arguments_of(run_dir, only=["SFT"]))
    assert (run_dir / "t/sft/seed-7/sft").is_dir()
    run_table(arguments_of(run_dir, keep_models=True))
    assert trainings.stages == ["sft", "sp_dpo", "rf_dpo"]
    models = {
        path.parent.parent.name
        for path in (run_dir / "t").glob("*/seed-7/*")
        if not path.is_symlink() and path.is_dir()
    }
    assert models == {"sft", "sp", "rf"}


def test_a_key_holds_all_that_a_cell_depends_on_and_that_of_an_sft_row_is_as_before(run_dir, tmp_path):
    def keys(**options):
        return {cell.row: cell.key for cell in table_cells(arguments_of(run_dir, **options))}

    first = keys()
    assert keys(base=BASES["sft"], rows={"SFT": {}}) == {"SFT": first["SFT"]}
    assert len(set(first.values())) == 3

    def changed(**options):
        return {row for row, key in keys(**options).items() if key != first[row]}

    assert changed(rows=ROWS | {"SP": ROWS["SP"] | {"beta": 0.5}}) == {"SP", "RF"}
    assert changed(rows=ROWS | {"SFT": {"dropout": 0.5}}) == {"SFT", "SP", "RF"}
    other = tmp_path / "rf.yaml"
    table = tmp_path / "feedback.parquet"
    table.write_text("one")
    other.write_text(yaml.safe_dump({"feedback_table": str(table)}))
    bases = BASES | {"rf_dpo": str(other)}
    assert changed(base=bases) == {"RF"}
    before = keys(base=bases)["RF"]
    table.write_text("two")  # under the same name
    assert keys(base=bases)["RF"] != before
    (run_dir / "data" / "train.parquet").write_bytes(b"other")
    assert changed() == {"SFT", "SP", "RF"}


def test_time_left_goes_by_what_cells_of_the_same_row_took(tmp_path, monkeypatch, caplog):
    for name in ("items", "users", "train", "validation", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.parquet").touch()
    for name in ("item_codes.parquet", "user_codes.parquet", "codebooks.json"):
        (tmp_path / "scid").mkdir(exist_ok=True)
        (tmp_path / "scid" / name).touch()
    arguments = arguments_of(tmp_path, seeds=[1, 2])
    for cell, seconds in zip(table_cells(arguments), (600, 1800), strict=False):
        cell.trained.mkdir(parents=True)
        result = {"key": cell.key, "train_seconds": seconds, "judge_seconds": 60}
        (cell.folder / "cell.json").write_text(json.dumps(result))
    monkeypatch.setattr("align3gr.ablation.running._run_cell", lambda *_: None)
    monkeypatch.setattr("align3gr.ablation.running.write_table", lambda *_: None)
    with caplog.at_level("INFO"):
        run_table(arguments)
    # SFT 660 s, SP 1860 s, and for RF, of which no cell is finished, their mean 1260 s.
    assert [record.getMessage() for record in caplog.records if "cell " in record.getMessage()] == [
        "cell 1 of 4: RF, seed 1, about 84 minutes left",
        "cell 2 of 4: SFT, seed 2, about 63 minutes left",
        "cell 3 of 4: SP, seed 2, about 52 minutes left",
        "cell 4 of 4: RF, seed 2, about 21 minutes left",
    ]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"stage": "dpo", "after": "SFT"}, "stage 'dpo', expected sft, sp_dpo or rf_dpo"),
        ({"stage": "sp_dpo"}, "after None, expected an sft row above it"),
        ({"stage": "sp_dpo", "after": "SP"}, "after 'SP', expected an sft row above it"),
        ({"stage": "rf_dpo", "after": "later"}, "after 'later', expected an sft or sp_dpo row above it"),
        ({"after": "SFT"}, "after 'SFT', but an sft row starts from its base model"),
        ({"stage": "rf_dpo", "after": "SP", "start_from": "sft"}, "start_from follows from the row"),
        ({"stage": "sp_dpo", "after": "SFT", "control": "shuffled profiles"}, "control follows from the row"),
    ],
)
def test_rows_that_start_nowhere_are_refused(tmp_path, row, message):
    rows = {"SFT": {}, "SP": {"stage": "sp_dpo", "after": "SFT"}, "new": row, "later": {}}
    with pytest.raises(InputError, match=f"rows: new: {message}"):
        arguments_of(tmp_path, rows=rows)


@pytest.mark.parametrize("base", [BASES["sft"], {"sft": BASES["sft"]}, {"sft": BASES["sft"], "sp_dpo": None}])
def test_a_stage_without_a_base_is_refused(tmp_path, base):
    with pytest.raises(InputError, match="base: names no file for sp_dpo rows"):
        arguments_of(tmp_path, base=base)


def stage_of(name, metrics, decision, **more):
    return {
        "name": name,
        "rows": 9,
        "statistics": {"mean_rejected": 3.0},
        "metrics": metrics,
        "decision": decision,
    } | more


def test_the_table_of_stages_shows_what_a_stage_started_from_and_what_was_decided():
    curriculum = {
        "settings": {"metric": "liked"},
        "initial": {"metrics": {"liked": 0.1, "recall@10": 0.2}},
        "stages": [
            stage_of("a", {"liked": 0.3, "recall@10": 0.1}, "kept", first_loss=1.0, last_loss=0.5, stopped_at=None),
            stage_of(
                "b", {"liked": 0.2, "recall@10": 0.4}, "rolled back", first_loss=1.5, last_loss=1.0, stopped_at=8
            ),
            {"name": "c", "rows": 0, "statistics": {"prefix_lengths": {"0": 0.25, "1": 0.75}}, "decision": "skipped"},
        ],
    }
    record = curriculum_record(curriculum)
    assert [stage["before"]["liked"] for stage in record["stages"]] == [0.1, 0.3, 0.3]
    assert record["stages"][2]["after"] is None
    result = {"curriculum": record, "last_policy": {"seen_allowed": {"recall@10": 0.25}}}
    page = stages_table({"sft": {0: {}}, "RF": {3: result}}, "test")
    assert page.splitlines()[-3:] == [
        "| RF | 3 | a | 9 | 3.0 | - | - | 1.000 | liked | 0.1000 | 0.3000 | 0.2000 | 0.1000 | kept | - |",
        "| RF | 3 | b | 9 | 3.0 | - | - | 1.500 | liked | 0.3000 | 0.2000 | 0.1000 | 0.4000 "
        "| stopped at step 8, rolled back | 0.2500 |",
        "| RF | 3 | c | 0 | - | 0.25 / 0.75 | - | - | liked | 0.3000 | - | 0.1000 | - | skipped | - |",
    ]
    assert stages_table({"sft": {0: {}}}, "test") == ""


@pytest.mark.long
def test_trained_for_real_the_control_learns_from_the_rows_of_self_play(run_dir):
    control = {"stage": "sp_dpo", "after": "SFT", "preference_coefficient": 0.0, "sft_coefficient": 1.0}
    rows = {"SFT": {}, "continued": control, "SP": {"stage": "sp_dpo", "after": "SFT"}, "RF": ROWS["RF"]}
    run_table(arguments_of(run_dir, rows=rows, keep_models=True))
    cells = {row: run_dir / "t" / row / "seed-7" for row in ("sft", "continued", "sp", "rf")}
    records = {
        row: json.loads((cells[row] / "cell.json").read_text())["curriculum"] for row in ("continued", "sp", "rf")
    }
    start = [records[row]["stages"][0]["before"] for row in records]
    assert start[0] == start[1]  # both start from the fine-tuned model
    last = records["sp"]["stages"][-1]
    assert start[2]["recall@10"] == (last["after"] if last["decision"] == "kept" else last["before"])["recall@10"]
    easy = [records[row]["stages"][0] for row in ("continued", "sp")]
    assert easy[0]["rows"] == easy[1]["rows"] and easy[0]["start_accuracy"] == easy[1]["start_accuracy"]
    assert easy[0]["first_loss"] != pytest.approx(easy[1]["first_loss"])
