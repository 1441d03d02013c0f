"""A server as a person starts it: silent listeners, clients that leave, and the end."""

import json
import re
import signal
import socket
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from align3gr.data import read_events
from align3gr.errors import InputError
from align3gr.serving import ServerSettings, run_server
from tests import launching


@pytest.fixture
def server(recommender, tmp_path):
    """A process that holds every request back for two seconds, its port, and what it printed."""
    recommender.save_pretrained(tmp_path / "model")
    options = ["--port", 0, "--num_beams", 10, "--max_wait_ms", 2000, "--event_log", tmp_path / "log"]
    command = [sys.executable, "-m", "align3gr.cli", "serve", tmp_path / "model", *options, "--device", "cpu"]
    output = tmp_path / "output.txt"
    process = launching.start(command, output)
    try:
        until = time.monotonic() + 300
        while (found := re.search(r"http://127\.0\.0\.1:(\d+) answers for 40 items", output.read_text())) is None:
            assert process.poll() is None and time.monotonic() < until, output.read_text()
            time.sleep(0.05)
        yield process, int(found[1]), output
    finally:
        launching.kill(process)


def request(port: int, body: dict) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /recommend HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def answer(connection: socket.socket) -> tuple[int, dict]:
    """Status and body of what comes until the server closes."""
    connection.settimeout(120)
    data = b""
    while part := connection.recv(65536):
        data += part
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if length and len(body) >= int(length[1]):
            break
    return int(data.split()[1]), json.loads(body)


def metrics(port: int) -> str:
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120).read().decode()


def test_clients_that_leave_and_a_stop_in_flight_lose_nothing(server, tmp_path):
    process, port, output = server
    address = ("127.0.0.1", port)
    with socket.create_connection(address) as gone:  # leaves while its request waits
        gone.sendall(request(port, {"history": ["1"], "user_id": "gone"}))
        time.sleep(0.3)
    with socket.create_connection(address) as cut:  # leaves in the middle of its body
        cut.sendall(request(port, {"history": ["1"]})[:-5])
    with socket.create_connection(address) as huge:
        huge.sendall(f"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-length: {10**12}\r\n\r\n".encode())
        assert answer(huge)[0] == 413
    with socket.create_connection(address) as garbage:
        garbage.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert b"400 Bad Request" in garbage.recv(1000)
    until = time.monotonic() + 60
    while 'align3gr_requests_total{endpoint="/recommend",status="499"} 2.0' not in metrics(port):
        assert time.monotonic() < until, metrics(port)
        time.sleep(0.1)
    time.sleep(2.2)  # longer than any request is held back
    text = metrics(port)
    assert "align3gr_batch_users_count 0.0" in text  # nobody waited for the search, so there was none

    def ask(number: int) -> tuple[int, dict]:
        with socket.create_connection(address) as connection:
            connection.sendall(request(port, {"history": ["1"], "user_id": f"user {number}", "k": 3}))
            return answer(connection)

    with ThreadPoolExecutor(5) as threads:
        waiting = [threads.submit(ask, number) for number in range(5)]
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        with suppress(OSError), socket.create_connection(address, timeout=0.5):
            raise AssertionError("a server that stops takes new connections")
        answers = [one.result() for one in waiting]
    assert [status for status, _ in answers] == [200] * 5
    assert process.wait(300) == 0, output.read_text()
    assert output.read_text().endswith("align3gr.listening: stopped\n")
    assert "Traceback" not in output.read_text()
    events = read_events(tmp_path / "log")
    assert sorted(set(events["user_id"])) == [f"user {number}" for number in range(5)] and len(events) == 15
    assert set(events["request_id"]) == {body["request_id"] for _, body in answers}
    assert list((tmp_path / "log.journal").iterdir()) == []


def test_an_address_that_is_taken_is_named_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: Address already in use at 127.0.0.1"):
            run_server(ServerSettings(str(tmp_path / "no model"), port=port))
    with pytest.raises(InputError, match=r"--host 999\.9\.9\.9: "):
        run_server(ServerSettings("m", host="999.9.9.9"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("port", 70_000), ("max_batch_size", 0), ("max_wait_ms", -1), ("num_beams", 0), ("time_unit", "days")],
)
def test_settings_out_of_range_are_named(option, value):
    with pytest.raises(InputError, match=f"--{option}: got .?{value}.*(expected|choose)"):
        ServerSettings("m", **{option: value})
