"""Around every request: a limit to its size, and its time and status for the metrics."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.responses import JSONResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# A client that has sent all it wanted reads the refusal; one that is cut off in the middle sees a broken connection.
_READ_AND_FORGOTTEN = 16  # times the limit


class BodyLimit:
    """Reads bodies, and refuses those above a limit with status 413; no more than the limit is ever kept.

    Args:
        app: the application.
        limit: bytes.
    """

    def __init__(self, app: App, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = _declared_length(scope)
        body, size, more = bytearray(), 0, length <= self._limit * _READ_AND_FORGOTTEN
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":  # gone before all was said
                return
            part = message.get("body", b"")
            size += len(part)
            if size <= self._limit:
                body += part
            more = message.get("more_body", False) and size <= self._limit * _READ_AND_FORGOTTEN
        size = max(size, length)
        if size > self._limit:
            text = f"body: more than {self._limit:,} bytes; send less, or start the server with more --max_body_bytes"
            await JSONResponse({"error": text}, 413, {"connection": "close"})(scope, receive, send)
            return
        first: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal first
            message, first = first, None
            return message if message is not None else await receive()

        await self._app(scope, replay, send)


class Measured:
    """Counts requests by endpoint and status, and measures their time.

    Args:
        app: the application.
        endpoints: paths that stand in the metrics; all others are "other".
        requests: counter with the labels endpoint and status.
        seconds: histogram with the label endpoint.
    """

    def __init__(self, app: App, endpoints: frozenset[str], requests: Counter, seconds: Histogram):
        self._app, self._endpoints, self._requests, self._seconds = app, endpoints, requests, seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499  # nobody was answered: the client is gone

        async def noticing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noticing)
        except Exception:
            status = 500
            raise
        finally:
            endpoint = scope["path"] if scope["path"] in self._endpoints else "other"
            self._requests.labels(endpoint, str(status)).inc()
            self._seconds.labels(endpoint).observe(time.perf_counter() - start)


def _declared_length(scope: Message) -> int:
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(value) if value.isdigit() else 0
