"""Settings of TRL's `SFTTrainer` that would cut rows within an SCID or lose their branches."""

import pyarrow.compute as pc
from datasets import Dataset
from trl import SFTConfig

from align3gr.errors import InputError
from align3gr.sft.dataset import BRANCH_STARTS


def check_rows(rows: Dataset, arguments: SFTConfig) -> None:
    """Makes sure that the trainer takes each row as it is.

    Args:
        rows: of the train set.
        arguments: the options of the Trainer.

    Raises:
        InputError: packing would cut rows or mix them up (`wrapped`, `bfd_split`, rows with branches), the longest row
            exceeds `max_length`, or the columns of branches would be dropped.
    """
    longest, branches = _longest_and_branches(rows)
    if arguments.packing and branches:
        raise InputError(
            "packing: got true, but rows of the objective tree cannot be packed, their branches would see each other; "
            "set packing: false, or take the objective prefix or every_item"
        )
    if arguments.packing and arguments.packing_strategy != "bfd":
        raise InputError(
            f"packing_strategy: got {arguments.packing_strategy!r}, which cuts SCIDs in the middle; use bfd, which "
            "keeps rows whole"
        )
    if arguments.max_length is not None and longest > arguments.max_length:
        raise InputError(
            f"max_length: got {arguments.max_length}, but the longest row has {longest} tokens and would lose its "
            f"answer; set max_length: {longest} or more"
        )
    if branches and arguments.remove_unused_columns:
        raise InputError(
            "remove_unused_columns: got true, but the objective tree needs the columns of its branches; "
            "set remove_unused_columns: false"
        )


def _longest_and_branches(rows: Dataset) -> tuple[int, bool]:
    """Tokens of the longest row, and whether any row has branches."""
    longest, branches = 0, False
    for table in rows.with_format("arrow").iter(batch_size=10_000):
        longest = max(longest, pc.max(pc.list_value_length(table["input_ids"])).as_py())
        if BRANCH_STARTS in table.column_names:
            branches |= bool(pc.max(pc.list_value_length(table[BRANCH_STARTS])).as_py())
    return longest, branches
