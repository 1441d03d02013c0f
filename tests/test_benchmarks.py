"""Benchmarks start, and the one that is named like a module of the standard library stands in nobody's way."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from align3gr.data import Split
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.decoding import Recommender
from align3gr.evaluation import read_per_user
from tests.conftest import ROOT


def benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def token_speed():
    return benchmark("token_speed")


def test_the_standard_librarys_tokenize_is_found_from_the_folder_of_benchmarks():
    script = "import tokenize, inspect, json; print(json.dumps([tokenize.__file__, tokenize.tok_name[tokenize.NAME]]))"
    path = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); "
    output = subprocess.run([sys.executable, "-c", path + script], capture_output=True, text=True, check=True).stdout
    file, name = json.loads(output)
    assert "benchmarks" not in file and name == "NAME"


def test_tokenize_starts_as_a_script():
    command = [sys.executable, str(ROOT / "benchmarks" / "tokenize.py"), "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--full" in output and "--json" in output


def test_both_forms_of_the_u2i_loss_are_one(token_speed):
    users, items = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    known = torch.tensor([[False, True], [False, False]])
    # User 0 has item 1 masked, so nothing competes; user 1 scores 2 and 6.
    expected = np.log(np.exp(2) + np.exp(6)) - 6
    assert token_speed.looped_u2i(users, items, known).item() == pytest.approx(expected / 2, abs=1e-5)


def test_a_small_catalogue_is_assigned_unique_codes(token_speed):
    figures = token_speed.measure_catalogue(5000)
    assert figures["items"] == 5000 and figures["still_shared"] == 0
    assert figures["seconds"] >= figures["assign_seconds"] > 0 and figures["peak_mb"] > 0


def test_metrics_are_those_of_the_usual_loop_and_forty_times_faster():
    metrics = benchmark("metrics")
    # By hand: targets in the first and the third place, and one that is missing.
    lists, targets = [["7", "1", "2"], ["3", "4", "5"], ["1", "2", "3"]], ["7", "5", "9"]
    expected = {"recall@1": 1 / 3, "ndcg@1": 1 / 3, "mrr@1": 1 / 3}
    expected |= {"recall@5": 2 / 3, "ndcg@5": 1.5 / 3, "mrr@5": (1 + 1 / 3) / 3}
    for loop in (metrics.usual_loop, metrics.lean_loop):
        assert loop(lists, targets, (1, 5)) == pytest.approx(expected)
    figures = metrics.measure(Console(quiet=True), [(3_000, 20)], rounds=3)
    assert figures["max_difference"] < 1e-12
    assert figures["metrics_ratio"] > 40 and figures["columns_ratio"] > 40


def test_nats_of_a_target_by_hand_and_those_of_a_model_are_its_scores(smoke_run):
    lost = benchmark("lost_targets")
    # Items 0 and 1 share a first code; of scores 0, 0, log 2 item 0 has 1/4: 1/2 for the code and 1/2 behind it.
    first, behind = lost.nats_of_scores(
        torch.tensor([[0.0, 0.0, np.log(2)]]), torch.tensor([5, 5, 7]), torch.tensor([0, 2])
    )
    assert (first, behind) == pytest.approx((np.log(2), np.log(2) / 2))
    recommender = Recommender.from_pretrained(smoke_run / "sft" / "model", num_beams=80)
    codes = np.array(recommender.items["codes"].to_list())
    assert recommender.search.likelihood is not None
    user = recommender.users["codes"].to_list()[0]
    prompt = recommender.prompt_builder.prompt(user, codes[[3, 5]])
    levels = lost.nats_of_model(recommender, [prompt], codes[[7]])
    (found,) = recommender.recommend(
        [[recommender.items["item_id"][row] for row in (3, 5)]], k=80, user_ids=[recommender.users["user_id"][0]]
    )
    score = next(entry.score for entry in found if entry.item_id == recommender.items["item_id"][7])
    assert sum(levels) == pytest.approx(-score, abs=1e-4) and len(levels) == codes.shape[1]
    # All items at once, and the parts of a score.
    scores = lost.scores_of_model(recommender, [prompt], len(codes))
    assert scores[0, 7].item() == pytest.approx(score, abs=1e-4)
    first, behind = lost.parted(scores, torch.from_numpy(codes[:, 0]))
    assert first[0, 7].item() == pytest.approx(-levels[0], abs=1e-4)
    assert behind[0, 7].item() == pytest.approx(-sum(levels[1:]), abs=1e-4)


def test_parts_of_two_scores_are_exchanged():
    lost = benchmark("lost_targets")
    codes = torch.tensor([0, 0, 1, 1])
    histories, users = [np.array([1]), np.array([2])], np.array([0, 1])
    asked = EvaluationSet(users, histories, np.array([0, 2]), None, 20, 2, 4)
    scores = torch.tensor([[0.0, 5.0, 1.0, -1.0], [0.0, 0.0, 9.0, 0.0]])
    # Item 1 is in the first history, so 2 is first and 0 second; a target that is in the history is a miss.
    assert lost.masked_recall(scores, asked, 1) == 0.0 and lost.masked_recall(scores, asked, 2) == 0.5
    likes_first = torch.tensor([[3.0, 3.0, 0.0, 0.0]]).expand(2, -1)
    likes_even = torch.tensor([[1.0, 0.0, 1.0, 0.0]]).expand(2, -1)
    first, behind = lost.parted(likes_first, codes)[0], lost.parted(likes_even, codes)[1]
    assert (first + behind)[0].argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert torch.logsumexp(first + behind, -1).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_the_objectives_of_fine_tuning_learn_the_same_and_the_tree_from_fewer_tokens():
    sft = benchmark("sft")
    # Rows of 2, 3, 4 and 6 tokens within 8: two of at most 3, one of 4, one of 6.
    assert sft.token_batches([6, 2, 3, 4], 8) == [[1, 2], [3], [0]]
    # One user of each half of the users, in the order of their length.
    assert {len(sequence) for sequence in sft.draw([[1] * 9, [1], [1], [1] * 9], 2)} == {1, 9}
    drawn = np.random.default_rng(0).integers(0, 50, (6, 12)).tolist()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    figures, _ = sft.measure(drawn, ["a b c"] * 50, users=4, rounds=1, full=False, sizes=sizes)
    assert figures["tree_grad_diff"] < 1e-5 and figures["tree_token_ratio"] > 2
    assert figures["tree_ratio"] > 1 and figures["every_item_ratio"] > 1


@pytest.mark.long
def test_the_probe_of_copying_agrees_with_the_search(smoke_run):
    command = [sys.executable, str(ROOT / "benchmarks" / "copying.py"), "--run_dir", str(smoke_run), "--users", "40"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = json.loads(output.splitlines()[-1])
    assert figures["users"] == 40 and 0 < figures["probability_on_latest"] <= figures["probability_on_history"] < 1
    parts = figures["recall@10_of_discoveries"] * (1 - figures["returns"])
    parts += (figures["recall@10_of_returns"] or 0) * figures["returns"]
    assert figures["recall@10"] == pytest.approx(parts)
    for losses in figures["losses"].values():
        assert len(losses["discoveries"]) == 3 and min(losses["discoveries"]) > 0


@pytest.mark.long
def test_the_difficulty_benchmark_sees_what_is_hard_in_the_bucket_alone(smoke_run):
    command = [sys.executable, str(ROOT / "benchmarks" / "difficulty.py"), "--run_dir", str(smoke_run)]
    output = subprocess.run([*command, "--prompts", "150"], capture_output=True, text=True, check=True).stdout
    rows = json.loads(output.splitlines()[-1])["rows"]
    assert len(rows) == 2 * 3 * 3 and all(row["mean_rejected"] <= 20 for row in rows)
    even = {(row["measure"], row["bucket"]): row["accuracy"] for row in rows if row["source"] == "drawn evenly"}
    for measure in ("prefix", "cosine"):
        assert 1 > even[measure, "easy"] > even[measure, "hard"] > 0
    # A beam has no items that the policy finds improbable.
    beam = {(row["measure"], row["bucket"]): row["accuracy"] for row in rows if row["source"] == "best of the beam"}
    assert beam["cosine", "easy"] < even["cosine", "easy"]


@pytest.mark.long
def test_the_scaling_benchmark_measures_every_part_and_fits_its_growth(monkeypatch):
    scaling = benchmark("scaling")
    assert scaling.exponent([10, 100, 1000], [3.0, 300.0, 30000.0]) == pytest.approx(2)
    monkeypatch.syspath_prepend(ROOT)
    assert set(scaling.PARTS) == {"prepare", "tokenize", "trie", "decode"}
    assert scaling.trie(500, 0, 0)["trie_mb"] > 0 and scaling.decode(500, 0, 0)["users_per_s"] > 0
    assert scaling.tokenize(300, 200, 0)["codes_s"] > 0


@pytest.mark.long
def test_the_scaling_benchmark_prepares_all_that_it_wrote(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    figures = benchmark("scaling").run_part("prepare", (300, 200, 4000))
    assert figures["kept"] == 1 and figures["prepare_s"] > 0 and figures["prepare_peak_mb"] > 100


def test_ranks_behind_the_history_are_those_of_the_evaluation(smoke_run):
    fused = benchmark("history_first")
    places, frame = fused.places_of_latest(Split.load(smoke_run / "data")), read_per_user(smoke_run)
    behind = fused.ranks_behind(frame.filter(pl.col("system") == "SFT"), places)
    row = frame.filter(pl.col("system") == "five latest, then SFT")
    listed = row["rank_allowed"].fill_null(0).to_numpy()
    assert (behind > 0).any() and np.array_equal(np.where(behind <= row["list_length"][0], behind, 0), listed)
