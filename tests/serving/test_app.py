"""The endpoints: lists are the recommender's own, whoever shares the batch, and bad requests end in one line."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from align3gr.data import read_events
from align3gr.decoding import HistoryCache
from align3gr.serving import EventLog, make_app
from align3gr.serving.event_log import EventLog as Log


@pytest.fixture(scope="module")
def client(recommender):
    with TestClient(make_app(recommender, max_wait_ms=0), raise_server_exceptions=False) as client:
        yield client


def metrics(client) -> dict:
    """Values by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def lists(answer) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    items = answer.json()["items"]
    assert [item["rank"] for item in items] == list(range(1, len(items) + 1))
    return [(item["item_id"], item["score"]) for item in items]


def expected(recommender, body) -> list[tuple[str, float]]:
    """The same question to the recommender alone."""
    options = {name: body[name] for name in ("k", "exclude_seen", "allowed", "denied") if name in body}
    answer = recommender.recommend([list(map(str, body["history"]))], user_ids=[body.get("user_id")], **options)
    return [(item.item_id, item.score) for item in answer[0]]


def drawn_requests(number: int) -> list[dict]:
    """Requests of every kind, of different lengths."""
    random = np.random.default_rng(3)
    bodies = []
    for _ in range(number):
        draw = lambda most: random.permutation(40)[: random.integers(1, most)].astype(str).tolist()  # noqa: E731
        body = {"history": draw(15), "k": int(random.integers(1, 11))}
        body |= {"user_id": str(random.choice(["u1", "u2", "stranger"]))} if random.random() < 0.7 else {}
        body |= {"exclude_seen": True} if random.random() < 0.4 else {}
        body |= {"allowed": draw(30)} if random.random() < 0.4 else {}
        body |= {"denied": draw(12)} if random.random() < 0.4 else {}
        bodies.append(body)
    return bodies


def test_an_answer_is_the_recommenders_list(client, recommender):
    body = {"history": ["3", 4], "user_id": "u1", "k": 5}
    answer = client.post("/recommend", json=body)
    assert lists(answer) == expected(recommender, body)
    first = answer.json()["items"][0]
    assert first["title"] == f"item {first['item_id']}" and answer.json()["skipped"] == []
    assert len(lists(client.post("/recommend", json={"history": []}))) == 10


@pytest.mark.parametrize("with_cache", [False, True])
def test_the_batch_changes_nobodys_list(recommender, with_cache, monkeypatch):
    if with_cache:
        monkeypatch.setattr(recommender, "history_cache", HistoryCache(np.array([0.3, 0.2, 0.1]), 2.0, 0.3))
    bodies = drawn_requests(60)
    app = make_app(recommender, max_batch_size=16, max_wait_ms=30)
    with TestClient(app) as client, ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda body: client.post("/recommend", json=body), bodies))
        seen = metrics(client)
    assert seen[("align3gr_batch_users_count",)] < 30  # else batches had about one user, and nothing was tested
    for body, answer in zip(bodies, answers, strict=True):
        alone = expected(recommender, body)
        assert [item for item, _ in lists(answer)] == [item for item, _ in alone]
        np.testing.assert_allclose([s for _, s in lists(answer)], [s for _, s in alone], atol=1e-4)


def test_allowed_and_denied_items(client):
    body = {"history": ["1"], "k": 10, "allowed": ["1", "2", "3", "5"], "denied": ["3"], "exclude_seen": True}
    assert {item for item, _ in lists(client.post("/recommend", json=body))} == {"2", "5"}
    assert lists(client.post("/recommend", json={"history": ["1"], "allowed": []})) == []


def test_unknown_items_are_an_error_or_are_named(client):
    body = {"history": ["1", "new", "2"], "allowed": ["2", "gone"], "denied": ["old"]}
    assert client.post("/recommend", json=body).json()["error"].startswith("history names item 'new', which is not")
    answer = client.post("/recommend", json=body | {"unknown_items": "skip"})
    assert answer.json()["skipped"] == ["new", "gone", "old"]
    assert [item for item, _ in lists(answer)] == ["2"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "body: Field required"),
        (b"{", 400, "body: no JSON at character"),
        (b'{"history": ["\xff"]}', 400, "parsing the body"),
        (b"[" * 100_000, 400, "body"),
        (b"[]", 422, "body: Input should be"),
        (b"null", 422, "body"),
        (b'{"history": "1"}', 422, "history: Input should be a valid list"),
        (b'{"history": [1.0]}', 422, "history.0: Input should be a valid string"),
        (b'{"history": [true]}', 422, "history.0"),
        (b'{"history": [null]}', 422, "history.0"),
        (b'{"history": [""]}', 422, "history.0: String should have at least 1 character"),
        (b'{"history": ["\\ud800"]}', 422, "history.0: Input should be a valid string, unable to parse"),
        (b'{"profile": "\\udc00"}', 422, "profile: Input should be a valid string, unable to parse"),
        (b'{"history": [1' + b"0" * 5000 + b"]}", 400, "body"),
        (b'{"history": ["1"], "k": 0}', 422, "k: Input should be greater than or equal to 1"),
        (b'{"history": ["1"], "k": 11}', 422, "k: got 11, expected 1 to 10"),
        (b'{"history": ["1"], "k": "5"}', 422, "k: Input should be a valid integer"),
        (b'{"history": ["1"], "k": NaN}', 422, "k: "),
        (b'{"histroy": ["1"]}', 422, "histroy: Extra inputs are not permitted"),
        (b'{"history": ["1"], "unknown_items": "ignore"}', 422, "unknown_items: Input should be 'raise' or 'skip'"),
        (b'{"history": ["1"], "profile": "Likes pizza."}', 422, "profile: this server has no token level"),
        (json.dumps({"history": ["1"] * 10_001}).encode(), 422, "history: List should have at most 10000 items"),
        (json.dumps({"history": ["1" * 1001]}).encode(), 422, "history.0: String should have at most 1000"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_used_is_refused_in_one_line(client, body, status, words):
    answer = client.post("/recommend", content=body)
    assert answer.status_code == status and set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert words in error and "\n" not in error and len(error) < 300
    assert client.post("/recommend", json={"history": ["1"]}).status_code == 200


def test_a_body_that_is_said_to_be_a_form_is_refused_with_the_way_out(client):
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        headers = {"content-type": kind}
        answer = client.post("/recommend", content=b'{"history": ["1"]}', headers=headers)
        assert answer.status_code == 415 and f"content-type: got '{kind}', expected application/json" in answer.text


def test_other_paths_and_methods(client):
    assert client.get("/recommend").status_code == 405
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    assert "RecommendRequest" in client.get("/openapi.json").json()["components"]["schemas"]


def test_large_bodies_are_refused_whether_they_say_their_size_or_not(recommender):
    with TestClient(make_app(recommender, max_body_bytes=1000)) as client:
        for content in (b" " * 1001, b" " * 100_000, iter([b" " * 600, b" " * 600])):
            answer = client.post("/recommend", content=content)
            assert answer.status_code == 413 and "more than 1,000 bytes" in answer.json()["error"]
        assert client.post("/recommend", content=b'{"history": ["1"]}' + b" " * 982).status_code == 200
        assert metrics(client)[("align3gr_requests_total", "/recommend", "413")] == 3


def test_health_and_metrics_say_what_happens(recommender):
    with TestClient(make_app(recommender, "shop")) as client:
        health = client.get("/health").json()
        assert health | {"version": ""} == {
            "status": "ok",
            "model": "shop",
            "items": 40,
            "users": 2,
            "num_beams": 10,
            "device": "cpu",
            "version": "",
        }
        for body in ({"history": ["1"]}, {"history": ["2"]}, {"k": 0}):
            client.post("/recommend", json=body)
        client.get("/a/path/of/somebody")
        seen = metrics(client)
    assert seen[("align3gr_requests_total", "/recommend", "200")] == 2
    assert seen[("align3gr_requests_total", "/recommend", "422")] == 1
    assert seen[("align3gr_requests_total", "other", "404")] == 1
    assert seen[("align3gr_request_seconds_count", "/recommend")] == 3
    assert seen[("align3gr_batch_users_sum",)] == 2 and seen[("align3gr_waiting",)] == 0


def test_lists_and_events_go_into_the_log(recommender, tmp_path):
    log = EventLog(tmp_path / "log")
    with TestClient(make_app(recommender, log=log, time_unit="s")) as client:
        answer = client.post("/recommend", json={"history": ["1"], "user_id": 17, "k": 2}).json()
        client.post("/recommend", json={"history": ["1"], "k": 2})  # of nobody
        client.post("/recommend", json={"history": ["1"], "user_id": "u1", "log_impressions": False})
        shown = [item["item_id"] for item in answer["items"]]
        report = {"user_id": "17", "item_id": shown[1], "event": "click", "request_id": answer["request_id"]}
        assert client.post("/events", json={"events": [report, report | {"timestamp": 7}]}).json() == {"logged": 2}
        seen = metrics(client)
        for change, words in (
            ({"event": "look"}, "events.0.event: Input should be 'impression', 'click', 'like'"),
            ({"timestamp": 2**63}, "events.0.timestamp"),
            ({"rank": 0}, "events.0.rank"),
            ({"user_id": None}, "events.0.user_id"),
        ):
            assert words in client.post("/events", json={"events": [report | change]}).json()["error"]
    assert (seen[("align3gr_events_total", "impression")], seen[("align3gr_events_total", "click")]) == (2, 2)
    events = read_events(tmp_path / "log")
    assert events.select("user_id", "item_id", "event", "rank").rows() == [
        ("17", shown[0], "impression", 1),
        ("17", shown[1], "impression", 2),
        ("17", shown[1], "click", None),
        ("17", shown[1], "click", None),
    ]
    assert events["request_id"].to_list() == [answer["request_id"]] * 4
    np.testing.assert_allclose(events["score"][:2], [item["score"] for item in answer["items"]], rtol=1e-6)
    assert events["timestamp"][3] == 7 and 1.7e9 < events["timestamp"][0] < 1e10  # seconds


def test_without_a_log_events_have_no_place(client):
    events = [{"user_id": "u1", "item_id": "1", "event": "click"}]
    answer = client.post("/events", json={"events": events})
    assert answer.status_code == 404 and "--event_log" in answer.json()["error"]


def test_a_full_disk_costs_impressions_and_no_list(recommender, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Log, "append", full)
    with TestClient(make_app(recommender, log=EventLog(tmp_path / "log"))) as client:
        assert len(lists(client.post("/recommend", json={"history": ["1"], "user_id": "u1", "k": 3}))) == 3
        answer = client.post("/events", json={"events": [{"user_id": "u1", "item_id": "1", "event": "click"}]})
        assert answer.status_code == 503 and "No space left on device" in answer.json()["error"]
        seen = metrics(client)
    assert seen[("align3gr_events_lost_total",)] == 3 and ("align3gr_events_total", "click") not in seen


def test_too_many_at_once_are_told_to_come_again(recommender, monkeypatch):
    rank, all_sent = recommender.rank, threading.Event()
    monkeypatch.setattr(recommender, "rank", lambda *a, **options: all_sent.wait(1) or rank(*a, **options))
    app = make_app(recommender, max_batch_size=1, max_wait_ms=0, max_waiting=1)
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: client.post("/recommend", json={"history": ["1"]}), range(4)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert 1 <= len(refused) <= 2 and sum(answer.status_code == 200 for answer in answers) == 4 - len(refused)
    assert refused[0].headers["retry-after"] == "1" and "try again" in refused[0].json()["error"]


def test_a_search_that_fails_is_an_error_of_its_own_request(recommender, monkeypatch):
    rank = recommender.rank

    def failing(requests, *arguments, **options):
        if any(request.history[-1] == "13" for request in requests):
            raise RuntimeError("secret details")
        return rank(requests, *arguments, **options)

    monkeypatch.setattr(recommender, "rank", failing)
    app = make_app(recommender, max_wait_ms=200)
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(3) as threads:
        bodies = [{"history": [item]} for item in ("1", "13", "2")]
        answers = list(threads.map(lambda body: client.post("/recommend", json=body), bodies))
        assert metrics(client)[("align3gr_requests_total", "/recommend", "500")] == 1
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].json() == {"error": "the server failed; its log says why"}
