"""`align3gr serve`: a model from a folder or the Hub, behind uvicorn, until it is told to stop."""

import logging
import signal
import socket
from pathlib import Path
from types import FrameType

import uvicorn

from align3gr.decoding.recommender import Recommender
from align3gr.listening import listen
from align3gr.serving.app import make_app
from align3gr.serving.event_log import EventLog
from align3gr.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 30  # for the requests that are under way; a service manager kills after 30 to 90
_KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that they are the ones to close


def run_server(settings: ServerSettings) -> None:
    """Serves until SIGTERM or Ctrl-C; requests that are under way are answered first.

    Args:
        settings: address, model and limits.

    Raises:
        InputError: the address is taken, or the model or the log's folder cannot be used.
    """
    listener = listen(settings.host, settings.port)  # before the model is loaded, which may take minutes
    try:
        log = None
        if settings.event_log is not None:
            log = EventLog(settings.event_log, settings.rotate_events, settings.rotate_seconds)
        recommender = Recommender.from_pretrained(
            settings.model,
            device=settings.device,
            num_beams=settings.num_beams,
            scid=settings.scid,
            history_cache=settings.history_cache,
        )
        recommender.recommend([[recommender.items["item_id"][0]]], k=1)  # the first search is slow
        app = make_app(
            recommender,
            Path(settings.model).name if Path(settings.model).is_dir() else settings.model,
            log,
            settings.max_batch_size,
            settings.max_wait_ms,
            settings.max_waiting,
            settings.max_body_bytes,
            settings.time_unit,
        )
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        # uvicorn raises the signal once more when all is done; without this the process would end as if killed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _told_to_stop)
        _Server(config, f"{len(recommender.items)} items on {recommender.model.device}").run(sockets=[listener])
        logger.info("stopped")
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """Says when it listens, and for what."""

    def __init__(self, config: uvicorn.Config, about: str):
        super().__init__(config)
        self._about = about

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            logger.info(
                "http://%s answers for %s", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", self._about
            )


def _told_to_stop(number: int, frame: FrameType | None) -> None:
    logger.info("told to stop by signal %d", number)
