"""Tokens of the Hub stand in no log, manifest, card or error, wherever they came from."""

import shutil
import sys

import pytest

from align3gr.errors import InputError
from align3gr.masking import words_without_tokens
from align3gr.pipeline import read_manifest
from align3gr.recipe import read_config
from tests.conftest import ROOT, SMOKE
from tests.launching import run

SECRET = "hf_5ecretOfTheTest"


@pytest.mark.parametrize("option", ["--hub_token", "--hub-token", "--hub_tok", "--hub-t"])
@pytest.mark.parametrize("value", [SECRET, "of-another-form"])
def test_the_value_of_the_option_is_masked_however_it_is_spelt(option, value):
    assert words_without_tokens([option, value, "--lr", "1"]) == [option, "***", "--lr", "1"]
    assert words_without_tokens([f"{option}={value}", "x"]) == [f"{option}=***", "x"]


def test_other_options_of_like_names_keep_their_values():
    words = [
        "--hub_model_id",
        "me/x",
        "--push_to_hub",
        "true",
        "--eos_token",
        "</s>",
        "--hub_",
        "x",
        "hf",
        "self_made",
    ]
    assert words_without_tokens(words) == words


def test_a_file_that_is_no_yaml_is_named_without_its_token(tmp_path):
    (tmp_path / "sft.yaml").write_text(f"hub_token: {SECRET}: [\n")
    with pytest.raises(InputError, match="no valid YAML") as caught:
        read_config(tmp_path / "sft.yaml")
    assert SECRET not in str(caught.value)


WAYS = {
    "words": (["--hub-tok", SECRET], ""),
    "file": ([], f"hub_token: {SECRET}\n"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_stage_that_was_given_a_token_leaves_it_nowhere(way, smoke_run, tmp_path):
    pytest.importorskip("tensorboard")
    words, lines = WAYS[way]
    for name in ("data", "scid"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    settings = (SMOKE / "sft.yaml").read_text().replace("report_to: none\n", "")
    (tmp_path / "sft.yaml").write_text(settings + lines)
    command = [sys.executable, ROOT / "recipes" / "sft.py", "--config", tmp_path / "sft.yaml", *words]
    command += ["--run_dir", tmp_path / "run", "--max_steps", 2, "--report_to", "tensorboard"]
    status, printed = run(command, tmp_path / "run" / "output.txt", HF_TOKEN=SECRET, HF_HUB_OFFLINE="1")
    assert status == 0 and SECRET not in printed, printed[-3000:]
    assert read_manifest(tmp_path / "run" / "sft")["command"].count("***") == len(words) / 2
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_an_option_that_is_misspelt_is_named_without_what_follows_it(tmp_path):
    command = [sys.executable, ROOT / "recipes" / "sft.py", "--hub_tokn", SECRET, "--run_dir", tmp_path / "run"]
    status, printed = run(command, tmp_path / "output.txt")
    assert status == 2 and "there is no --hub_tokn; did you mean '--hub_token'" in printed and SECRET not in printed
