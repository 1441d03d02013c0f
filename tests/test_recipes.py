"""The smoke pipeline: every recipe, in one process, on the built-in market."""

import json
import math
import runpy

import numpy as np
import polars as pl
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from align3gr import InputError, Recommender
from align3gr.data import Split
from align3gr.pipeline import FOLDERS, STAGES, read_manifest
from align3gr.recipe import parse
from align3gr.sft import SFTArguments
from tests.conftest import ROOT


def test_every_stage_leaves_a_manifest_that_names_its_inputs(smoke_run):
    for name in STAGES:
        manifest = read_manifest(smoke_run / FOLDERS[name])
        assert manifest["stage"] == name and manifest["seconds"] >= 0 and manifest["peak_memory_mb"] > 100
    assert set(read_manifest(smoke_run / "sft")["inputs"]) == {
        "data/items.parquet",
        "data/users.parquet",
        "data/train.parquet",
        "scid/item_codes.parquet",
        "scid/user_codes.parquet",
        "scid/codebooks.json",
    }
    assert not list(smoke_run.glob("*.partial"))


def test_item_codes_are_unique_and_every_entity_has_some(smoke_run):
    split = Split.load(smoke_run / "data")
    items = pl.read_parquet(smoke_run / "scid" / "item_codes.parquet")
    assert items["item_id"].to_list() == split.items["item_id"].to_list()
    assert items["codes"].n_unique() == len(items)
    users = pl.read_parquet(smoke_run / "scid" / "user_codes.parquet")
    assert users["user_id"].to_list() == split.users["user_id"].to_list()


def test_the_model_folder_recommends_and_opens_without_align3gr_classes(smoke_run):
    split = Split.load(smoke_run / "data")
    recommender = Recommender.from_pretrained(smoke_run / "sp_dpo" / "model")
    history = split.train["items"][0].to_list()
    lists = recommender.recommend([history], [split.users["user_id"][0]], k=5)
    assert len({r.item_id for r in lists[0]}) == 5 and {r.item_id for r in lists[0]} <= set(split.items["item_id"])
    model = AutoModelForCausalLM.from_pretrained(smoke_run / "sp_dpo" / "model")
    tokenizer = AutoTokenizer.from_pretrained(smoke_run / "sp_dpo" / "model")
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.vocab_size == len(tokenizer)


def test_each_preference_stage_starts_at_log_of_one_plus_rejected(smoke_run):
    curriculum = json.loads((smoke_run / "sp_dpo" / "curriculum.json").read_text())
    assert [stage["name"] for stage in curriculum["stages"]] == ["easy", "medium", "hard"]
    for number, stage in enumerate(curriculum["stages"]):
        assert stage["decision"] in ("kept", "rolled back"), stage
        assert 0 < stage["first_loss"] <= math.log(1 + 20) + 1e-3
        assert (smoke_run / "sp_dpo" / f"{number}-{stage['name']}" / "policy").is_dir()
    best = max(
        [curriculum["initial"]["metrics"]["recall@10"]] + [s["metrics"]["recall@10"] for s in curriculum["stages"]]
    )
    assert curriculum["best_value"] == pytest.approx(best)


def test_the_table_has_every_system_and_every_stage(smoke_run):
    results = json.loads((smoke_run / "evaluation" / "results.json").read_text())
    assert list(results) == [
        "popularity",
        "history, latest first",
        "item-kNN",
        "five latest, then item-kNN",
        "SFT",
        "five latest, then SFT",
        "SFT + history cache",
        "SP-DPO easy",
        "SP-DPO medium",
        "SP-DPO hard",
        "SP-DPO, best stage on validation",
        "five latest, then SP-DPO, best stage on validation",
        "SP-DPO, best stage on validation + history cache",
        "RF-DPO disliked",
        "RF-DPO neutral",
        "RF-DPO, best stage on validation",
        "five latest, then RF-DPO, best stage on validation",
        "RF-DPO, best stage on validation + history cache",
        "best possible",
    ]
    for name, columns in results.items():
        assert 0 <= columns["seen_allowed"]["ndcg@10"] <= columns["seen_allowed"]["recall@10"] <= 1, name
    assert results["history, latest first"]["seen_masked"]["recall@10"] == 0
    for name, columns in results.items():
        if name != "best possible" and "same_weights_as" not in columns["ranking"]:
            speed = columns["ranking"]["users_per_second"]
            users = columns["seen_allowed"]["users"]
            assert speed == pytest.approx(users / columns["ranking"]["seconds"], rel=1e-2), name
    page = (smoke_run / "evaluation" / "results.md").read_text()
    assert all(f"| {name} |" in page for name in (*results, "sft", "easy", "hard"))
    assert len(results["SFT"]) > len(results["best possible"])


def test_a_second_run_does_nothing(smoke_run, run_stage):
    before = {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*") if path.is_file()}
    for name in STAGES:
        run_stage(name, smoke_run)
    assert {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*") if path.is_file()} == before


def test_the_model_has_learnt_something(smoke_run):
    log = [e for e in json.loads((smoke_run / "sft" / "log.json").read_text()) if "loss" in e]
    items = pl.read_parquet(smoke_run / "scid" / "item_codes.parquet")
    guess = np.log(len(items)) / len(items["codes"][0])  # nats a token, where every item is as probable
    assert log[-1]["loss"] < log[0]["loss"] - 0.05 and log[-1]["loss"] < guess - 0.05


CONFIGS = [path for path in sorted(ROOT.glob("recipes/*/*.yaml")) if path.stem != "pipeline"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_file_is_accepted_by_its_recipe(config, monkeypatch, tmp_path):
    seen = []

    def record(types, arguments=None):
        seen.append(parse(types, ["--config", str(config), "--run_dir", str(tmp_path / "run")]))
        raise InputError("stop here")

    monkeypatch.setattr("align3gr.recipe.parse", record)
    with pytest.raises(InputError, match="stop here"):
        # sft-llama2-7b.yaml is another file of options for sft.py.
        runpy.run_path(str(ROOT / "recipes" / f"{config.stem.partition('-')[0]}.py"))["main"]()
    assert seen


def write(folder, text):
    (folder / "wrong.yaml").write_text(text + "\n")
    return folder / "wrong.yaml"


def test_wrong_keys_and_values_of_a_recipe_file_are_named(tmp_path, run_stage):
    from align3gr.scid import DualSCIDTrainingConfig

    (tmp_path / "scid.yaml").write_text("learning_rat: 0.1\n")
    with pytest.raises(InputError, match="learning_rat"):
        parse([DualSCIDTrainingConfig], ["--config", str(tmp_path / "scid.yaml")])
    with pytest.raises(InputError, match=r"semantic: got 'bert', choose from tfidf"):
        run_stage("embed", tmp_path, config=write(tmp_path, "semantic: bert"))
    with pytest.raises(InputError, match="item_codebook_sizes: got 256, expected a list"):
        run_stage("scid", tmp_path, config=write(tmp_path, "item_codebook_sizes: 256"))
    with pytest.raises(InputError, match="output_dir: does not apply"):
        run_stage("sft", tmp_path, output_dir="elsewhere")
    with pytest.raises(InputError, match="semantic_dim: applies to semantic 'tfidf' only"):
        run_stage("embed", tmp_path, semantic="none", semantic_dim=3)
    (tmp_path / "scid.yaml").write_text("learning_rate: 0.1\nbatch_size: 7\n")
    (config,) = parse([DualSCIDTrainingConfig], ["--config", str(tmp_path / "scid.yaml"), "--batch_size", "9"])
    assert (config.learning_rate, config.batch_size) == (0.1, 9)


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        (["--run_dir", "x", "--shufled", "3"], "", r"there is no --shufled; did you mean '--shuffled'\?$"),
        (["--shufled", "3"], "", r"are required: .*; there is no --shufled; did you mean '--shuffled'\?$"),
        ([], "normalicer: catalogue", r"there is no --normalicer; did you mean '--normalizer'\?$"),
        (["--run_dir", "x", "--dropout", "a"], "", r"invalid float value: 'a'; see --help$"),
    ],
)
def test_a_misspelt_option_is_told_what_it_may_mean(options, content, message, tmp_path):
    (tmp_path / "sft.yaml").write_text(f"run_dir: x\n{content}\n" if content else "seed: 1\n")
    with pytest.raises(InputError, match=message):
        parse([SFTArguments, SFTConfig], ["--config", str(tmp_path / "sft.yaml"), *options])
