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
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

# Browsers load and send nothing beyond this server, whatever Gradio's page names. Its scripts stand in the page and
# compile templates.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, to be had before models are loaded; port 0 takes any that is free.

    Args:
        host: a name or an address.
        port: a number; 0 for any that is free.

    Raises:
        InputError: there is no such address, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error}; give an address of this machine") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(f"--port {port}: {error} at {host}; choose another port or host") from error
    return listener


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
