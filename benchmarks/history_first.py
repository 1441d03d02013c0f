"""Every system with five items of the history in front: is it the model that is better, or that it shows the history?

    python benchmarks/history_first.py runs/yelp runs/yelp-baselines

Needs finished evaluations, runs of the pipeline or studies of `align3gr baselines`, and the prepared data of the first
folder. From the rank of the target without items of the history (`per_user.parquet`) follows where it stands behind
the five latest distinct items; nothing is ranked again.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.evaluation import read_per_user

NUM_LATEST = 5


def places_of_latest(split: Split) -> pl.DataFrame:
    """For each test user: items in front, and the place of the target among them, 0 where it is not there."""
    questions, ids, items = split.histories("test"), split.users[USER_ID], split.items[ITEM_ID]
    rows = []
    for user, history, target in zip(questions.user_rows, questions.histories, questions.targets, strict=True):
        latest = list(dict.fromkeys(history[::-1].tolist()))[:NUM_LATEST]
        place = latest.index(target) + 1 if target in latest else 0
        rows.append((ids[int(user)], items[int(target)], len(latest), place))
    return pl.DataFrame(rows, schema=[USER_ID, ITEM_ID, "in_front", "place"], orient="row")


def ranks_behind(per_user: pl.DataFrame, places: pl.DataFrame) -> np.ndarray:
    """Rank of each target behind the latest items, 0 where it is not listed; `(users,)`."""
    frame = per_user.join(places, on=[USER_ID, ITEM_ID], how="left", maintain_order="left")
    place, in_front = frame["place"].to_numpy(), frame["in_front"].to_numpy()
    masked = frame["rank_masked"].fill_null(0).to_numpy()
    return np.where(place > 0, place, np.where(masked > 0, masked + in_front, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run folders with a finished evaluation; the first with data"
    )
    arguments = parser.parse_args()
    places = places_of_latest(Split.load(arguments.runs[0] / "data"))
    table = Table(
        "system", "users", "Recall@10 alone", "Recall@10", "NDCG@10", title="Five latest items, then the system"
    )
    for run in arguments.runs:
        frame = read_per_user(run)
        for system in frame["system"].unique(maintain_order=True):
            mine = frame.filter(pl.col("system") == system)
            alone = mine["rank_allowed"].fill_null(0).to_numpy()
            ranks = ranks_behind(mine, places)
            hits = (ranks > 0) & (ranks <= 10)
            gains = np.where(hits, 1 / np.log2(np.maximum(ranks, 1) + 1), 0)
            own = float(((alone > 0) & (alone <= 10)).mean())
            table.add_row(system, f"{len(mine):,}", f"{own:.4f}", f"{hits.mean():.4f}", f"{gains.mean():.4f}")
    Console(width=119).print(table)


if __name__ == "__main__":
    main()
