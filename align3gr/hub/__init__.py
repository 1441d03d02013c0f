"""Finished runs on the Hub: recommenders, codes and catalogues that load with nothing but their id."""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.hub.push import ARTEFACTS, push_run
    from align3gr.hub.run_card import card, lineage

__getattr__, __all__ = attach(
    __name__,
    {"push": ("ARTEFACTS", "push_run"), "run_card": ("card", "lineage")},
)
