"""Nothing that is saved or loaded can run code; see docs/safety.md."""

import ast

import numpy as np
import polars as pl
import pytest

from align3gr import Recommender
from tests.conftest import ROOT

# Names that would run code from data or from elsewhere.
REFUSED_NAMES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "eval", "exec"}
REFUSED_CALLS = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("os", "system")}
SAFE = {".safetensors", ".json", ".parquet", ".arrow", ".npy", ".md", ".jinja", ".html"}


def _refused(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in REFUSED_NAMES]
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in REFUSED_NAMES:
                found.append(called.id)
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                refused = (called.value.id, called.attr) in REFUSED_CALLS and not _tensors_only(node)
                found += [called.attr] if refused else []
            found += [k.arg for k in node.keywords if k.arg in ("trust_remote_code", "allow_pickle", "shell")]
    return found


def _tensors_only(call: ast.Call) -> bool:
    """`torch.load(..., weights_only=True)` opens tensors and plain values, and nothing that runs."""
    return any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)


def test_the_package_runs_no_code_from_data():
    assert _refused(ast.parse("import pickle")) == ["pickle"] and _refused(ast.parse("torch.load(x)")) == ["load"]
    assert _refused(ast.parse("f(a, trust_remote_code=True)")) == ["trust_remote_code"]
    assert _refused(ast.parse("model.eval()")) == _refused(ast.parse("torch.load(x, weights_only=True)")) == []
    assert _refused(ast.parse("torch.load(x, weights_only=False)")) == ["load"]
    files = [*(ROOT / "align3gr").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    assert {path.name: found for path in files if (found := _refused(ast.parse(path.read_text())))} == {}
    settings = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "accelerate_configs").glob("*.yaml")]
    assert [path for path in settings if "trust_remote_code" in path.read_text()] == []


def test_a_finished_run_holds_nothing_that_could_run(smoke_run):
    files = [path for path in smoke_run.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= SAFE
    for path in files:
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)


NAMES = ["../../escape", "/etc/passwd", "..", "a\nb", "<script>alert(1)</script>", "C:\\x", "$(touch pwned)"]
NAMES += ["{{7*7}}", "<i0_3>", "%2e%2e/x", "nul\x00byte"]


@pytest.mark.long
def test_ids_and_titles_never_become_paths_markup_or_tokens(tmp_path, run_stage):
    ids = [*NAMES, *(f"i{number}" for number in range(49))]
    chance = np.random.default_rng(0)
    rows = [
        (user, ids[(7 * number + 3 * at + int(chance.integers(3))) % 60], at)
        for number, user in enumerate([*NAMES, *(f"u{number}" for number in range(109))])
        for at in range(8)
    ]
    raw, run_dir = tmp_path / "raw", tmp_path / "deep" / "down" / "run"
    raw.mkdir()
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_parquet(raw / "interactions.parquet")
    texts = [f"red {('shoe', 'tea', 'pen', 'strap')[number % 4]} number {number % 7}" for number in range(60)]
    pl.DataFrame({"item_id": ids, "title": ids, "text": texts}).write_parquet(raw / "items.parquet")
    (tmp_path / "prepare.yaml").write_text(f"format: tables\nsource: {raw}\n")
    run_stage("prepare", run_dir, tmp_path / "prepare.yaml")
    for name in ("embed", "scid", "sft", "sp_dpo", "evaluate"):
        run_stage(name, run_dir)
    outside = {path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(run_dir)}
    assert outside == {raw / "interactions.parquet", raw / "items.parquet", tmp_path / "prepare.yaml"}
    assert {path.suffix for path in run_dir.rglob("*") if path.is_file()} <= SAFE
    page = (run_dir / "report.html").read_text()
    assert "alert(1)" in page and "<script>alert" not in page
    recommender = Recommender.from_pretrained(run_dir / "sp_dpo" / "model", device="cpu", num_beams=60)
    lists = recommender.recommend([NAMES[:3], NAMES[8:]], user_ids=[NAMES[0], NAMES[4]], k=60, exclude_seen=False)
    assert [{item.item_id for item in found} for found in lists] == [set(ids)] * 2
