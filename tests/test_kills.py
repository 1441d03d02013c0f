"""Kill -9 at twenty random moments over all stages: what goes on to the end leaves what an undisturbed run left.

Each kill takes the whole process group of `align3gr run` at a random moment inside a stage. Starting Python and
importing torch takes several seconds and the work of a smoke stage about three, so a moment is a share of what the
stage took in the undisturbed run, counted from the line with which the stage begins. The stages before it are finished
and left out by `--stages`; the last command is the whole pipeline.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from align3gr.pipeline import MANIFEST, STAGES, read_manifest, stage_folder
from tests.conftest import SMOKE, without_times
from tests.launching import kill_when, run, start

pytestmark = pytest.mark.long

# Twenty in all; more where a stage has more to lose.
KILLS = {"prepare": 2, "embed": 2, "scid": 3, "sft": 4, "sp_dpo": 4, "rf_dpo": 3, "evaluate": 2}
COMMAND = [sys.executable, "-m", "align3gr.cli", "run", "--config", SMOKE / "pipeline.yaml", "--run_dir"]


def moment_of(stage: str, seconds: float, output: Path, final: Path) -> Callable[[], bool]:
    """Whether so much time has passed since the stage began, or it was quicker than that."""
    begun: list[float] = []

    def reached() -> bool:
        if not begun and re.search(f"{stage}: (started|goes on where it was interrupted)", output.read_text()):
            begun.append(time.monotonic())
        return bool(begun) and (time.monotonic() - begun[0] >= seconds or final.exists())

    return reached


def kill_inside(stage: str, seconds: float, run_dir: Path) -> float:
    """Kills the pipeline inside a stage; a stage that was quicker is made again, for half the time. Gives the time."""
    final, output = stage_folder(run_dir, stage), run_dir.with_suffix(".txt")
    unfinished = STAGES[[stage_folder(run_dir, name).exists() for name in STAGES].index(False) :]
    process = start([*COMMAND, run_dir, "--stages", *unfinished], output)
    kill_when(moment_of(stage, seconds, output, final), process, seconds=900)
    if not final.exists():
        return seconds
    shutil.rmtree(final)
    return kill_inside(stage, seconds / 2, run_dir)


def contents(run_dir: Path) -> dict[str, object]:
    """Every file of a run by its name; clocks and commands left out."""
    found: dict[str, object] = {}
    for path in sorted(path for path in run_dir.rglob("*") if path.is_file()):
        name = str(path.relative_to(run_dir))
        if path.name == MANIFEST:
            manifest = read_manifest(path.parent)
            found[name] = {key: manifest[key] for key in ("stage", "settings", "inputs", "seed", "finished")}
        elif path.name == "curriculum.json":
            record = json.loads(path.read_text())
            for stage in record["stages"]:
                stage.pop("seconds", None)
            found[name] = record
        elif name == "evaluation/results.json":
            found[name] = without_times(path.parent)
        elif name == "evaluation/results.md":
            page, times, _ = path.read_text().partition("| ranking | seconds |")
            assert times
            found[name] = page
        elif name == "report.html":  # it names the run and says how long everything took
            found[name] = path.read_text().endswith("</html>\n")
        else:
            found[name] = path.read_bytes()
    return found


def everything(run_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*"))


def without_hashes_of_clocks(found: dict[str, object]) -> dict[str, object]:
    """Inputs of the evaluation are whole folders, with the seconds that stand in `curriculum.json`."""
    manifest = found[f"evaluation/{MANIFEST}"]
    assert isinstance(manifest, dict)
    inputs = {name: digest for name, digest in manifest["inputs"].items() if name not in ("sp_dpo", "rf_dpo")}
    return found | {f"evaluation/{MANIFEST}": manifest | {"inputs": inputs}}


def test_a_run_killed_twenty_times_ends_like_one_that_was_left_alone(smoke_run, tmp_path):
    run_dir, chance = tmp_path / "run", np.random.default_rng(20)
    seconds = {stage: read_manifest(stage_folder(smoke_run, stage))["seconds"] for stage in STAGES}
    killed = {
        stage: [kill_inside(stage, share * seconds[stage], run_dir) for share in chance.random(number)]
        for stage, number in KILLS.items()
    }
    assert sum(map(len, killed.values())) == 20 and all(killed.values())
    status, printed = run([*COMMAND, run_dir], tmp_path / "last.txt", seconds=1800)
    assert status == 0, printed[-3000:]
    ours, undisturbed = (without_hashes_of_clocks(contents(folder)) for folder in (run_dir, smoke_run))
    assert sorted(ours) == sorted(undisturbed)
    assert [name for name in ours if ours[name] != undisturbed[name]] == []
    # Nor is there a folder that nothing is in: no trainer, nothing partial, aside or old.
    assert everything(run_dir) == everything(smoke_run)
