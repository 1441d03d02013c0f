"""Curves in trackers: the stages of a run beside each other, the parts of a stage behind each other."""

import json
import shutil
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from align3gr import InputError
from align3gr.dpo.curriculum_run import CurriculumRun
from align3gr.pipeline import read_manifest
from align3gr.tracking import ReportArguments, StageTracking, check_report_to, track_stage
from tests.launching import run


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each curve that TensorBoard shows of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, round(event.value, 4)) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def at(step):
    return SimpleNamespace(global_step=step)


def test_parts_stand_behind_each_other_and_validations_between_them(tmp_path):
    (tmp_path / "work").mkdir()
    tracking = StageTracking(["tensorboard"], tmp_path, "sp_dpo", tmp_path / "work", settings={"beta": 0.1})
    tracking.log_validation({"recall@10": 0.25, "discoveries/ndcg@10": 0.5}, 0)
    for part, losses in enumerate(((3.0, 2.0), (4.0,))):
        tracking.begin_part(part)
        for step, loss in enumerate(losses, 1):
            tracking.on_log(None, at(step), None, {"loss": loss, "rewards/margins": 0.5, "note": "words"})
        tracking.log_validation({"recall@10": 0.3 + 0.1 * part}, len(losses))
    tracking.close()
    assert curves(tmp_path / "tracking" / "sp_dpo") == {
        "train/loss": [(1, 3.0), (2, 2.0), (3, 4.0)],
        "train/rewards/margins": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "train/part": [(0, 0.0), (1, 0.0), (2, 0.0), (2, 0.0), (3, 1.0), (3, 1.0)],
        "eval/recall@10": [(0, 0.25), (2, 0.3), (3, 0.4)],
        "eval/discoveries/ndcg@10": [(0, 0.5)],
    }
    assert list((tmp_path / "work").iterdir()) == []


def test_an_interrupted_training_goes_on_in_its_curves_and_a_new_one_replaces_them(tmp_path):
    def train(first, last, loss, resumed):
        tracking = StageTracking(["tensorboard"], tmp_path, "sft", tmp_path, resumed)
        for step in range(first + 1, last + 1):
            tracking.on_log(None, at(step), None, {"loss": loss})
        tracking.close()
        return curves(tmp_path / "tracking" / "sft")["train/loss"]

    assert train(0, 3, 1.0, False) == [(1, 1.0), (2, 1.0), (3, 1.0)]
    # Killed after step 3 with a checkpoint of step 2: step 3 is trained again.
    assert train(2, 4, 0.5, True) == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]
    assert train(0, 1, 2.0, False) == [(1, 2.0)]


def test_nothing_is_written_without_a_tracker(tmp_path):
    tracking = StageTracking([], tmp_path / "run", "sft", tmp_path)
    tracking.on_log(None, at(1), None, {"loss": 1.0})
    tracking.close()
    assert not (tmp_path / "run").exists()


def test_options_of_the_trainer_name_group_project_and_space(tmp_path):
    training = SimpleNamespace(
        report_to=["trackio", "mlflow"],
        run_name="second try",
        project="shop",
        trackio_space_id="me/curves",
        trackio_bucket_id=None,
        hub_private_repo=True,
    )
    work = SimpleNamespace(name="sft", folder=tmp_path, resumed=True)
    tracking = track_stage(training, tmp_path / "yelp", work, {"seed": 1})
    assert training.report_to == ["mlflow"]  # which is left to the Trainer
    assert (tracking.names, tracking.group, tracking.project) == (["trackio"], "second try", "shop")
    assert tracking.trackio == {"space_id": "me/curves", "private": True} and tracking.resumed
    training.run_name, training.project = None, "huggingface"
    tracking = track_stage(training, tmp_path / "yelp", work, {})
    assert (tracking.group, tracking.project) == ("yelp", "align3gr")


def test_a_tracker_that_is_not_there_is_named_before_anything_is_trained(monkeypatch, tmp_path, run_stage):
    with pytest.raises(InputError, match=r"report_to: got 'tensorbord', choose from none, .*tensorboard"):
        run_stage("sft", tmp_path / "run", report_to="tensorbord")
    monkeypatch.setattr("align3gr.tracking.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(InputError, match=r"^report_to: wandb is not installed; pip install wandb, or leave it out$"):
        run_stage("sp_dpo", tmp_path / "run", report_to="wandb")
    with pytest.raises(InputError, match=r"report_to: trackio is not installed"):
        run_stage("scid", tmp_path / "run", report_to=["tensorboard", "trackio"])
    with pytest.raises(InputError, match=r"report_to: got 'mlflow', this stage takes none, tensorboard"):
        run_stage("scid", tmp_path / "run", report_to="mlflow")
    assert not (tmp_path / "run").exists()
    check_report_to(["tensorboard"])
    assert ReportArguments("none").report_to == ReportArguments().report_to == []
    assert ReportArguments("tensorboard").report_to == ["tensorboard"]


def test_the_stages_of_a_run_stand_beside_each_other(smoke_run, run_stage, tmp_path):
    for name in ("data", "embeddings"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    for name in ("scid", "sft", "sp_dpo"):
        run_stage(name, tmp_path / "run", report_to="tensorboard", **({} if name == "scid" else {"logging_steps": 1}))
    found = {name: curves(tmp_path / "run" / "tracking" / name) for name in ("scid", "sft", "sp_dpo")}
    report = json.loads((tmp_path / "run" / "scid" / "report.json").read_text())
    assert [value for _, value in found["scid"]["eval/auc"]] == [round(auc, 4) for auc in report["auc"]]
    log = json.loads((tmp_path / "run" / "sft" / "log.json").read_text())
    assert found["sft"]["train/loss"] == [(line["step"], round(line["loss"], 4)) for line in log if "loss" in line]
    curriculum = json.loads((tmp_path / "run" / "sp_dpo" / "curriculum.json").read_text())
    steps = [stage["steps"] for stage in curriculum["stages"]]
    judged = [curriculum["initial"], *curriculum["stages"]]
    assert found["sp_dpo"]["eval/recall@10"] == [
        (sum(steps[:number]), round(entry["metrics"]["recall@10"], 4)) for number, entry in enumerate(judged)
    ]
    assert [step for step, _ in found["sp_dpo"]["train/loss"]] == list(range(1, sum(steps) + 1))
    # The result is the same as without, and what it is made from.
    for name in ("scid", "sft", "sp_dpo"):
        with_curves, without = (read_manifest(folder / name) for folder in (tmp_path / "run", smoke_run))
        assert with_curves["settings"] == without["settings"] and with_curves["inputs"] == without["inputs"]
        assert not (tmp_path / "run" / name / "tracking.json").exists()


@pytest.mark.long
def test_a_curriculum_that_was_killed_leaves_the_curves_of_one_that_was_not(
    smoke_run, run_stage, tmp_path, monkeypatch
):
    for name in ("data", "scid", "sft"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    options = {"report_to": "tensorboard", "logging_steps": 1}
    decide = CurriculumRun.decide

    def dies_in_the_second(self, folder, entry, started):
        if folder.name.startswith("1-"):
            raise KeyboardInterrupt
        decide(self, folder, entry, started)

    with monkeypatch.context() as patch:
        patch.setattr(CurriculumRun, "decide", dies_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            run_stage("sp_dpo", tmp_path / "run", **options)
    run_stage("sp_dpo", tmp_path / "run", **options)
    found = curves(tmp_path / "run" / "tracking" / "sp_dpo")
    curriculum = json.loads((tmp_path / "run" / "sp_dpo" / "curriculum.json").read_text())
    steps = [stage["steps"] for stage in curriculum["stages"]]
    judged = [curriculum["initial"], *curriculum["stages"]]
    assert found["eval/recall@10"] == [
        (sum(steps[:number]), round(entry["metrics"]["recall@10"], 4)) for number, entry in enumerate(judged)
    ]
    assert [step for step, _ in found["train/loss"]] == list(range(1, sum(steps) + 1))


GROUPED = """
import os
from types import SimpleNamespace
from pathlib import Path
from align3gr.tracking import StageTracking

os.chdir(FOLDER)

def stage(name, losses, resumed=False, first=0):
    folder = Path("work", name)
    folder.mkdir(parents=True, exist_ok=True)
    tracking = StageTracking([KIND], "runs/yelp", name, folder, resumed, {"beta": 0.1, "path": Path("x")})
    for step, loss in enumerate(losses, first + 1):
        tracking.on_log(None, SimpleNamespace(global_step=step), None, {"loss": loss})
    return tracking
"""
TRACKIO = """
KIND = "trackio"
stage("sft", [3.0, 2.0]).close()
stage("sp_dpo", [1.0])._trackers["trackio"].finish()  # killed: not closed
stage("sp_dpo", [0.5], resumed=True, first=1).close()
stage("sft", [9.0]).close()
"""
WANDB = """
KIND = "wandb"
for name in ("sft", "sp_dpo"):
    tracking = stage(name, [3.0, 2.0])
    run = tracking._trackers["wandb"].tracker
    print("RUN", run.project, run.group, run.name, run.job_type, run.config["beta"], run.step)
    tracking.close()
killed = stage("rf_dpo", [1.0])._trackers["wandb"].tracker
killed.finish()
again = stage("rf_dpo", [1.0], resumed=True, first=1)._trackers["wandb"].tracker
print("SAME", again.id == killed.id)
"""


def started(folder: Path, code: str, **variables: str) -> str:
    """What code prints in a process of its own, which works in the folder."""
    status, text = run(
        [sys.executable, "-c", GROUPED.replace("FOLDER", repr(str(folder))) + code],
        folder / "printed.txt",
        120,
        **variables,
    )
    assert status == 0, text
    return text


def test_trackio_collects_the_stages_in_a_group_and_takes_an_interrupted_one_up(tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed; pip install 'align3gr[tracking]'")
    started(tmp_path, TRACKIO, TRACKIO_DIR=str(tmp_path / "trackio"), HF_HUB_OFFLINE="1")
    with sqlite3.connect(tmp_path / "trackio" / "align3gr.db") as database:
        configs = {name: json.loads(text) for name, text in database.execute("SELECT run_name, config FROM configs")}
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    losses: dict[str, list[tuple[int, float]]] = {}
    for name, step, metrics in rows:
        losses.setdefault(name, []).append((step, json.loads(metrics)["train/loss"]))
    # The second training of the stage sft is another one.
    assert [name.rpartition("-")[0] for name in losses] == ["yelp/sft", "yelp/sp_dpo", "yelp/sft"]
    assert list(losses.values()) == [[(1, 3.0), (2, 2.0)], [(1, 1.0), (2, 0.5)], [(1, 9.0)]]
    assert {(config["_Group"], config["beta"]) for config in configs.values()} == {("yelp", 0.1)}


def test_wandb_collects_the_stages_in_a_group_and_takes_an_interrupted_one_up(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed; pip install wandb")
    text = started(tmp_path, WANDB, WANDB_MODE="offline")
    assert [line for line in text.splitlines() if line.startswith(("RUN", "SAME"))] == [
        "RUN align3gr yelp yelp/sft sft 0.1 2",
        "RUN align3gr yelp yelp/sp_dpo sp_dpo 0.1 2",
        "SAME True",
    ]
    assert list((tmp_path / "runs" / "yelp" / "tracking").rglob("*.wandb"))
