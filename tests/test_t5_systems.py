"""TIGER, LETTER-TIGER, P5-SemID and P5-CID through the recipes, on the smoke market."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from align3gr import InputError, Recommender
from align3gr.baselines import Popularity
from align3gr.data import Split
from align3gr.evaluation import evaluate_policy
from align3gr.pipeline import read_manifest
from align3gr.scid import load_codebook_sizes, load_codes
from tests.conftest import SMOKE


@pytest.fixture(scope="session")
def embedded(tmp_path_factory, run_stage):
    """A smoke run up to its embeddings. Read only."""
    run_dir = tmp_path_factory.mktemp("t5")
    for name in ("prepare", "embed"):
        run_stage(name, run_dir)
    return run_dir


@pytest.fixture
def system(embedded, tmp_path, run_stage):
    """Runs the stages of a system: `system("tiger", "scid", "sft")` gives its run folder."""

    def run(name, *stages, **options):
        run_dir = tmp_path / name
        if not run_dir.exists():
            shutil.copytree(embedded, run_dir)
        for stage in stages:
            run_stage(stage, run_dir, SMOKE / f"{stage}-{name}.yaml", **options)
        return run_dir

    return run


def codes_of(run_dir):
    return np.stack(pl.read_parquet(run_dir / "scid" / "item_codes.parquet")["codes"].to_list())


def test_tigers_stages_fit_together(system):
    run_dir = system("tiger", "scid")
    codes, sizes = codes_of(run_dir), load_codebook_sizes(run_dir / "scid" / "codebooks.json")
    assert codes.shape == (80, 4) and len(np.unique(codes, axis=0)) == 80
    assert sizes == ([8, 8, 8, int(codes[:, 3].max()) + 1], [16])
    config = json.loads((run_dir / "scid" / "model" / "config.json").read_text())
    assert config["item_rqvae"]["output_dim"] == 16  # the width of the texts; the others are not reconstructed
    system("tiger", "sft", tasks=["sequential=0.05"], num_train_epochs=1)
    settings = read_manifest(run_dir / "sft")["settings"]
    assert settings["architecture"] == "t5" and settings["loss_temperature"] == 1.0
    recommender = Recommender.from_pretrained(run_dir / "sft" / "model")
    split = Split.load(run_dir / "data")
    [found] = recommender.recommend([split.train["items"][0].to_list()], [split.users["user_id"][0]], k=5)
    assert len({each.item_id for each in found}) == 5
    with pytest.raises(InputError, match="objective: got 'tree'"):
        system("tiger", "sft", objective="tree")


def test_letters_regulariser_sees_what_its_encoder_does_not(system):
    with_it = codes_of(system("letter-tiger", "scid"))
    assert len(np.unique(with_it, axis=0)) == 80
    shutil.rmtree(system("letter-tiger") / "scid")
    without = codes_of(system("letter-tiger", "scid", contrastive_weight=0))
    assert not np.array_equal(with_it, without)


@pytest.mark.parametrize("name", ["p5-semid", "p5-cid"])
def test_p5_needs_neither_embeddings_nor_a_model(name, system):
    run_dir = system(name)
    shutil.rmtree(run_dir / "embeddings")
    system(name, "scid")
    codes = codes_of(run_dir)
    assert len(np.unique(codes, axis=0)) == 80
    assert len(np.unique(codes[:, :-1], axis=0)) < 80  # the last code is a number within a group
    assert not (run_dir / "scid" / "model").exists()
    assert set(read_manifest(run_dir / "scid")["inputs"]) == {f"data/{n}.parquet" for n in ("items", "users", "train")}
    assert json.loads((run_dir / "scid" / "report.json").read_text())["prefix_lift"] > 1


@pytest.mark.long
def test_tiger_recommends_better_than_popularity(system):
    run_dir = system("tiger", "scid", "sft")
    split = Split.load(run_dir / "data")
    questions = split.histories("test")
    recommender = Recommender.from_pretrained(run_dir / "sft" / "model")
    items, users = (
        load_codes(run_dir / "scid" / f"{side}_codes.parquet", f"{side}_id", table[f"{side}_id"])
        for side, table in (("item", split.items), ("user", split.users))
    )
    found = evaluate_policy(recommender.search, recommender.prompt_builder, questions, items, users)
    popular = Popularity().fit(split.train_sequences(), len(split.items)).rank(questions.histories, 10, False)
    hits = popular == questions.targets[:, None]
    recall, ndcg = hits.any(axis=1).mean(), (hits / np.log2(np.arange(10) + 2)).sum(axis=1).mean()
    columns = found["seen_allowed"]
    # With other seeds 1.19 to 1.28 of it, and NDCG 1.18 to 1.31: there are 200 users.
    assert columns["recall@10"] > 1.1 * recall and columns["ndcg@10"] > 1.1 * ndcg, (columns, recall, ndcg)
