"""The rank of every user's target under every system, kept as a table so that any two runs can be compared later."""

from pathlib import Path

import numpy as np
import polars as pl

from align3gr.data.parquet_files import read_parquet
from align3gr.data.schema import DISLIKED_RATING, ITEM_ID, LIKED_RATING, RATING, USER_ID
from align3gr.errors import InputError
from align3gr.evaluation.metrics import ABSENT, RANK_METRICS
from align3gr.evaluation.significance import RESAMPLES, PairedTest, paired_test

PER_USER_FILE = "per_user.parquet"
SYSTEM = "system"
PER_USER_SCHEMA = {
    SYSTEM: pl.String,
    USER_ID: pl.String,
    ITEM_ID: pl.String,
    "rank_allowed": pl.Int64,
    "rank_masked": pl.Int64,
    "list_length": pl.Int64,
    "history_length": pl.Int64,
    "target_popularity": pl.Int64,
    "repeat": pl.Boolean,
    RATING: pl.Float64,
}
# Columns that say what was asked, the same for every system.
ASKED = (USER_ID, ITEM_ID, "history_length", "target_popularity", "repeat", RATING)
# Column of the report -> column of ranks, and which users count.
COLUMNS = {
    "seen_allowed": ("rank_allowed", pl.lit(True)),
    "seen_masked": ("rank_masked", pl.lit(True)),
    "discoveries": ("rank_masked", ~pl.col("repeat")),
    "seen_allowed_repeats": ("rank_allowed", pl.col("repeat")),
    "seen_allowed_discoveries": ("rank_allowed", ~pl.col("repeat")),
    "seen_allowed_liked": ("rank_allowed", pl.col(RATING) >= LIKED_RATING),
    "seen_masked_liked": ("rank_masked", pl.col(RATING) >= LIKED_RATING),
    "discoveries_liked": ("rank_masked", ~pl.col("repeat") & (pl.col(RATING) >= LIKED_RATING)),
    "seen_allowed_disliked": ("rank_allowed", pl.col(RATING) <= DISLIKED_RATING),
    "seen_masked_disliked": ("rank_masked", pl.col(RATING) <= DISLIKED_RATING),
}


def ranks_to_column(ranks: np.ndarray) -> pl.Series:
    """0-based ranks as a column of 1-based ones, null where the target is not in the list.

    >>> ranks_to_column(np.array([0, ABSENT])).to_list()
    [1, None]
    """
    ranks = np.asarray(ranks)
    # Filled first: ABSENT + 1 would overflow.
    column = pl.Series(np.where(ranks == ABSENT, 0, ranks) + 1)
    return column.to_frame("rank").select(pl.when(pl.Series(ranks != ABSENT)).then(pl.col("rank")))["rank"]


def column_to_ranks(column: pl.Series) -> np.ndarray:
    """The inverse of [`ranks_to_column`].

    >>> column_to_ranks(pl.Series([1, None])).tolist() == [0, ABSENT]
    True
    """
    return (column - 1).fill_null(ABSENT).to_numpy()


def read_per_user(path: str | Path) -> pl.DataFrame:
    """The table of a finished evaluation.

    Args:
        path: a `per_user.parquet`, or a run folder such as `runs/yelp`.

    Raises:
        InputError: it is missing or unreadable, or lacks a column.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        path = path / "evaluation" / PER_USER_FILE
    frame = read_parquet(path.parent, path.name)
    for name, dtype in PER_USER_SCHEMA.items():
        if frame.schema.get(name) != dtype:
            raise InputError(f"{path}: column '{name}' has type {frame.schema.get(name)}, expected {dtype}")
    return frame


def compare(
    run_a: str | Path,
    run_b: str | Path,
    system_a: str,
    system_b: str | None = None,
    metric: str = "recall@10",
    column: str = "seen_allowed",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Paired test of two systems of one run or of two, on the users that both were asked about.

    Args:
        run_a: run folder or `per_user.parquet`.
        run_b: the same of the second system; may be the same run.
        system_a: a row of the results, such as "SFT".
        system_b: the row of the second run; the same name if None.
        metric: recall, ndcg or mrr at any length up to that of the lists, such as "ndcg@5".
        column: one of `COLUMNS`.
        seed: of the resampling.
        resamples: see [`paired_test`].

    Raises:
        InputError: a name is unknown, the lists are too short, or the runs asked different questions.
    """
    name, _, length = metric.partition("@")
    if name not in RANK_METRICS or not length.isdigit():
        raise InputError(
            f"metric: got '{metric}', expected one of {', '.join(RANK_METRICS)} with a length, as recall@10"
        )
    if column not in COLUMNS:
        raise InputError(f"column: got '{column}', choose from {', '.join(COLUMNS)}")
    sides = (
        _system(run_a, system_a, int(length)),
        _system(run_b, system_a if system_b is None else system_b, int(length)),
    )
    both = sides[0].join(sides[1], on=USER_ID, how="inner", suffix="_b", maintain_order="left")
    if not len(both):
        raise InputError(f"{run_b}: shares no user with {run_a}; compare runs on the same data set")
    for name_of, what in ((ITEM_ID, "target"), ("history_length", "length of history")):
        different = both.filter(pl.col(name_of) != pl.col(f"{name_of}_b"))
        if len(different):
            raise InputError(
                f"{run_b}: user '{different[USER_ID][0]}' has another {what} than in {run_a}; compare on one split"
            )
    rank, asked = COLUMNS[column]
    both = both.filter(asked)
    if not len(both):
        raise InputError(f"column: '{column}' has no users in {run_a}; choose another")
    a, b = (RANK_METRICS[name](column_to_ranks(both[side]), int(length)) for side in (rank, f"{rank}_b"))
    return paired_test(a, b, seed, resamples)


def _system(run: str | Path, system: str, k: int) -> pl.DataFrame:
    frame = read_per_user(run)
    rows = frame.filter(pl.col(SYSTEM) == system)
    if not len(rows):
        known = ", ".join(frame[SYSTEM].unique(maintain_order=True))
        raise InputError(f"{run}: has no system '{system}', choose from {known}")
    shortest = rows["list_length"].to_numpy().min()
    if not 1 <= k <= shortest:
        raise InputError(f"metric: got length {k}, but the lists of '{system}' in {run} have {shortest} items")
    return rows
