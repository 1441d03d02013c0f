"""An HTTP server over a recommender: one search for requests that arrive together, and a log of events for RF-DPO."""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.serving.app import make_app
    from align3gr.serving.batching import Batcher, Overloaded
    from align3gr.serving.event_log import EventLog
    from align3gr.serving.server import run_server
    from align3gr.serving.settings import ServerSettings

__getattr__, __all__ = attach(
    __name__,
    {
        "app": ("make_app",),
        "batching": ("Batcher", "Overloaded"),
        "event_log": ("EventLog",),
        "server": ("run_server",),
        "settings": ("ServerSettings",),
    },
)
