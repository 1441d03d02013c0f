"""`align3gr demo-ui`: the page behind uvicorn, on this machine alone unless it is told otherwise."""

import socket

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from align3gr.demo.html import STYLE
from align3gr.demo.page import make_page
from align3gr.demo.session import DemoSession
from align3gr.listening import serve

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


def run_demo(session: DemoSession, listener: socket.socket) -> None:
    """Serves the page until SIGTERM or Ctrl-C.

    Args:
        session: what the page shows.
        listener: from [`listen`].
    """
    config = uvicorn.Config(make_app(session), log_level="warning", timeout_graceful_shutdown=5)
    serve(config, listener, f"shows {' beside '.join(session.names)}")
