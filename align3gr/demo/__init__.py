"""`align3gr demo-ui`: a page that shows a recommender at work, and what it shows as plain values."""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.demo.beam_levels import BeamLevel, BeamViewer, KeptPrefix
    from align3gr.demo.opening import open_demo
    from align3gr.demo.page import make_page
    from align3gr.demo.server import make_app, run_demo
    from align3gr.demo.session import DemoAnswer, DemoSession, ModelAnswer

__getattr__, __all__ = attach(
    __name__,
    {
        "beam_levels": ("BeamLevel", "BeamViewer", "KeptPrefix"),
        "opening": ("open_demo",),
        "page": ("make_page",),
        "server": ("make_app", "run_demo"),
        "session": ("DemoAnswer", "DemoSession", "ModelAnswer"),
    },
)
