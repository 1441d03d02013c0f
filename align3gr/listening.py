"""A port to listen at, and uvicorn behind it until it is told to stop, for what answers over HTTP."""

import logging
import signal
import socket
from types import FrameType

import uvicorn

from align3gr.errors import InputError

logger = logging.getLogger(__name__)


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
        raise InputError(f"--host {host}: {error.strerror}; give a name or an address of this machine") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(f"--port {port}: {error.strerror} at {host}; choose another port or host") from error
    return listener


def serve(config: uvicorn.Config, listener: socket.socket, what: str) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        config: the application and its limits.
        listener: from [`listen`].
        what: what the line says of the address once it listens, such as "answers for 80 items".
    """
    # uvicorn raises the signal once more when all is done; without this the process would end as if killed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _told_to_stop)
    _Server(config, what).run(sockets=[listener])
    logger.info("stopped")


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, what: str):
        super().__init__(config)
        self._what = what

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            logger.info("http://%s:%d %s", f"[{host}]" if ":" in host else host, port, self._what)


def _told_to_stop(number: int, frame: FrameType | None) -> None:
    logger.info("told to stop by signal %d", number)
