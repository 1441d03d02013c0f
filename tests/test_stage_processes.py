import os
import signal
import subprocess
import sys
import time

import pytest

from align3gr.stage_processes import call

WAITS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


def test_the_status_of_a_command_is_given():
    before = signal.getsignal(signal.SIGTERM)
    assert call([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_line_ends_the_training_below_it(number):
    code = (
        f"import sys; from align3gr.stage_processes import call; call([sys.executable, '-c', {WAITS!r}]); print('on')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        below = int(parent.stdout.readline())
        parent.send_signal(number)
        assert parent.wait(timeout=30) == -number
        assert parent.stdout.read() == ""  # nothing is done behind it
    for _ in range(300):  # init collects what an interrupted parent did not wait for
        if not os.path.exists(f"/proc/{below}") or " Z " in open(f"/proc/{below}/stat").read():
            return
        time.sleep(0.1)
    pytest.fail(f"process {below} goes on")


def test_a_signal_that_comes_while_the_command_starts_ends_it(monkeypatch):
    start, caught = subprocess.Popen, []

    def popen(command):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(command)

    monkeypatch.setattr("subprocess.Popen", popen)
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(True))
    try:
        begun = time.monotonic()
        assert call([sys.executable, "-c", WAITS]) == -signal.SIGTERM
        assert time.monotonic() - begun < 30
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [True]  # the caller's own handler hears of it afterwards
