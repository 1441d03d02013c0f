"""Nothing that is saved or loaded can run code; see docs/safety.md."""

import ast

import numpy as np

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
