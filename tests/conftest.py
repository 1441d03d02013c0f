import json
import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke"

# One thread: the machine's cores are better used by running tests side by side, and sums come out the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(scope="session", autouse=True)
def compiled_anew(tmp_path_factory):
    """What DeepSpeed compiles goes into a folder of this run: the common one may hold the lock of a killed process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("torch_extensions")))
        yield


def data_folder(name: str) -> Path:
    """A folder of real data, or a skip with the reason."""
    folder = Path(os.environ.get("ALIGN3GR_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set ALIGN3GR_DATA to the folder that holds {name}")
    return folder


def without_times(evaluation: Path) -> dict:
    """The results of a run; of what its rankings took, the names alone."""
    results = json.loads((evaluation / "results.json").read_text())
    for columns in results.values():
        if "same_weights_as" not in columns.get("ranking", {}):
            columns["ranking"] = sorted(columns.get("ranking", {}))
    return results


@pytest.fixture(scope="session")
def run_stage():
    """Runs a recipe in this process: `run_stage("sft", run_dir, dropout=0.1)` with the smoke settings."""

    def run(name: str, run_dir: Path, config: Path | None = None, **options) -> None:
        arguments = ["--config", str(config or SMOKE / f"{name}.yaml"), "--run_dir", str(run_dir)]
        for option, value in options.items():
            arguments += [f"--{option}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
        before = sys.argv
        sys.argv = [f"recipes/{name}.py", *arguments]
        try:
            runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))["main"]()
        finally:
            sys.argv = before

    return run


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory, run_stage) -> Path:
    """A finished smoke pipeline. Read only."""
    run_dir = tmp_path_factory.mktemp("smoke")
    for name in ("prepare", "embed", "scid", "sft", "sp_dpo", "rf_dpo", "evaluate"):
        run_stage(name, run_dir)
    return run_dir
