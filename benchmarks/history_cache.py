"""Which share of the history cache is best, on validation targets.

    python benchmarks/history_cache.py --run_dir runs/yelp          # the SFT model of a finished run
    python benchmarks/history_cache.py --run_dir runs/yelp --model runs/yelp/sp_dpo/model --users 10000

Needs a run with the stages prepare, scid and sft. One search gives the lists of the model; each share mixes them anew.
Beside them stands what needs no mixture: five items of the history in front of the model's list. The last line is one
JSON object.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.decoding import HistoryCache, Recommender
from align3gr.evaluation import latest_then, rank_policy, sample_users, three_columns
from align3gr.scid import load_codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, required=True, help="a run with the stages prepare, scid and sft")
    parser.add_argument("--model", type=Path, help="folder of the model (default: that of the stage sft)")
    parser.add_argument("--users", type=int, default=6000, help="validation users")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split, scid = Split.load(arguments.run_dir / "data"), arguments.run_dir / "scid"
    item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
    user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
    recommender = Recommender.from_pretrained(arguments.model or arguments.run_dir / "sft" / "model")
    questions = sample_users(split.histories("validation"), arguments.users, seed=0)
    lists = rank_policy(recommender.search, recommender.prompt_builder, questions, item_codes, user_codes, 20)
    cache = HistoryCache.fit(split.train_sequences())
    variants = {
        "model alone": lists.seen_allowed,
        "five latest, then the model": latest_then(questions.histories, lists.seen_masked, 5),
    }
    for share in arguments.shares:
        mixed, _ = cache.with_share(share).mix(lists.seen_allowed, lists.seen_allowed_scores, questions.histories)
        variants[f"share {share:g}"] = mixed
    returns = np.mean(
        [target in history for target, history in zip(questions.targets, questions.histories, strict=True)]
    )
    title = f"{len(questions):,} validation users, {returns:.1%} return; strength {cache.strength:.1f}"
    table = Table("lists", "Recall@5", "Recall@10", "NDCG@5", "NDCG@10", title=title)
    figures: dict = {"users": len(questions), "returns": float(returns), "strength": cache.strength, "lists": {}}
    for name, ranked in variants.items():
        metrics = three_columns(
            ranked, lists.seen_masked, questions.targets, questions.histories, (5, 10), questions.ratings
        )["seen_allowed"]
        table.add_row(name, *(f"{metrics[name]:.4f}" for name in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")))
        figures["lists"][name] = metrics
    Console().print(table)
    line = json.dumps(figures)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
