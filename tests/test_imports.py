"""Imports point one way, and importing the package is quick."""

import ast
import subprocess
import sys
import tomllib

from tests.conftest import ROOT

# A package may import those before it, and itself.
ORDER = [
    "errors",
    "lazy",
    "listening",
    "masking",
    "progress",
    "recipe_help",
    "suggestions",
    "finite_loss",
    "one_device",
    "process_seeds",
    "processes",
    "snapshots",
    "tracking",
    "stage_folders",
    "tree_attention",
    "undivided",
    "data",
    "encoders",
    "scid",
    "decoding",
    "evaluation",
    "record",
    "checkpoints",
]
LAST = ["audit", "ablation", "sft", "dpo", "baselines", "report", "estimate", "hub", "serving", "doctor", "demo"]
LAST += ["pipeline", "stage_processes", "recipe", "cli"]
ALLOWED = {name: {*ORDER[: i + 1]} for i, name in enumerate(ORDER)}
ALLOWED |= {name: {*ORDER, name} for name in LAST}
ALLOWED["cli"] |= {
    "pipeline",
    "stage_processes",
    "recipe",
    "report",
    "audit",
    "sft",
    "estimate",
    "hub",
    "serving",
    "doctor",
    "demo",
}
ALLOWED["hub"] |= {"pipeline"}
ALLOWED["demo"] |= {"pipeline"}
ALLOWED["audit"] |= {"pipeline"}
ALLOWED["report"] |= {"pipeline"}
ALLOWED["stage_processes"] |= {"pipeline"}
ALLOWED["ablation"] |= {"pipeline", "stage_processes"}
ALLOWED["baselines"] |= {"pipeline", "stage_processes", "sft"}


def test_imports_point_one_way():
    wrong = []
    for path in sorted((ROOT / "align3gr").rglob("*.py")):
        package = path.relative_to(ROOT / "align3gr").parts[0].removesuffix(".py")
        if package == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("align3gr."):
                imported = node.module.split(".")[1]
                if imported not in ALLOWED[package]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {node.module}")
    assert wrong == []


def test_recipes_and_benchmarks_use_public_names():
    wrong = []
    for path in [*ROOT.glob("recipes/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("align3gr"):
                wrong += [f"{path.name}: {n.name}" for n in node.names if n.name.startswith("_")]
    assert wrong == []


def test_recipes_are_short():
    assert all(len(path.read_text().splitlines()) <= 130 for path in ROOT.glob("recipes/*.py"))


def test_importing_align3gr_loads_no_heavy_library():
    code = "import align3gr, sys; print([m for m in ('torch', 'transformers', 'trl', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_public_name_exists():
    import align3gr
    import align3gr.baselines
    import align3gr.demo
    import align3gr.dpo
    import align3gr.encoders
    import align3gr.hub
    import align3gr.report
    import align3gr.scid
    import align3gr.serving
    import align3gr.sft

    lazy = (align3gr.encoders, align3gr.scid, align3gr.sft, align3gr.dpo, align3gr.report, align3gr.baselines)
    lazy += (align3gr.hub, align3gr.serving, align3gr.demo)
    for package in (align3gr, *lazy):
        assert package.__all__ and all(getattr(package, name) is not None for name in package.__all__)


def test_the_wheel_holds_every_package():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "align3gr").rglob("__init__.py")}
    assert found <= set(named)
