"""The HTTP application: questions to a recommender, events to a log, health and metrics."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

import align3gr
from align3gr.decoding.recommender import Recommender
from align3gr.decoding.requests import Recommendation
from align3gr.errors import InputError
from align3gr.serving.batching import Batcher, Overloaded
from align3gr.serving.event_log import Event, EventLog
from align3gr.serving.messages import (
    EventsAnswer,
    EventsRequest,
    Health,
    RecommendAnswer,
    RecommendedItem,
    RecommendRequest,
)
from align3gr.serving.middleware import BodyLimit, Measured
from align3gr.serving.search import Question, answer, question_of
from align3gr.serving.settings import TIME_UNITS

logger = logging.getLogger(__name__)

ENDPOINTS = frozenset({"/recommend", "/events", "/health", "/metrics"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What `/metrics` shows, by the names that Prometheus sees."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "align3gr_requests", "Requests; 499: the client was gone", ["endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "align3gr_request_seconds", "Time of a request", ["endpoint"], buckets=_SECONDS, registry=registry
        )
        self.search = Histogram("align3gr_search_seconds", "Time of a batch", buckets=_SECONDS, registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batch = Histogram("align3gr_batch_users", "Requests in a batch", buckets=sizes, registry=registry)
        self.waiting = Gauge("align3gr_waiting", "Requests that no batch has taken yet", registry=registry)
        self.events = Counter("align3gr_events", "Events in the log", ["event"], registry=registry)
        self.lost = Counter("align3gr_events_lost", "Impressions that could not be logged", registry=registry)


class Service:
    """What stands behind the endpoints.

    Args:
        recommender: the model with its catalogue.
        name: of the model, for `/health`.
        log: where events go; None for no log.
        max_batch_size, max_wait_ms, max_waiting: see [`Batcher`].
        time_unit: of the timestamps in the log, one of `TIME_UNITS`.
    """

    def __init__(
        self,
        recommender: Recommender,
        name: str,
        log: EventLog | None,
        max_batch_size: int,
        max_wait_ms: float,
        max_waiting: int,
        time_unit: str,
    ):
        self.recommender, self.name, self.log, self.metrics = recommender, name, log, Metrics()
        self._limits = max_batch_size, max_wait_ms / 1000, max_waiting
        self._ticks = TIME_UNITS[time_unit]
        self._batcher: Batcher[Question, list[Recommendation]] | None = None

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Between the start and the end of the application."""
        self._batcher = batcher = Batcher(self._answer, *self._limits)
        self.metrics.waiting.set_function(lambda: batcher.waiting)
        rotation = asyncio.create_task(self._rotate())
        try:
            yield
        finally:
            rotation.cancel()
            await asyncio.gather(rotation, return_exceptions=True)
            await batcher.close()
            if self.log is not None:
                await asyncio.to_thread(self.log.close)

    async def recommend(self, message: RecommendRequest) -> RecommendAnswer:
        """A list; what it shows is in the log before it is answered.

        Raises:
            InputError: the request cannot be answered.
            Overloaded: too many wait.
        """
        assert self._batcher is not None
        question, skipped = question_of(self.recommender, message)
        items = await self._batcher.ask(question)
        request_id = uuid.uuid4().hex
        if self.log is not None and message.log_impressions and message.user_id is not None:
            now = self.now()
            shown = [
                Event(message.user_id, item.item_id, now, "impression", request_id, rank, item.score)
                for rank, item in enumerate(items, start=1)
            ]
            try:
                await self.write(shown)
            except OSError:  # a full disk is no reason to show nothing
                self.metrics.lost.inc(len(shown))
                logger.exception("impressions could not be logged")
        ranked = [
            RecommendedItem(rank=rank, item_id=item.item_id, title=item.title, score=item.score)
            for rank, item in enumerate(items, start=1)
        ]
        return RecommendAnswer(request_id=request_id, items=ranked, skipped=skipped)

    async def write(self, events: Sequence[Event]) -> None:
        """Into the log, which there must be."""
        assert self.log is not None
        await asyncio.to_thread(self.log.append, events)
        for event in events:
            self.metrics.events.labels(event.event).inc()

    def now(self) -> int:
        return time.time_ns() * self._ticks // 10**9

    def _answer(self, questions: Sequence[Question]) -> list[list[Recommendation] | Exception]:
        self.metrics.batch.observe(len(questions))
        with self.metrics.search.time():
            return answer(self.recommender, questions)

    async def _rotate(self) -> None:
        while self.log is not None:
            await asyncio.sleep(1)
            await asyncio.to_thread(self.log.rotate_if_due)


def make_app(
    recommender: Recommender,
    name: str = "model",
    log: EventLog | None = None,
    max_batch_size: int = 32,
    max_wait_ms: float = 5,
    max_waiting: int = 1024,
    max_body_bytes: int = 2**20,
    time_unit: str = "us",
) -> FastAPI:
    """The application, for uvicorn or any other ASGI server with one worker.

    Args:
        recommender, name, log, max_batch_size, max_wait_ms, max_waiting, time_unit: see [`Service`].
        max_body_bytes: the largest body of a request.
    """
    service = Service(recommender, name, log, max_batch_size, max_wait_ms, max_waiting, time_unit)
    app = FastAPI(
        title="align3gr",
        version=align3gr.__version__,
        lifespan=service.running,
        docs_url=None,  # that page would load its code from a public server
        redoc_url=None,
        strict_content_type=False,
    )
    _add_endpoints(app, service)
    for error, handler in _HANDLERS.items():
        app.add_exception_handler(error, handler)
    app.add_middleware(BodyLimit, limit=max_body_bytes)
    metrics = service.metrics
    app.add_middleware(Measured, endpoints=ENDPOINTS, requests=metrics.requests, seconds=metrics.seconds)
    return app


def _add_endpoints(app: FastAPI, service: Service) -> None:
    @app.post("/recommend", response_model=RecommendAnswer)
    async def recommend(message: RecommendRequest, request: Request) -> Any:
        found = await _while_connected(request, service.recommend(message))
        return Response(status_code=499) if found is None else found

    @app.post("/events")
    async def events(message: EventsRequest) -> EventsAnswer:
        if service.log is None:
            raise HTTPException(404, "events: this server keeps no log; start it with --event_log FOLDER")
        now = service.now()
        rows = [
            Event(e.user_id, e.item_id, now if e.timestamp is None else e.timestamp, e.event, e.request_id, e.rank)
            for e in message.events
        ]
        try:
            await service.write(rows)
        except OSError as error:
            raise HTTPException(503, f"events: could not be logged ({error.strerror}); send them again") from error
        return EventsAnswer(logged=len(rows))

    @app.get("/health")
    async def health() -> Health:
        recommender = service.recommender
        return Health(
            status="ok",
            model=service.name,
            items=len(recommender.items),
            users=0 if recommender.users is None else len(recommender.users),
            num_beams=recommender.search.num_beams,
            device=str(recommender.model.device),
            version=align3gr.__version__,
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _while_connected(request: Request, work: Any) -> Any:
    """The result, or None where the client was gone before; then the work is given up."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await working


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first, *more = error.errors()
    if isinstance(first.get("input"), bytes):  # not read as JSON, as its type is another: curl -d sends a form's
        kind = request.headers.get("content-type")
        return _refusal(415, f"content-type: got {kind!r}, expected application/json (curl: --json in place of -d)")
    where = ".".join(map(str, first["loc"][1:])) or "body"
    rest = f" (and {len(more)} more)" if more else ""
    if first["type"] == "json_invalid":
        return _refusal(400, f"body: no JSON at character {where}: {first['ctx']['error']}")
    return _refusal(422, f"{where}: {first['msg']}{rest}; see /openapi.json")


async def _wrong(request: Request, error: Exception) -> Response:
    return _refusal(422, str(error))


async def _busy(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"busy: {error}; try again"}, 503, {"retry-after": "1"})


async def _other(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refusal(error.status_code, str(error.detail))


async def _failed(request: Request, error: Exception) -> Response:
    return _refusal(500, "the server failed; its log says why")


def _refusal(status: int, text: str) -> Response:
    return JSONResponse({"error": " ".join(text.split())}, status)


_HANDLERS: dict[Any, Any] = {
    RequestValidationError: _invalid,
    InputError: _wrong,
    Overloaded: _busy,
    HTTPException: _other,
    Exception: _failed,
}
