"""The wheel: what it holds, and that it works in a folder where nothing else of this project is."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launching import run

PARTS = ("align3gr", "recipes", "accelerate_configs", "pyproject.toml", "setup.cfg", "README.md", "LICENSE")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no folder `build` of an earlier build gets into it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=IGNORED)
        else:
            shutil.copy(path, source)
    # Without isolation: a build environment would fetch setuptools.
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", built, source]
    status, text = run(command, built / "printed.txt")
    assert status == 0, text
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", folder, wheel]
    status, text = run(command, folder.parent / "installed.txt")
    assert status == 0, text
    return folder


@pytest.mark.long
def test_every_file_that_is_read_at_run_time_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
        metadata = next(name for name in inside if name.endswith("METADATA"))
        described = file.read(metadata).decode()
    expected = {f"align3gr/{path.relative_to(ROOT / 'align3gr')}" for path in (ROOT / "align3gr").rglob("*.py")}
    expected |= {f"align3gr/recipes/{path.relative_to(ROOT / 'recipes')}" for path in ROOT.glob("recipes/*/*.yaml")}
    expected |= {f"align3gr/recipes/{path.name}" for path in ROOT.glob("recipes/*.py")}
    expected |= {f"align3gr/accelerate_configs/{path.name}" for path in ROOT.glob("accelerate_configs/*.yaml")}
    expected |= {f"align3gr/sft/templates/{path.name}" for path in ROOT.glob("align3gr/sft/templates/*.yaml")}
    expected |= {"align3gr/py.typed"}
    assert expected - inside == set()
    assert not [name for name in inside if name.startswith(("tests", "runs", "benchmarks", "experiments"))]
    assert "Name: align3gr" in described and "License-Expression: Apache-2.0" in described


@pytest.mark.long
def test_it_works_without_the_checkout(installed, tmp_path):
    def command(*words, seconds=120):
        # -P: the working folder is no place to import from, as for the script that pip installs.
        done = subprocess.run(
            [sys.executable, "-P", installed / "bin" / "align3gr", *map(str, words)],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(installed), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import align3gr, importlib.resources as r; print(align3gr.__file__, r.files('align3gr.recipes'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", where], env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert done.stdout.split() == [f"{installed}/align3gr/__init__.py", f"{installed}/align3gr/recipes"]
    assert "first steps:" in command("--help") and "synthetic" in command("--help")
    printed = command("run", "--config", "recipes/smoke/pipeline.yaml", "--run_dir", "shop", "--stages", "prepare")
    assert f"{installed}/align3gr/recipes/prepare.py" in printed
    assert (tmp_path / "shop" / "data" / "train.parquet").is_file()
