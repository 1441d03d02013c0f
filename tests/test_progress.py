"""Progress: bars on a terminal, lines of the log elsewhere."""

import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest

from align3gr import progress, tracking
from align3gr.progress import ProgressBar
from align3gr.tracking import ProgressLines
from tests.conftest import ROOT
from tests.launching import run

BAR = """
import time
from align3gr.progress import ProgressBar

with ProgressBar(4, "ranking", "user") as bar:
    for _ in range(4):
        time.sleep(0.12)
        bar.update()
"""


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have gone by, for both kinds of lines."""
    now = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr(progress, "time", fake)
    monkeypatch.setattr(tracking, "time", fake)
    return now


def test_a_line_every_half_minute_where_nobody_watches(clock, caplog):
    caplog.set_level(logging.INFO, "align3gr.progress")
    with ProgressBar(4000, "ranking", "user", done=1000) as bar:
        for count in (400, 600, 5000):
            clock.seconds += 20
            bar.update(count)
    # 1,000 of the 3,000 in 40 seconds; the last ones come before the next half minute is over.
    assert [record.message for record in caplog.records] == ["ranking: 2,000 of 4,000 users, 01:20 left"]
    assert bar.done == 4000


def test_other_processes_say_nothing(clock, caplog):
    caplog.set_level(logging.INFO, "align3gr.progress")
    with ProgressBar(10, "ranking", "user", shown=False) as bar:
        clock.seconds += 100
        bar.update(5)
    assert caplog.records == []


def terminal(code: str) -> str:
    """What Python writes to a terminal of its own."""
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 100))
    variables = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=there, stderr=there, cwd=ROOT, env=variables)
    os.close(there)
    written = b""
    try:
        while block := os.read(here, 4096):
            written += block
    except OSError:  # a terminal without a writer
        pass
    assert process.wait() == 0, written.decode()
    os.close(here)
    return written.decode()


def test_a_bar_with_the_time_left_on_a_terminal(tmp_path):
    shown = terminal(BAR)
    assert re.search(r"ranking: +25%.*1/4 \[00:00<00:00, .*user/s\]", shown) and "\r" in shown
    status, piped = run([sys.executable, "-c", BAR], tmp_path / "printed.txt")
    assert (status, piped) == (0, "")


def state(step):
    return SimpleNamespace(global_step=step, max_steps=200, is_world_process_zero=True)


def test_lines_of_a_training(clock, caplog):
    caplog.set_level(logging.INFO, "align3gr.tracking")
    lines = ProgressLines("sft")
    lines.on_train_begin(None, state(50), None)  # taken up at step 50
    for step in range(51, 76):
        clock.seconds += 1.5
        if step == 60:
            lines.on_log(None, state(step), None, {"loss": 2.5})
        lines.on_step_end(None, state(step), None)
    lines.on_log(None, state(75), None, {"eval_recall@10": 0.05, "eval_ndcg@10": 0.03, "epoch": 1.0})
    lines.on_train_end(None, state(200), None)
    assert [record.message for record in caplog.records] == [
        "sft: step 70 of 200, loss 2.5000, 03:15 left",  # 20 steps in 30 seconds, 130 to go
        "sft: step 75 of 200, recall@10 0.0500, ndcg@10 0.0300, 03:07 left",
        "sft: step 200 of 200, loss 2.5000",
    ]


@pytest.mark.long
def test_a_stage_draws_no_bar_into_a_file(smoke_run, tmp_path):
    for name in ("data", "scid", "sft"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    command = [sys.executable, ROOT / "recipes" / "sp_dpo.py", "--config", ROOT / "recipes" / "smoke" / "sp_dpo.yaml"]
    status, text = run([*command, "--run_dir", tmp_path / "run"], tmp_path / "log.txt", 240, TQDM_DISABLE="0")
    assert status == 0, text
    assert "\r" not in text and "it/s]" not in text and "user/s]" not in text
    curriculum = json.loads((tmp_path / "run" / "sp_dpo" / "curriculum.json").read_text())
    for stage in curriculum["stages"]:
        line = f"align3gr.tracking: stage {stage['name']}: step {stage['steps']} of {stage['steps']}, loss "
        assert f"{line}{stage['last_loss']:.4f}" in text
