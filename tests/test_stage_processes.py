import os
import signal
import subprocess
import sys
import time

import pytest

from align3gr.stage_processes import call

WAITS = "import time; print('begun', flush=True); time.sleep(60)"


def test_the_status_of_a_command_is_given():
    before = signal.getsignal(signal.SIGTERM)
    assert call([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_line_ends_the_training_below_it(number):
    code = f"import sys; from align3gr.stage_processes import call\ncall([sys.executable, '-c', {WAITS!r}])\nprint(1)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout.readline() == "begun\n"
        begun = time.monotonic()
        parent.send_signal(number)
        # Both write to the pipe, so it is at its end when both have ended. Nothing is done behind the call.
        assert parent.stdout.read() == ""
        assert time.monotonic() - begun < 30
        assert parent.wait() == -number


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
