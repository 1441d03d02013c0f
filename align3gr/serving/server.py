"""`align3gr serve`: a model from a folder or the Hub, behind uvicorn, until it is told to stop."""

from pathlib import Path

import uvicorn

from align3gr.decoding.recommender import Recommender
from align3gr.listening import listen, serve
from align3gr.serving.app import make_app
from align3gr.serving.event_log import EventLog
from align3gr.serving.settings import ServerSettings

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
        serve(config, listener, f"answers for {len(recommender.items)} items on {recommender.model.device}")
    finally:
        listener.close()
