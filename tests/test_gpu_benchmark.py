"""The measurements for a GPU run in their tiny form, answer in the promised form, and fail alone."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch

from benchmarks.gpu import __main__ as runner
from benchmarks.gpu.child import run_part
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.precision import overlap, score_differences
from benchmarks.gpu.preference import Steps, with_lora
from benchmarks.gpu.repack import repack
from benchmarks.gpu.setting import LLAMA2_7B, Setting, relative_distance
from benchmarks.gpu.targets import PARTS, Row
from benchmarks.softmax_dpo import build_rows
from tests.conftest import ROOT

# What a CPU cannot tell, and what is not worth its time in the tiny form.
GPU_ALONE = {"peak_gb", "memory_ratio", "shared_peak_gb", "naive_one_prompt_gb"}
GPU_ALONE |= {"mfu_compiled", "tokens_per_s_compiled", "rows_compiled"}
on_the_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the tiny form runs there")


def tiny_figures(name: str) -> dict:
    result = run_part(name, tiny=True)
    assert (result["status"], result["reason"], result["notes"]) == ("done", "", {})
    assert set(result["figures"]) == set(PARTS[name].rows) - GPU_ALONE
    return result["figures"]


@on_the_cpu
def test_the_search_is_faster_than_generate_and_keeps_its_list_with_a_cached_template():
    figures = tiny_figures("beam")
    assert figures["template_overlap"] == 1.0 and 0 < figures["trie_share"] < 1
    assert figures["ratio"] > 1 and figures["best_batch"] in (1, 2)
    assert figures["latency_ms"] > 0 and figures["users_per_s"] > figures["generate_users_per_s"]


@on_the_cpu
def test_the_shared_prompt_has_the_loss_and_gradients_of_full_sequences_in_less_time():
    figures = tiny_figures("preference")
    assert figures["loss_difference"] < 1e-5 and figures["gradient_difference"] < 1e-5
    # 7 sequences of 24 + 3 tokens; or the prompt and 3 nodes for each of 7 completions.
    assert figures["token_limit"] == pytest.approx(7 * 27 / (24 + 21))
    assert figures["vs_naive"] > 1 and figures["merged_gain"] > 0 and figures["vs_sft"] > 0


@on_the_cpu
def test_fine_tuning_reports_a_share_of_the_machine():
    figures = tiny_figures("fine_tuning")
    assert figures["rows"] == 2 and figures["tokens_per_s"] > 0
    # Of this machine's own GEMM rate, which the products of a tiny model do not reach.
    assert 0 < figures["mfu"] < 1.5 and 0 < figures["mfu_fp32_adapter"] < 1.5


@on_the_cpu
def test_fp32_agrees_with_the_plain_ways_and_bf16_nearly():
    figures = tiny_figures("precision")
    assert figures["same_as_generate"] == 1.0 and figures["score_difference_generate"] < 1e-4
    for name in ("fp32_loss_difference", "fp32_gradient_difference", "fp32_merged_difference"):
        assert figures[name] < 1e-5
    assert 0.8 < figures["overlap_20"] <= 1 and 0 < figures["logp_max_difference"] < 0.1
    assert figures["logp_mean_difference"] < figures["logp_max_difference"]


@on_the_cpu
def test_tokens_are_trained_and_assigned():
    figures = tiny_figures("tokens")
    assert 0.5 < figures["assign_bf16_same"] < 1
    assert figures["assign_10m_s"] == pytest.approx(1e7 / figures["assign_items_per_s"])
    assert all(value > 0 for value in figures.values())


def test_the_shape_is_that_of_llama2_7b():
    h, inner, layers = (LLAMA2_7B[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    published = 6_738_415_616  # with 32,000 words; 768 SCID tokens more in both embeddings
    count = 2 * LLAMA2_7B["vocab_size"] * h + layers * (4 * h * h + 3 * h * inner + 2 * h) + h
    assert count == published + 2 * 768 * h


def test_full_sequences_in_uneven_parts_have_the_loss_of_all_at_once():
    setting = Setting(True, torch.device("cpu"))
    model = with_lora(setting.llama())
    rows = build_rows(model.config.vocab_size, False, 4, 6, 2)
    losses = [float(Steps(model, setting, rows, together).naive()) for together in (1, 3, 4)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_overlap_and_distances_by_hand():
    ours, theirs = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4, 9, 1, 8]])
    assert overlap(ours, theirs) == 0.5
    scores, others = torch.tensor([[0.0, -1.0, -2.0, -3.0]]), torch.tensor([[-2.5, -3.0, -0.25, -4.0]])
    assert score_differences(ours, scores, theirs, others).tolist() == [0.25, 0.5]  # items 1 and 4
    assert relative_distance([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 4.0])]) == 0.75


def test_a_target_is_reached_from_the_side_it_says():
    assert Row("a", 12).reached(12.0) and not Row("a", 12).reached(11.9)
    assert Row("a", 20, "at most").reached(19.0) and not Row("a", 20, "at most").reached(21.0)
    assert Row("a").reached(1.0) is None


@on_the_cpu
def test_without_a_gpu_the_whole_size_says_so():
    with pytest.raises(RuntimeError, match="no GPU here; --tiny"):
        Setting.here(tiny=False)


def test_a_failing_measurement_leaves_the_others_and_its_reason(tmp_path):
    figures = Figures(tmp_path / "part.json")
    figures.record(first=1.5, nothing=None)
    with figures.attempt("second"):
        raise RuntimeError("out of memory\nlong tail")
    kept = json.loads((tmp_path / "part.json").read_text())
    assert kept == {"figures": {"first": 1.5}, "notes": {"second": "RuntimeError: out of memory"}}


def test_a_part_that_is_cut_short_keeps_its_figures(tmp_path):
    (tmp_path / "beam.json").write_text(json.dumps({"figures": {"ratio": 14.0}, "notes": {}}))
    result = runner.run_child("beam", 0.3, True, tmp_path, lambda so_far: None)
    assert result["status"] == "out of time" and result["figures"] == {"ratio": 14.0}
    assert result["reason"] == "not finished after 0 s" and result["seconds"] < 5


def test_a_part_whose_process_dies_is_a_failure_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    result = runner.run_child("beam", 60, True, tmp_path, lambda so_far: None)
    assert (result["status"], result["reason"]) == ("failed", "its process ended with 1")


def test_the_table_shows_targets_reasons_and_what_did_not_run(tmp_path):
    shown = {"figures": {"ratio": 14.25, "latency_ms": 33.0}, "notes": {"trie": "KeyError: 1"}, "reason": ""}
    cut = {"figures": {}, "notes": {}, "reason": "No module named 'trl'", "status": "skipped", "seconds": 1.0}
    results = {"beam": shown | {"status": "incomplete", "seconds": 61.0}, "yelp": cut}
    runner.write(results, tmp_path, tiny=False)
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert "| over `generate` + `prefix_allowed_tokens_fn`, 16 prompts | 14.2 | at least 12 | yes |" in lines
    assert "| one user, ms | 33.0 | at most 20 | no |" in lines
    assert "- no figures of trie: KeyError: 1" in lines
    assert "`yelp`, skipped: No module named 'trl', 1 s" in lines and lines.count("not run") == 4
    told = json.loads((tmp_path / "gpu.json").read_text())["parts"]["beam"]
    assert told["targets"]["ratio"] == {"target": 12, "better": "at least", "reached": True}


def test_a_repacked_wheel_holds_the_same_files_in_less_space(tmp_path):
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", compression=zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.py", "".join(f"x{n} = {n}\n" for n in range(20_000)))
        script = zipfile.ZipInfo("a-1.data/scripts/run")
        script.external_attr = 0o755 << 16
        packed.writestr(script, "run")
    before, size = (
        {e.filename: (e.CRC, e.external_attr) for e in zipfile.ZipFile(wheel).infolist()},
        wheel.stat().st_size,
    )
    repack(wheel)
    after = {e.filename: (e.CRC, e.external_attr) for e in zipfile.ZipFile(wheel).infolist()}
    assert after == before and wheel.stat().st_size < size and zipfile.ZipFile(wheel).testzip() is None


@pytest.mark.long
@on_the_cpu
def test_one_command_runs_every_part(tmp_path):
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--tiny", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    figures = json.loads(output.splitlines()[-1])
    told = json.loads((tmp_path / "gpu-tiny.json").read_text())
    assert {name: part["status"] for name, part in told["parts"].items()} == dict.fromkeys(PARTS, "done")
    assert told["parts"]["beam"]["environment"]["versions"]["torch"] == torch.__version__
    for name, part in PARTS.items():
        assert set(figures[name]) == set(part.rows) - GPU_ALONE
    assert 0 < figures["yelp"]["ndcg_10"] <= figures["yelp"]["recall_10"] <= 1
    assert figures["yelp"]["evaluation_users_per_s"] > 0
