"""A headless Chromium that a test can drive: the DevTools protocol over two named pipes, nothing to install."""

import base64
import json
import os
import select
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import launching

_OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
_OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
_OPTIONS += ["--disable-extensions", "--disable-default-apps", "--remote-debugging-pipe"]


class Tab:
    """One page. Every answer is waited for; nothing can hang longer than `seconds`."""

    def __init__(self, to_browser: int, from_browser: int, seconds: float = 60):
        self._to, self._from, self._seconds = to_browser, from_browser, seconds
        self._buffer, self._number, self._session = b"", 0, None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        details = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(details["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(details["entry"]["text"])

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + self._seconds
        while b"\0" not in self._buffer:
            ready = select.select([self._from], [], [], max(0.0, until - time.monotonic()))[0]
            assert ready, f"the browser said nothing for {self._seconds} s"
            self._buffer += os.read(self._from, 2**20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def value(self, script: str) -> Any:
        """What an expression of the page's own language gives."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """The first value of the expression that is true."""
        until = time.monotonic() + self._seconds
        while not (found := self.value(script)):
            assert time.monotonic() < until, f"never true: {script}\n{self.value('document.body.innerText')[:2000]}"
            time.sleep(0.2)
        return found

    def picture(self, path: Path, width: int, height: int) -> None:
        """The page as PNG."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        time.sleep(0.5)  # the layout follows the size
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def open_tab(folder: Path) -> Iterator[Tab]:
    """A browser with an empty page; a skip with the reason where there is none."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium; install Debian's package of that name")
    pipes = [folder / "to-browser", folder / "from-browser"]
    for path in pipes:
        os.mkfifo(path)
    # Chromium reads commands from descriptor 3 and answers on 4.
    command = shlex.join([browser, *_OPTIONS, f"--user-data-dir={folder / 'profile'}"])
    redirected = f"exec {command} 3<{shlex.quote(str(pipes[0]))} 4>{shlex.quote(str(pipes[1]))}"
    opened = [os.open(path, os.O_RDWR) for path in pipes]  # both ways, so that opening waits for nobody
    process = launching.start(["bash", "-c", redirected], folder / "browser.txt")
    try:
        yield Tab(*opened)
    finally:
        launching.kill(process)
        for pipe in opened:
            os.close(pipe)
