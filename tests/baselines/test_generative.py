import json
import runpy
import shutil
import sys
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest

from align3gr import stage_processes
from align3gr.baselines import GenerativeSystem, Study, StudySettings, stage_chains
from align3gr.baselines.generative import by_stage
from align3gr.data import Split
from align3gr.errors import InputError
from align3gr.pipeline import option_words
from tests import launching
from tests.conftest import ROOT, SMOKE

INPUTS = {"items.parquet": "a", "train.parquet": "b", "validation.parquet": "c", "test.parquet": "d"}
LC_REC = {"scid": str(SMOKE / "scid-lc-rec.yaml"), "sft": str(SMOKE / "sft-lc-rec.yaml")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, run_stage):
    """The folder of a run of the smoke market as far as all systems share it."""
    run_dir = tmp_path_factory.mktemp("prepared")
    for name in ("prepare", "embed"):
        run_stage(name, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def split(prepared):
    return Split.load(prepared / "data")


@contextmanager
def stages_in_this_process():
    """Their names, in order."""
    names = []
    with pytest.MonkeyPatch.context() as patch:

        def call(command):
            name = command[3]
            names.append(name)
            patch.setattr(sys, "argv", [f"recipes/{name}.py", *command[4:]])
            runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))["main"]()
            return 0

        patch.setattr("align3gr.stage_processes.call", call)
        yield names


@pytest.fixture
def ran():
    with stages_in_this_process() as names:
        yield names


def study_of(split, prepared, folder, **options):
    space = {"num_train_epochs": [1], "learning_rate": [1e-9, 3e-3]}
    values = {"systems": ["LC-Rec"], "generative": {"LC-Rec": LC_REC | {"space": space}}, "seeds": [1]}
    settings = StudySettings(**values | {"trials": 2, "k": 10, "num_beams": 10, "validation_users": 60} | options)
    chains = stage_chains(split, prepared / "data", settings.generative, folder / "models")
    return Study(split, INPUTS, settings, folder / "cells", chains)


def test_a_study_tunes_a_chain_and_shares_its_codes(split, prepared, tmp_path, ran):
    study = study_of(split, prepared, tmp_path)
    assert study.missing() == ["LC-Rec: 0 of at most 2 trials done, no final run"]
    study.run()
    # Both trials have seed 0 and the same codes; the final run has a seed of its own.
    assert ran == ["scid", "sft", "sft", "scid", "sft"]
    untrained, trained = study.trials("LC-Rec")
    assert trained["value"] > untrained["value"] > 0
    final = study.final_run("LC-Rec", 1)
    assert final["setting"] == {"num_train_epochs": 1, "learning_rate": 3e-3}
    assert 0 < final["results"]["seen_masked"]["recall@10"] < 1 and final["peak_memory_mb"] > 100
    assert final["protocol"]["num_beams"] == 10
    assert {"users.parquet", "embeddings", "scid.yaml", "sft.yaml"} <= set(final["inputs"])
    assert "test.parquet" in final["inputs"] and "test.parquet" not in trained["inputs"]
    assert study.per_user()["system"].unique().to_list() == ["LC-Rec, seed 1"]
    assert not (tmp_path / "models" / "lc-rec").exists()  # judged, so nobody needs the models
    again = study_of(split, prepared, tmp_path)
    again.run()
    assert again.computed == 0 and len(ran) == 5


def test_a_stage_that_failed_is_taken_up_where_the_fit_was(split, prepared, tmp_path, ran, monkeypatch):
    entry = {"LC-Rec": LC_REC}
    chain = stage_chains(split, prepared / "data", entry, tmp_path)["LC-Rec"]
    run = stage_processes.call
    monkeypatch.setattr(
        "align3gr.stage_processes.call",
        lambda command: 137 if command[3] == "sft" else run(command),
    )
    setting = {"num_train_epochs": 1, "scid.quantization_epochs": 1}
    with pytest.raises(InputError, match=r"stage 'sft' ended with status 137"):
        GenerativeSystem(chain, 3, 10, **setting).fit([], 0)
    monkeypatch.setattr("align3gr.stage_processes.call", run)
    system = GenerativeSystem(chain, 3, 80, **setting).fit([], 0)
    assert ran == ["scid", "sft"]
    manifests = {name: json.loads((system.trained.run_dir / name / "manifest.json").read_text()) for name in ran}
    assert manifests["scid"]["settings"]["quantization_epochs"] == 1 and manifests["scid"]["seed"] == 3
    assert manifests["sft"]["settings"]["num_train_epochs"] == 1 and manifests["sft"]["seed"] == 3
    check_lists(system, split)


def check_lists(system, split):
    """With a beam as wide as the catalogue, lists are what the saved model recommends to anyone who loads it."""
    from align3gr import Recommender

    questions = split.histories("test").subset(np.arange(12))
    lists = system.lists(questions, 10)
    recommender = Recommender.from_pretrained(system.trained.model, num_beams=80)
    ids, users = split.items["item_id"], split.users["user_id"]
    for exclude_seen, found in zip((False, True), lists, strict=True):
        expected = recommender.recommend(
            [ids.gather(history).to_list() for history in questions.histories],
            users.gather(questions.user_rows).to_list(),
            k=10,
            exclude_seen=exclude_seen,
        )
        assert [ids.gather(row).to_list() for row in found] == [[item.item_id for item in row] for row in expected]


def test_a_change_of_what_a_chain_reads_is_another_cell(split, prepared, tmp_path):
    before = study_of(split, prepared, tmp_path)
    changed = tmp_path / "sft.yaml"
    changed.write_text((SMOKE / "sft-lc-rec.yaml").read_text() + "weight_decay: 0.1\n")
    after = study_of(split, prepared, tmp_path, generative={"LC-Rec": LC_REC | {"sft": str(changed)}})
    keys = [study._key("LC-Rec", "trial", {}, 0) for study in (before, after)]
    assert {name for name in keys[0]["inputs"] if keys[0]["inputs"][name] != keys[1]["inputs"][name]} == {"sft.yaml"}
    assert before._path(keys[0], "json") != after._path(keys[1], "json")
    changed.write_text("# A comment changes nothing.\n" + (SMOKE / "sft-lc-rec.yaml").read_text())
    same = study_of(split, prepared, tmp_path, generative={"LC-Rec": LC_REC | {"sft": str(changed)}})
    assert same._key("LC-Rec", "trial", {}, 0) == keys[0]


def test_cells_do_not_depend_on_the_last_bits_of_the_embeddings(split, prepared, tmp_path):
    for name in ("data", "embeddings"):
        shutil.copytree(prepared / name, tmp_path / "run" / name)
    path = tmp_path / "run" / "embeddings" / "users.parquet"
    path.write_bytes(path.read_bytes() + b"other")
    key = study_of(split, prepared, tmp_path)._key("LC-Rec", "final", {}, 1)
    assert study_of(split, tmp_path / "run", tmp_path)._key("LC-Rec", "final", {}, 1) == key
    manifest = tmp_path / "run" / "embeddings" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"semantic_dim": ', '"semantic_dim": 1'))
    assert study_of(split, tmp_path / "run", tmp_path)._key("LC-Rec", "final", {}, 1) != key


PROCESSES = """
import sys
from pathlib import Path

from align3gr.baselines import StageChain
from align3gr.data import Split
from align3gr.errors import InputError

run_dir, file, folder = map(Path, sys.argv[1:])
chain = StageChain(Split.load(run_dir / "data"), run_dir, {"scid": file}, folder)
try:
    chain.train({"scid.collisions": "never"}, 0, lambda stage, run_dir: {})
except InputError as error:
    print("refused:", error)
trained = chain.train({"scid.quantization_epochs": 1}, 0, lambda stage, run_dir: {})
assert trained.run_dir == chain.train({"scid.quantization_epochs": 1}, 0, lambda stage, run_dir: {}).run_dir
print("trained:", trained.seconds > 1, (trained.run_dir / "scid" / "item_codes.parquet").is_file())
"""


@pytest.mark.long
def test_stages_run_in_processes_of_their_own(prepared, tmp_path):
    command = [sys.executable, "-c", PROCESSES, prepared, SMOKE / "scid-lc-rec.yaml", tmp_path / "models"]
    status, printed = launching.run(command, tmp_path / "output.txt")
    assert status == 0, printed
    assert "stage 'scid' ended with status 2; its message is above" in printed
    assert "trained: True True" in printed
    assert printed.count("scid: finished in") == 1


def test_options_go_to_their_stages():
    setting = {"learning_rate": 1e-3, "sp_dpo.beta": 0.2, "tasks": ["sequential", "item_text"], "user_scid": False}
    assert by_stage(setting) == {
        "sft": {"learning_rate": 1e-3, "tasks": ["sequential", "item_text"], "user_scid": False},
        "sp_dpo": {"beta": 0.2},
    }
    words = option_words(by_stage(setting)["sft"])
    assert words == ["--learning_rate", "0.001", "--tasks", "sequential", "item_text", "--user_scid", "false"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"systems": ["TIGER"]}, "generative: TIGER has no files; name some"),
        ({"generative": {"SASRec": LC_REC}}, "generative: 'SASRec' is no generative system; choose from BIGRec"),
        ({"generative": {"LC-Rec": {"sft": "a"}}}, "generative: LC-Rec: expected a file for scid and one for sft"),
        ({"generative": {"LC-Rec": LC_REC | {"dpo": "a"}}}, "got 'dpo', expected some of scid, sft, sp_dpo"),
        ({"generative": {"LC-Rec": LC_REC | {"space": {"dropout": 0.1}}}}, "space needs a list of values"),
        ({"generative": {"LC-Rec": LC_REC | {"space": {"sp_dpo.beta": [1]}}}}, "no file for stage 'sp_dpo'"),
        (
            {"k": 20, "num_beams": 10, "systems": ["LC-Rec"], "generative": {"LC-Rec": LC_REC}},
            "num_beams: got 10, expected at least k, 20",
        ),
    ],
)
def test_wrong_entries_are_named(options, message):
    with pytest.raises(InputError, match=message):
        StudySettings(**{"systems": ["popularity"]} | options)


def test_the_beam_is_asked_of_generative_systems_alone():
    assert StudySettings(systems=["popularity"], k=100, num_beams=20).k == 100


def test_what_is_not_there_is_named(split, prepared, tmp_path):
    with pytest.raises(InputError, match=r"generative: LC-Rec, sft: .*gone.yaml not found"):
        stage_chains(split, prepared / "data", {"LC-Rec": LC_REC | {"sft": "gone.yaml"}}, tmp_path)
    with pytest.raises(InputError, match=r"data: got .*elsewhere, expected the folder data of a run"):
        stage_chains(split, tmp_path / "elsewhere", {"LC-Rec": LC_REC}, tmp_path)
    with pytest.raises(InputError, match=r"run/data: not found; .* run the stage 'prepare' first"):
        stage_chains(split, tmp_path / "run" / "data", {"LC-Rec": LC_REC}, tmp_path)
    assert pl.read_parquet(prepared / "embeddings" / "items.parquet").height == len(split.items)  # left as it was
