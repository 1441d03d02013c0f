"""The page behind its server: asked by Gradio's own client, and clicked in a browser."""

import json
import re
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator

import polars as pl
import pytest
import uvicorn

pytest.importorskip("gradio", reason="gradio is not installed; pip install 'align3gr[demo]'")

from gradio_client import Client

from align3gr import Recommender
from align3gr.cli import main
from align3gr.demo import DemoSession, html, make_app, open_demo
from align3gr.errors import InputError
from align3gr.listening import listen
from tests import launching
from tests.demo.browser import Tab, open_tab

BAD = "<img src=x onerror=document.title='hit'>${document.title='hit'}{{value}}`"


class Served:
    """A session behind its server in a thread."""

    def __init__(self, session: DemoSession):
        self.session = session
        self._listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._server = uvicorn.Server(
            uvicorn.Config(make_app(session), log_level="error", timeout_graceful_shutdown=2)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.05)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()


@pytest.fixture(scope="module")
def outside() -> Iterator[list[str]]:
    """Names of other machines that this process looks up from now on; what the test's own client does is not noted."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def noting(host, *arguments, **options):
        client = any("gradio_client" in frame.filename for frame in traceback.extract_stack())
        if not client and host not in ("127.0.0.1", "localhost", "0.0.0.0", None):
            asked.append(str(host))
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", noting)
        yield asked


@pytest.fixture(scope="module")
def served(smoke_run, outside) -> Iterator[Served]:
    served = Served(open_demo(smoke_run, device="cpu"))
    yield served
    served.close()


def test_the_page_answers_as_the_session_and_asks_nobody_else(served, outside):
    session, user = served.session, served.session.users[4]
    client = Client(served.url, verbose=False, analytics_enabled=False)
    history = client.predict(user, api_name="/history")
    assert history == session.history_text(user)
    parts = client.predict(user, history, 5, True, api_name="/recommend")
    answer = session.answer(session.read_history(history), user, 5, exclude_seen=True)
    makers = (html.scids_part, html.lists_part, html.beam_part, html.user_part)
    assert list(parts) == [make(session, answer) for make in makers]
    wrong = client.predict(None, "<b>nothing</b>", 5, False, api_name="/recommend")
    assert "&lt;b&gt;nothing&lt;/b&gt;&#x27; is no title" in wrong[0] and list(wrong[1:]) == ["", "", ""]
    found = client.predict(session.titles[0].split()[0], api_name="/find")
    assert [label for label, _ in found["choices"]] == session.find(session.titles[0].split()[0])
    assert outside == []


def test_the_browser_is_told_to_load_nothing_from_outside(served):
    with urllib.request.urlopen(served.url) as answer:
        policy = answer.headers["content-security-policy"]
    allowed = {part for rule in policy.split(";") for part in rule.split()[1:]}
    assert policy.startswith("default-src 'self'") and not [part for part in allowed if "." in part or "*" in part]


def test_an_address_that_cannot_be_had_is_named_before_models_are_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as end:
            main(["demo-ui", "nowhere", "--port", str(port)])
    assert end.value.code == 2 and re.fullmatch(
        rf"error: --port {port}: .* choose another port or host\n", capsys.readouterr().err
    )
    with pytest.raises(InputError, match="--port 70000: "):
        listen("127.0.0.1", 70000)
    with pytest.raises(InputError, match=r"--host no\.such\.host\.invalid: "):
        listen("no.such.host.invalid", 1)


def test_a_missing_gradio_is_one_line(monkeypatch, capsys):
    for name in ("align3gr.demo.server", "align3gr.demo.page"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as end:
        main(["demo-ui", "nowhere"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: demo-ui: gradio is not installed; pip install 'align3gr[demo]'\n"


@pytest.mark.long
def test_the_command_serves_this_machine_alone_until_it_is_told_to_stop(smoke_run, tmp_path):
    output = tmp_path / "output.txt"
    process = launching.start([sys.executable, "-m", "align3gr.cli", "demo-ui", smoke_run, "--port", "0"], output)
    try:
        until = time.monotonic() + 120
        while not (found := re.search(r"(http://127\.0\.0\.1:\d+) shows SFT beside SP-DPO", output.read_text())):
            assert process.poll() is None and time.monotonic() < until, output.read_text()
            time.sleep(0.2)
        with urllib.request.urlopen(found[1], timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        launching.kill(process)
    assert "Traceback" not in output.read_text()


@pytest.mark.long
def test_a_click_in_a_browser_produces_recommendations(served, tmp_path):
    session, user = served.session, served.session.some_users(200)[0]
    with open_tab(tmp_path) as tab:
        tab.call("Page.navigate", url=served.url)
        tab.wait("!!document.querySelector('#recommend')")
        choose(tab, user)
        assert tab.wait("document.querySelector('textarea').value") == session.history_text(user)
        tab.value("document.querySelector('#recommend').click()")
        tab.wait("document.querySelectorAll('#beam .level').length == 6")
        answer = session.answer(session.read_history(session.history_text(user)), user, 10)
        titles = "[...document.querySelectorAll('#lists td:nth-child(2)')].map(cell => cell.innerText)"
        assert tab.value(titles) == [item.title for model in answer.models for item in model.items]
        assert tab.value("document.querySelectorAll('#user table').length") == 4
        # A title that is found is appended to the history.
        tab.value("document.querySelectorAll('textarea')[1].focus()")
        tab.call("Input.insertText", text=session.titles[3])
        tab.wait("document.querySelector('input[type=radio]')?.value")
        tab.value("document.querySelector('input[type=radio]').click()")
        longer = f"{session.history_text(user)}\n{session.find(session.titles[3])[0]}"
        tab.wait(f"document.querySelector('textarea').value == {json.dumps(longer)}")
        assert tab.errors == [] and {url for url in tab.requests if not url.startswith((served.url, "data:"))} == set()


@pytest.mark.long
def test_a_browser_shows_titles_as_text(smoke_run, tmp_path):
    recommender = Recommender.from_pretrained(smoke_run / "sft" / "model", device="cpu")
    items = recommender.items.with_columns(title=pl.lit(BAD))
    parts = recommender.model, recommender.tokenizer, items, recommender.users, recommender.prompt_builder
    served = Served(DemoSession({BAD: Recommender(*parts)}))
    try:
        with open_tab(tmp_path) as tab:
            tab.call("Page.navigate", url=served.url)
            tab.wait("!!document.querySelector('#recommend')")
            tab.value("document.querySelector('textarea').focus()")
            tab.call("Input.insertText", text=served.session.label(served.session.ids[0]))
            tab.value("document.querySelector('#recommend').click()")
            tab.wait("!!document.querySelector('#beam .level')")
            assert tab.value("document.querySelector('#lists td:nth-child(2)').innerText") == BAD
            assert (
                tab.value("document.title") == "align3gr" and tab.value("document.querySelectorAll('img').length") == 0
            )
    finally:
        served.close()


def choose(tab: Tab, user: str) -> None:
    """Types an id into the first menu of the page."""
    tab.value("document.querySelector('input').focus()")
    tab.call("Input.insertText", text=user)
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
