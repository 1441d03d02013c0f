"""Reports for people: tables and plots of what the stages made."""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.report.run_report import write_run_report
    from align3gr.report.scid_plots import plot_codebook_usage, plot_item_map
    from align3gr.report.scid_report import write_scid_report

__getattr__, __all__ = attach(
    __name__,
    {
        "run_report": ("write_run_report",),
        "scid_plots": ("plot_codebook_usage", "plot_item_map"),
        "scid_report": ("write_scid_report",),
    },
)
