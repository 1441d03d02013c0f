"""Ranking metrics over arrays against Python loops over the users, on the same lists in the same process.

    python benchmarks/metrics.py         # seconds
    python benchmarks/metrics.py --full  # also lists of 100 and a million users

The loops are those of scripts that evaluate generative recommenders: lists of item ids as strings. `usual` marks every
hit of a list and sums the gains at each k, `lean` finds the target's place once a list (`list.index`) and adds up only
what is found. Each side takes its own form of the lists as given, and computes Recall, NDCG and MRR at every k; the
three columns also mask nothing and find repeats in the histories. One thread, process CPU time, rounds interleaved,
medians of the rounds' ratios. The last line is one JSON object.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

from align3gr.evaluation import mean_metrics, target_ranks, three_columns

ITEMS, HISTORY, HIT_SHARE = 20_011, 10, 0.1  # a prime, so that multiples of a stride are distinct items
Means = dict[str, float]
Run = Callable[[], Means]


class Lists:
    """Lists of k items, a tenth of which hold their target, and histories, a third of which do.

    `rankings` and `masked` are `(users, k)`; strings of the same stand in `*_ids`.
    """

    def __init__(self, users: int, k: int) -> None:
        rng = np.random.default_rng(0)
        self.ks = tuple(n for n in (1, 5, 10, 20, 100) if n <= k)
        self.targets = rng.integers(ITEMS, size=users)
        first, stride = rng.integers(1, ITEMS, size=(2, users, 1))
        self.rankings = (first + stride * np.arange(k)) % ITEMS
        hit = (rng.random(users) < HIT_SHARE) & (self.rankings != self.targets[:, None]).all(axis=1)
        self.rankings[hit, rng.integers(k, size=hit.sum())] = self.targets[hit]
        self.histories = [rng.integers(ITEMS, size=HISTORY) for _ in range(users)]
        for user in np.flatnonzero(rng.random(users) < 1 / 3):
            self.histories[user][0] = self.targets[user]
        seen = np.array([target in history for target, history in zip(self.targets, self.histories, strict=True)])
        self.masked = np.where(seen[:, None] & (self.rankings == self.targets[:, None]), -1, self.rankings)
        self.target_ids = [str(item) for item in self.targets]
        self.ranking_ids, self.masked_ids, self.history_ids = (
            [[str(item) for item in row] for row in rows.tolist()]
            for rows in (self.rankings, self.masked, np.stack(self.histories))
        )


def usual_loop(rankings: Sequence[list[str]], targets: Sequence[str], ks: Sequence[int]) -> Means:
    sums = {f"{name}@{k}": 0.0 for k in ks for name in ("recall", "ndcg", "mrr")}
    for ranking, target in zip(rankings, targets, strict=True):
        hits = [1 if item == target else 0 for item in ranking]
        for k in ks:
            sums[f"recall@{k}"] += sum(hits[:k])
            sums[f"ndcg@{k}"] += sum(hit / math.log2(place + 2) for place, hit in enumerate(hits[:k]))
            sums[f"mrr@{k}"] += sum(hit / (place + 1) for place, hit in enumerate(hits[:k]))
    return {name: value / len(targets) for name, value in sums.items()}


def lean_loop(rankings: Sequence[list[str]], targets: Sequence[str], ks: Sequence[int]) -> Means:
    sums = {f"{name}@{k}": 0.0 for k in ks for name in ("recall", "ndcg", "mrr")}
    for ranking, target in zip(rankings, targets, strict=True):
        if target not in ranking:
            continue
        place = ranking.index(target)
        for k in ks:
            if place < k:
                sums[f"recall@{k}"] += 1
                sums[f"ndcg@{k}"] += 1 / math.log2(place + 2)
                sums[f"mrr@{k}"] += 1 / (place + 1)
    return {name: value / len(targets) for name, value in sums.items()}


def looped_columns(lists: Lists) -> Means:
    """The five columns without ratings, each by the usual loop over its users."""
    repeat = [target in history for target, history in zip(lists.target_ids, lists.history_ids, strict=True)]
    new = [not seen for seen in repeat]
    everyone = [True] * len(repeat)
    found: Means = {}
    for column, rankings, asked in (
        ("seen_allowed", lists.ranking_ids, everyone),
        ("seen_masked", lists.masked_ids, everyone),
        ("discoveries", lists.masked_ids, new),
        ("seen_allowed_repeats", lists.ranking_ids, repeat),
        ("seen_allowed_discoveries", lists.ranking_ids, new),
    ):
        rows = [(row, target) for row, target, yes in zip(rankings, lists.target_ids, asked, strict=True) if yes]
        means = usual_loop([row for row, _ in rows], [target for _, target in rows], lists.ks)
        found |= {f"{column} {name}": value for name, value in means.items()}
    return found


def array_columns(lists: Lists) -> Means:
    columns = three_columns(lists.rankings, lists.masked, lists.targets, lists.histories, lists.ks)
    return {
        f"{column} {name}": value
        for column, means in columns.items()
        for name, value in means.items()
        if name != "users"
    }


def array_metrics(lists: Lists) -> Means:
    means = mean_metrics(target_ranks(lists.rankings, lists.targets), lists.ks)
    return {name: value for name, value in means.items() if name != "users"}


def interleaved(ours: Run, theirs: Sequence[Run], rounds: int) -> tuple[list[float], list[float], float]:
    """Median seconds of all (ours first), median ratios to ours, and the largest difference of any mean."""
    times: list[list[float]] = [[] for _ in range(1 + len(theirs))]
    difference = 0.0
    for _ in range(rounds):
        means = []
        for run, seconds in zip((ours, *theirs), times, strict=True):
            started = time.process_time()
            means.append(run())
            seconds.append(time.process_time() - started)
        for other in means[1:]:
            assert other.keys() == means[0].keys()
            difference = max(difference, *(abs(other[name] - value) for name, value in means[0].items()))
    ratios = [[b / a for a, b in zip(times[0], other, strict=True)] for other in times[1:]]
    return [statistics.median(t) for t in times], [statistics.median(r) for r in ratios], difference


def measure(console: Console, settings: Sequence[tuple[int, int]], rounds: int) -> dict[str, float]:
    table = Table(title="Recall, NDCG and MRR at every k", title_justify="left")
    for column in ("users", "k", "what", "arrays, ms", "usual loop, ms", "ratio", "lean loop, ms", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    figures: dict[str, float] = {}
    for users, k in settings:
        lists = Lists(users, k)
        loops = [
            lambda loop=loop, lists=lists: loop(lists.ranking_ids, lists.target_ids, lists.ks)
            for loop in (usual_loop, lean_loop)
        ]
        times, ratios, difference = interleaved(lambda lists=lists: array_metrics(lists), loops, rounds)
        columns = interleaved(
            lambda lists=lists: array_columns(lists), [lambda lists=lists: looped_columns(lists)], rounds
        )
        ms = [f"{1000 * seconds:,.1f}" for seconds in (*times, *columns[0])]
        table.add_row(f"{users:,}", f"{k}", "one list", ms[0], ms[1], f"{ratios[0]:.0f}", ms[2], f"{ratios[1]:.0f}")
        table.add_row("", "", "three columns", ms[3], ms[4], f"{columns[1][0]:.0f}", "", "")
        if not figures:
            figures = {
                "metrics_ratio": ratios[0],
                "lean_loop_ratio": ratios[1],
                "columns_ratio": columns[1][0],
                "max_difference": max(difference, columns[2]),
            }
    console.print(table)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also lists of 100 and a million users")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    options = parser.parse_args()
    settings = [(20_000, 20), *([(20_000, 100), (1_000_000, 20)] if options.full else [])]
    figures = measure(Console(width=120), settings, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
