"""The command line, as a person meets it: in a process of its own."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from align3gr import cli
from align3gr.cli.parser import COMMANDS, RECIPES
from align3gr.pipeline import STAGES
from tests.conftest import ROOT, SMOKE


def align3gr(*arguments, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "align3gr.cli", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


def lcrec(folder: Path, interactions: bytes | dict, items: dict | None = None) -> Path:
    folder.mkdir()
    items = items or {str(i): {"title": f"item {i}", "description": "thing"} for i in range(3)}
    (folder / "Shop.item.json").write_text(json.dumps(items))
    content = interactions if isinstance(interactions, bytes) else json.dumps(interactions).encode()
    (folder / "Shop.inter.json").write_bytes(content)
    return folder


def tables(folder: Path) -> Path:
    folder.mkdir()
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}).write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": ["a"], "title": ["A"], "text": ["A"]}).write_parquet(folder / "items.parquet")
    return folder


BAD = {
    "missing column": ("tables", tables, ["interactions", "timestamp"]),
    "unknown item": ("lcrec", lambda f: lcrec(f, {"u1": [0, 1, 7]}), ["Shop.inter.json", "u1", "7"]),
    "empty history": ("lcrec", lambda f: lcrec(f, {"u1": [0, 1, 2], "u2": []}), ["Shop.inter.json", "u2", "empty"]),
    "not UTF-8": ("lcrec", lambda f: lcrec(f, b'{"u\xff": [0, 1]}'), ["Shop.inter.json", "UTF-8"]),
    "truncated JSON": ("lcrec", lambda f: lcrec(f, b'{"u1": [0, 1'), ["Shop.inter.json", "line 1"]),
    "no such files": ("movielens-100k", lambda f: lcrec(f, {"u1": [0]}), ["u.genre", "no such file"]),
    "no such folder": ("lcrec", lambda f: f / "nowhere", ["nowhere"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_that_names_it_and_leaves_nothing(case, tmp_path):
    kind, make, words = BAD[case]
    source = make(tmp_path / "raw")
    done = align3gr("prepare", "--run_dir", tmp_path / "run", "--format", kind, "--source", source, "--core", 1)
    assert done.returncode == 2, done.stderr
    *log, error = done.stderr.strip().splitlines()
    assert error.startswith("error: ") and all(line.endswith("prepare: started") for line in log), done.stderr
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["prepare", "--run_dir", "x", "--format", "lcrec", "--sauce", "y"],
            ["unknown options in the command line: --sauce y; there is no --sauce; did you mean '--source'?"],
        ),
        (["prepare", "--run_dir", "x", "--format", "cvs"], ["--format", "cvs", "lcrec"]),
        (["prepare", "--run_dir", "x", "--format", "lcrec"], ["source"]),
        (["run", "--config", "nothing.yaml"], ["nothing.yaml", "not found"]),
        (["embed", "--config", "nothing.yaml"], ["nothing.yaml"]),
        (["embed", "--config"], ["--config: needs the path"]),
        (["embed", "--config=nothing.yaml"], ["nothing.yaml"]),
        (["prepare", "--run_dir", "x", "--format", "lcrec", "--source", "$ALIGN3GR_DATA/no"], ["ALIGN3GR_DATA"]),
        (["embed", "--run_dir", "nowhere"], ["nowhere/data/items.parquet", "not found"]),
        (["sft", "--accelerate_config", "zero9"], ["zero9", "cpu_ddp"]),
        (["results", "nowhere", "--output", "r.md"], ["nowhere/evaluation"]),
        (["scid-report", "--codes", "no.parquet", "--output", "r"], ["no.parquet: not found"]),
        (["scid-report", "--output", "r"], ["--codes"]),
        (["recommend", "--model", "m", "--output", "r"], ["--input"]),
        (["recommend", "--model", "m", "--input", "no.parquet", "--output", "r"], ["no.parquet: not found"]),
    ],
)
def test_wrong_options_are_named(arguments, words, tmp_path):
    done = align3gr(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words) and "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_with_unknown_keys_or_stages_is_refused(tmp_path):
    (tmp_path / "pipeline.yaml").write_text("stages: [prepare]\nstage: 1\n")
    assert "expected the option 'stages'" in align3gr("run", "--config", tmp_path / "pipeline.yaml").stderr
    (tmp_path / "pipeline.yaml").write_text("stages: [cook]\n")
    assert "unknown stage 'cook'" in align3gr("run", "--config", tmp_path / "pipeline.yaml").stderr
    (tmp_path / "pipeline.yaml").write_text("stages: [embed]\n")
    assert "embed.yaml: not found" in align3gr("run", "--config", tmp_path / "pipeline.yaml").stderr


def said(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and error of a command in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return (end.value.code or 0, *capsys.readouterr())


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_tells_the_story(capsys, arguments):
    status, text, _ = said(capsys, *arguments)
    assert status == 0 and "synthetic" in text
    commands = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    places = [commands.index(name) for name in ("run", *STAGES, "serve", "results", "doctor")]
    assert places == sorted(places)
    assert set(RECIPES) < set(commands) and set(COMMANDS) <= set(commands)


def test_every_command_has_options_and_shows_its_defaults(capsys):
    for command in (name for name in COMMANDS if name not in RECIPES):
        status, text, _ = said(capsys, command, "--help")
        assert status == 0 and text.startswith(f"usage: align3gr {command} ")
    for option, default in (("--port", "8000"), ("--max_wait_ms", "5.0"), ("--event_log", "no log")):
        _, text, _ = said(capsys, "serve", "--help")
        described = " ".join(text[text.rindex(f"  {option} ") :].split())
        assert re.match(rf"{option} \w+ [^()]*\(default: {default}\)", described), described
    assert "(default: 10)" in said(capsys, "recommend", "--help")[1]


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_of_a_recipe_is_described(name, capsys, monkeypatch):
    script = ROOT / "recipes" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setenv("COLUMNS", "400")  # an option and its text on one line
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    usage, _, story, _, _, *options = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and usage == f"usage: align3gr {name} [--config FILE] [options]"
    assert story.startswith(ast.get_docstring(ast.parse(script.read_text())).split("\n")[0])
    described = [line for line in options if line.startswith("   ")]
    bare = [
        line
        for line, after in zip(options, [*options[1:], ""], strict=True)
        if line.startswith("  -") and not re.search(r"\S {2,}\w", line) and after not in described
    ]
    assert bare == [] and any("--config FILE" in line for line in options)
    assert not [line for line in options if "(default: None)" in line]


@pytest.mark.parametrize(
    ("name", "option", "text"),
    [
        ("prepare", "--num_users NUM_USERS", "users. (default: 2000)"),
        ("scid", "--gamma GAMMA", "weights of Eq. (2) in phase 2 (phase 1 is alpha 1, gamma 0)"),
        ("sft", "--accelerate_config NAME", "launches it through accelerate: a file, or one of cpu_ddp, ddp"),
    ],
)
def test_the_help_of_a_stage_names_its_defaults_and_launchers(name, option, text):
    done = align3gr(name, "--help")
    assert done.returncode == 0 and done.stderr == ""
    described = " ".join(done.stdout[done.stdout.index(option) :].split())
    assert text in described[:300]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv", "m"], "align3gr: there is no command 'serv'; did you mean 'serve'?"),
        (["spdpo"], "align3gr: there is no command 'spdpo'; did you mean 'sp_dpo'?"),
        (["xyz"], "align3gr: there is no command 'xyz'; align3gr --help lists them"),
        # Processes that are started with an option that was not taken out of their words would start others.
        (
            ["recommend", "--model", "m", "--input", "i", "--output", "o", "--accelerate_conf", "cpu_ddp"],
            "unrecognized arguments: --accelerate_conf cpu_ddp; did you mean '--accelerate_config'?",
        ),
        (["--hlep"], "align3gr: unrecognized arguments: --hlep; did you mean '--help'?"),
        (
            ["serve", "m", "--prot", "1"],
            "align3gr serve: unrecognized arguments: --prot 1; did you mean '--port'?",
        ),
        (
            ["recommend", "--modle=m", "--input", "i", "--output", "o"],
            "align3gr recommend: the following arguments are required: --model; there is no --modle; did you mean "
            "'--model'?",
        ),
        (["serve"], "align3gr serve: the following arguments are required: model; see align3gr serve --help"),
        (["serve", "m", "--port", "99999"], "--port: got 99999, expected 0 to 65535"),
        (["serve", "m", "--num_beams", "some"], "invalid number, or all value: 'some'"),
    ],
)
def test_wrong_words_end_in_one_line_that_suggests_the_right_one(capsys, arguments, message):
    status, output, error = said(capsys, *arguments)
    assert status == 2 and output == "" and error.count("\n") == 1
    assert error.startswith("error: ") and message in error


def test_serving_without_its_extra_says_what_to_install(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "align3gr.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # importing it fails
    status, _, error = said(capsys, "serve", "m")
    assert status == 2 and error == "error: serve: uvicorn is not installed; pip install 'align3gr[serve]'\n"


def test_run_finds_the_recipes_of_the_package_and_stops_at_a_failing_stage(tmp_path):
    done = align3gr(
        "run", "--config", "recipes/smoke/pipeline.yaml", "--run_dir", "r", "--stages", "prepare", "scid", cwd=tmp_path
    )
    assert done.returncode == 2
    assert (tmp_path / "r" / "data" / "manifest.json").is_file()
    assert "stopped at stage 'scid'" in done.stderr and "embeddings" in done.stderr
    assert str(SMOKE / "prepare.yaml") in done.stdout


def test_a_stage_finds_the_recipes_of_the_package(tmp_path):
    done = align3gr("prepare", "--config", "recipes/smoke/prepare.yaml", "--run_dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "data" / "manifest.json").is_file()
    # A file of the working folder comes first.
    (tmp_path / "recipes" / "smoke").mkdir(parents=True)
    (tmp_path / "recipes" / "smoke" / "prepare.yaml").write_text("format: lcrec\nmine: 1\n")
    done = align3gr("prepare", "--config=recipes/smoke/prepare.yaml", "--run_dir", "r", cwd=tmp_path)
    assert done.returncode == 2 and "unknown options in the config file: --mine 1" in done.stderr


def test_results_of_runs_become_one_page(smoke_run, tmp_path):
    run_dir = tmp_path / "market"
    for name in ("data", "evaluation"):
        shutil.copytree(smoke_run / name, run_dir / name)
    (run_dir / "table4").mkdir()
    (run_dir / "table4" / "table.md").write_text("| SEQ | 0.1 |\n")
    done = align3gr("results", run_dir, "--output", tmp_path / "results.md")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "results.md").read_text()
    assert "## market" in page and "| SFT |" in page and "200 users" in page and "torch" in page
    assert page.index("### table4") < page.index("| SEQ | 0.1 |")


def test_scid_report_prints_and_writes_the_numbers(tmp_path):
    index = {"1": ["<a_0>", "<b_1>"], "2": ["<a_0>", "<b_1>"], "3": ["<a_2>", "<b_0>"]}
    (tmp_path / "Shop.index.json").write_text(json.dumps(index))
    done = align3gr("scid-report", "--codes", tmp_path / "Shop.index.json", "--output", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "2 (66.7%)" in done.stdout and "perplexity" in done.stdout
    assert json.loads((tmp_path / "report" / "scid-report.json").read_text())["collisions"]["items"] == 2
    assert (tmp_path / "report" / "codebook_usage.png").is_file()


def test_recommend_serves_a_file_from_a_model_folder(smoke_run, tmp_path):
    model, train = smoke_run / "sp_dpo" / "model", smoke_run / "data" / "train.parquet"
    pl.read_parquet(train).head(12).write_parquet(tmp_path / "in.parquet")
    items = pl.read_parquet(smoke_run / "data" / "items.parquet")["item_id"].head(9).to_list()
    (tmp_path / "items.txt").write_text("\n".join(items))
    common = ["recommend", "--model", model, "--input", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet"]
    done = align3gr(*common, "--k", 4, "--allowed", tmp_path / "items.txt", "--batch_size", 5, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "lists for 12 users" in done.stdout and "it/s" not in done.stderr  # no library draws a bar into a pipe
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.height == 48 and set(out["item_id"]) <= set(items)
    done = align3gr(*common, "--k", 4, "--num_beams", "all", "--batch_size", "auto", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (plain := pl.read_parquet(tmp_path / "out.parquet")).height == 48
    done = align3gr(*common, "--k", 4, "--history_cache", 0.95, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    known = {
        (row["user_id"], item) for row in pl.read_parquet(tmp_path / "in.parquet").to_dicts() for item in row["items"]
    }

    def shown(lists: pl.DataFrame) -> int:
        return sum(pair in known for pair in lists.select("user_id", "item_id").rows())

    assert shown(pl.read_parquet(tmp_path / "out.parquet")) > shown(plain)
    assert out["user_id"].unique(maintain_order=True).to_list() == pl.read_parquet(train)["user_id"][:12].to_list()
    pl.DataFrame({"items": [["no such item"]]}).write_parquet(tmp_path / "in.parquet")
    for options, words in (
        (["--k", 21], ["--k 21", "--num_beams=20"]),
        ([], ["in.parquet: row 0", "'no such item'"]),
        (["--allowed", tmp_path / "no.txt"], ["no.txt: not found"]),
        (["--history_cache", 1.5], ["history_cache: got 1.5, expected a share of 0 (off) to below 1"]),
        (["--num_beams", "every"], ["invalid number, or all value: 'every'"]),
    ):
        done = align3gr(*common, "--device", "cpu", *options)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        errors = [line for line in done.stderr.splitlines() if "error: " in line]
        assert len(errors) == 1 and all(word in errors[0] for word in words), done.stderr
