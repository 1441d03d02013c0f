"""Tables of trainings that differ in stated options: one cell a row and seed, kept as it is finished.

Every cell trains and is judged in a folder of its own, below the run whose data and codes it shares. A cell that is
there already with the same options, files and seed is not run again, so a table can grow over several days; a killed
cell goes on from its last checkpoint. The table says which cells are missing. A row of preference training starts from
the model that the cell of another row ended with; a row can have codes of its own, which rows of the same codes share.
"""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.ablation.cells import AblationArguments, Cell, table_cells
    from align3gr.ablation.codes import RowCodes
    from align3gr.ablation.figure import Step, draw_steps
    from align3gr.ablation.running import run_table
    from align3gr.ablation.table import write_table

__getattr__, __all__ = attach(
    __name__,
    {
        "cells": ("AblationArguments", "Cell", "table_cells"),
        "codes": ("RowCodes",),
        "figure": ("Step", "draw_steps"),
        "running": ("run_table",),
        "table": ("write_table",),
    },
)
