"""Self-play put together: sources of candidates, validation, and the recipe with options of its stages."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from datasets import load_from_disk

from align3gr.data import Split
from align3gr.decoding import Recommender
from align3gr.dpo.curriculum import stage_seed
from align3gr.dpo.curriculum_stage import read_stages
from align3gr.dpo.self_play_arguments import SelfPlayArguments
from align3gr.dpo.self_play_run import SelfPlay, policy_validation
from align3gr.errors import InputError
from align3gr.evaluation import evaluate_policy
from align3gr.scid import load_codes
from tests.conftest import SMOKE

STAGES = read_stages(["easy", "medium", "hard"], 12)


@pytest.fixture
def play(smoke_run, tmp_path):
    """Self-play with the model of the smoke run, in a folder of that name."""

    def build(name, **options):
        recommender = Recommender.from_pretrained(smoke_run / "sft" / "model")
        arguments = SelfPlayArguments(run_dir=str(smoke_run), candidates=30, **options)
        split = Split.load(smoke_run / "data")
        return SelfPlay(recommender, split, smoke_run / "scid", arguments, 5, tmp_path / name, progress=False)

    return build


def candidates(folder):
    return {path.parent.name: np.load(path) for path in folder.glob("candidates/*/*.npy")}


def test_the_offline_pool_differs_from_self_play_in_the_policy_alone(play, tmp_path):
    pool, live = play("pool", candidates_from="start"), play("live")
    policy = pool.recommender.model
    pool.generate(policy, STAGES, 7)
    first = [each.make_rows(policy, STAGES[0], stage_seed(7, 0)) for each in (pool, live)]
    assert first[0] == first[1]
    torch.manual_seed(0)
    with torch.no_grad():  # a later policy
        for weight in policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    later = [each.make_rows(policy, STAGES[1], stage_seed(7, 1)).rows for each in (pool, live)]
    places = [{(row["user_row"], row["position"]) for row in rows} for rows in later]
    assert len(places[0] & places[1]) >= 9  # those without items of this difficulty are dropped
    of_pool, of_live = candidates(tmp_path / "pool"), candidates(tmp_path / "live")
    assert sorted(of_pool) == ["easy", "hard", "medium"] and sorted(of_live) == ["easy", "medium"]
    assert (of_pool["medium"] != of_live["medium"]).any() and later[0] != later[1]


def test_sampling_draws_other_candidates_each_stage(play, tmp_path):
    for name in ("once", "again"):
        self_play = play(name, candidates_by="sampling", temperature=2.0)
        self_play.generate(self_play.recommender.model, STAGES, 7)
    once, again = candidates(tmp_path / "once"), candidates(tmp_path / "again")
    assert all((once[name] == again[name]).all() for name in ("easy", "medium", "hard"))
    settings = [json.loads((tmp_path / f"once/candidates/{name}/settings.json").read_text()) for name in once]
    assert {each["search"] for each in settings} == {"StochasticBeamSearch"}
    assert {each["temperature"] for each in settings} == {2.0} and len({each["seed"] for each in settings}) == 3


def test_cosines_with_the_chosen_rise_with_the_difficulty(play):
    self_play = play("cosine", difficulty_measure="cosine")
    made = [self_play.make_rows(self_play.recommender.model, stage, stage_seed(7, 0)) for stage in STAGES]
    easy, medium, hard = (statistics["mean_cosine"] for _, statistics in made)
    assert easy + 0.1 < medium < hard - 0.1
    assert all(statistics["dropped"] == 0 for _, statistics in made)


def test_difficulties_are_checked_before_any_work(play):
    play("a").check(read_stages(["mixed", "random", "hard"], 5))
    with pytest.raises(InputError, match="difficulty='hrad' is unknown; expected one of easy, medium, hard, mixed"):
        play("b").check(read_stages(["easy", "hrad"], 5))


def test_validation_gives_all_columns(smoke_run):
    recommender = Recommender.from_pretrained(smoke_run / "sft" / "model")
    split, scid = Split.load(smoke_run / "data"), smoke_run / "scid"
    found = policy_validation(recommender, split, scid, num_beams=10)(recommender.model)
    codes = [load_codes(scid / f"{name}_codes.parquet", f"{name}_id", getattr(split, f"{name}s")[f"{name}_id"])
             for name in ("item", "user")]  # fmt: skip
    columns = evaluate_policy(recommender.search, recommender.prompt_builder, split.histories("validation"), *codes)
    assert found["users"] == columns["seen_allowed"]["users"] == 200
    for name, metrics in columns.items():
        prefix = "" if name == "seen_allowed" else f"{name}/"
        assert {f"{prefix}{metric}" for metric in metrics} <= set(found)
    # Ten beams in place of twenty find nearly the same: rounding differs between processors, and four of 127 hits.
    for name, column in (("recall@10", "seen_allowed"), ("discoveries/recall@10", "discoveries")):
        assert found[name] == pytest.approx(columns[column]["recall@10"], abs=0.05)


def test_recipe_with_options_of_its_stages(smoke_run, run_stage, tmp_path):
    for name in ("data", "scid", "sft"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    settings = yaml.safe_load((SMOKE / "sp_dpo.yaml").read_text()) | {
        "stages": ["mixed", {"again": {"difficulty": "random", "num_prompts": 20, "beta": 0.2}}],
        "candidates_from": "start",
        "part_prompts": 32,
        "metric": "discoveries/recall@10",
        "validate_steps": 2,
        "stop_tolerance": 1.0,
    }
    (tmp_path / "sp_dpo.yaml").write_text(yaml.safe_dump(settings))
    run_stage("sp_dpo", tmp_path / "run", config=tmp_path / "sp_dpo.yaml")
    folder = tmp_path / "run" / "sp_dpo"
    record = json.loads((folder / "curriculum.json").read_text())
    mixed, again = record["stages"]
    assert [stage["beta"] for stage in record["settings"]["stages"]] == [None, 0.2]
    assert (mixed["statistics"]["prompts"], again["statistics"]["prompts"]) == (48, 20)
    assert record["best_value"] == max(
        entry["metrics"]["discoveries/recall@10"] for entry in (record["initial"], mixed, again)
    )
    assert [entry["step"] for entry in mixed["validations"]] == [2] and mixed["stopped_at"] is None
    assert [load_from_disk(folder / name / "rows" / "dataset").num_rows for name in ("0-mixed", "1-again")] == [
        mixed["rows"],
        again["rows"],
    ]
    assert sorted(path.name for path in (folder / "candidates" / "mixed").iterdir()) == [
        "000000.npy",
        "000001.npy",
        "settings.json",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 2.0}, "temperature: has no effect on a beam search"),
        ({"stop_tolerance": 0.1}, "stop_tolerance: needs evaluations inside a stage"),
        ({"candidates": 0}, "candidates: got 0, expected at least 1"),
        ({"num_beams": 5}, "num_beams: got 5, expected at least 10"),
        ({"validate_steps": -1}, "validate_steps: got -1, expected 0 or more"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SelfPlayArguments(run_dir="run", **options)
