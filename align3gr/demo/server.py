"""`align3gr demo-ui`: the page behind uvicorn, on this machine alone unless it is told otherwise."""

import logging
import signal
import socket

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from align3gr.demo.html import STYLE
from align3gr.demo.page import make_page
from align3gr.demo.session import DemoSession

logger = logging.getLogger(__name__)

# Browsers load and send nothing beyond this server, whatever Gradio's page names. Its scripts stand in the page and
# compile templates.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class _Policy:
    """Adds the policy to every answer; plain ASGI, because Starlette's other kind of middleware holds streams back."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def make_app(session: DemoSession) -> FastAPI:
    """The page as an application for any ASGI server.

    Args:
        session: what the page shows.
    """
    app = FastAPI(openapi_url=None)
    app.add_middleware(_Policy)
    page = make_page(session)
    return gr.mount_gradio_app(app, page, "/", css=STYLE, ssr_mode=False, footer_links=[], run_history=False)


class _Server(uvicorn.Server):
    """Says when it listens, and what it shows."""

    def __init__(self, config: uvicorn.Config, about: str):
        super().__init__(config)
        self._about = about

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            logger.info("http://%s:%d shows %s", f"[{host}]" if ":" in host else host, port, self._about)


def run_demo(session: DemoSession, listener: socket.socket) -> None:
    """Serves the page until SIGTERM or Ctrl-C.

    Args:
        session: what the page shows.
        listener: from [`listen`].
    """
    config = uvicorn.Config(make_app(session), log_level="warning", timeout_graceful_shutdown=5)
    # uvicorn raises the signal once more when all is done; without this the process would end as if killed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    _Server(config, " beside ".join(session.names)).run(sockets=[listener])
