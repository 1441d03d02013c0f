"""The recipe of Llama2-7B with a tiny Llama in its place, launched as a person would, from codes to lists."""

import json
import shutil
from pathlib import Path

import pytest

from align3gr import Recommender
from align3gr.data import Split
from align3gr.pipeline import read_manifest
from tests.conftest import ROOT
from tests.launch.test_launch import LAUNCHES
from tests.launching import launch_command, run
from tests.sft.backbones import save_backbone

pytestmark = pytest.mark.long

SHORT = {
    "max_steps": 3,
    "warmup_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "validation_users": 9,
    "max_length": 512,
    "bf16": "false",
    "max_history": 5,
    # The gradient of a checkpointed model is the same and takes longer.
    "gradient_checkpointing": "false",
}


def launch(recipe: str, run_dir: Path, launched_by: str | None, **options) -> None:
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [*launch_command(launched_by), ROOT / "recipes" / f"{recipe}.py", *words, "--run_dir", run_dir]
    status, printed = run(command, run_dir / f"{recipe}.txt")
    assert status == 0, printed[-3000:]


@pytest.mark.parametrize("config", LAUNCHES)
def test_the_llama2_recipe_runs_and_what_it_saves_recommends(config, smoke_run, tmp_path):
    if config.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -c constraints.txt -e '.[deepspeed]'")
    for name in ("data", "scid"):
        shutil.copytree(smoke_run / name, tmp_path / name)
    base = save_backbone(tmp_path / "base", max_position_embeddings=512)
    ways = {"new_tokens": "modules_to_save"} if config == "zero3" else {}
    recipe = {"config": f"{ROOT}/recipes/yelp/sft-llama2-7b.yaml", "base_model": base}
    launch("sft", tmp_path, config, **recipe, **SHORT, **ways)

    manifest = read_manifest(tmp_path / "sft")
    assert manifest["processes"] == 2 and manifest["settings"]["use_lora"] is True
    log = json.loads((tmp_path / "sft" / "log.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    assert {entry["eval_users"] for entry in log if "eval_recall@10" in entry} == {9.0}
    assert (tmp_path / "sft" / "model" / "adapter_config.json").is_file()
    split = Split.load(tmp_path / "data")
    lists = Recommender.from_pretrained(tmp_path / "sft" / "model").recommend([split.train["items"][0].to_list()], k=5)
    assert len({item.item_id for item in lists[0]}) == 5 and {i.item_id for i in lists[0]} <= set(
        split.items["item_id"]
    )


def test_preference_training_and_evaluation_go_on_from_an_adapter(smoke_run, tmp_path):
    for name in ("data", "embeddings", "scid"):
        shutil.copytree(smoke_run / name, tmp_path / name)
    base = save_backbone(tmp_path / "base", max_position_embeddings=512)
    launch("sft", tmp_path, None, config=f"{ROOT}/recipes/yelp/sft-llama2-7b.yaml", base_model=base, **SHORT)
    launch("sp_dpo", tmp_path, None, config=f"{ROOT}/recipes/smoke/sp_dpo.yaml", num_prompts=20, min_rows=5)
    curriculum = json.loads((tmp_path / "sp_dpo" / "curriculum.json").read_text())
    assert {stage["decision"] for stage in curriculum["stages"]} <= {"kept", "rolled back"}
    assert (tmp_path / "sp_dpo" / "model" / "adapter_config.json").is_file()
    launch("evaluate", tmp_path, None, config=f"{ROOT}/recipes/smoke/evaluate.yaml")
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert results["SFT"]["seen_allowed"]["users"] == results["SP-DPO easy"]["seen_allowed"]["users"] > 0
