"""What a validation target costs, by its first code and the rest of its SCID, and what a wider beam finds.

    python benchmarks/lost_targets.py runs/yelp
    python benchmarks/lost_targets.py runs/yelp/codebooks/3-x-256/seed-0 --beams 20 50 100 200

Needs prepared data and codes, and for the second command a fine-tuned model with a normalised catalogue, such as the
cells of `recipes/yelp/ablation-codebooks.yaml` with `--keep_models true`. Nats are a mean over users.
Matrix factorisation is the default setting of `align3gr baselines`; its scores are divided by the temperature and
counts added with the weight that suit these very targets best, so it is shown better than it is.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from align3gr.baselines.matrix_factorization import MatrixFactorization
from align3gr.data import Split
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.decoding import Recommender
from align3gr.evaluation import rank_policy, sample_users, three_columns
from align3gr.scid import load_codes

TEMPERATURES, WEIGHTS = (0.05, 0.07, 0.1, 0.15, 0.2), (0.0, 0.5, 1.0)
Nats = tuple[float, float]


def nats_of_scores(scores: torch.Tensor, first_codes: torch.Tensor, targets: torch.Tensor) -> Nats:
    """Nats of the first code of each target and of the item behind it, under a softmax of scores.

    Shapes: `(users, items)` or `(1, items)` for all users, `(items,)`, `(users,)`.
    """
    scores = scores.expand(len(targets), -1)
    whole = F.cross_entropy(scores, targets).item()
    others = first_codes[None, :] != first_codes[targets][:, None]
    behind = F.cross_entropy(scores.masked_fill(others, float("-inf")), targets).item()
    return whole - behind, behind


def nats_of_model(recommender: Recommender, prompts: list[list[int]], codes: np.ndarray) -> list[float]:
    """Nats of each level, a mean over the prompts, over what the catalogue has there; `codes`: `(prompts, levels)`."""
    search = recommender.search
    if search.likelihood is None:
        raise SystemExit("the model was trained over the whole vocabulary; fine-tune with normalizer: catalogue")
    answers = torch.from_numpy(recommender.prompt_builder.vocabulary.item_ids(codes))
    levels, found = codes.shape[1], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.cat([torch.tensor(prompt), answer[:-1]])
        with torch.no_grad():
            logits = recommender.model(input_ids=ids[None]).logits[0, -levels:]
        found.append(search.likelihood.log_probs(logits, torch.arange(levels)[None], answer[None])[0])
    return (-torch.stack(found).mean(0)).tolist()


def counted(split: Split) -> np.ndarray:
    """Train interactions of each item, and one more."""
    return np.bincount(np.concatenate(split.train_sequences()), minlength=len(split.items)) + 1.0


def measure_scores(split: Split, first_codes: np.ndarray, asked: EvaluationSet, console: Console) -> dict[str, Nats]:
    """Way of scoring -> nats of the first code, and behind it."""
    codes, targets = torch.from_numpy(first_codes).long(), torch.from_numpy(asked.targets).long()
    popular = torch.from_numpy(np.log(counted(split) / counted(split).sum())).float()
    mf = MatrixFactorization(seed=0).fit(split.train_sequences(), len(split.items))
    users = torch.as_tensor(mf.user_vectors(asked.histories, asked.user_rows)).float()
    scores = users @ torch.as_tensor(mf.item_vectors()).float().T
    found = {"popularity": nats_of_scores(popular[None], codes, targets)}
    tried = [
        nats_of_scores(scores / temperature + weight * popular, codes, targets)
        for temperature in TEMPERATURES
        for weight in WEIGHTS
    ]
    found["MF, at its best"] = min(tried, key=sum)
    found["alike"] = nats_of_scores(torch.zeros_like(popular)[None], codes, targets)
    table = Table("", "first code", "behind it", "together", title=f"Nats of a target, {len(asked):,} users")
    for name, (first, behind) in found.items():
        table.add_row(name, f"{first:.2f}", f"{behind:.2f}", f"{first + behind:.2f}")
    console.print(table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with data and scid, and sft where there is a model")
    parser.add_argument("--users", type=int, default=2000, help="validation users (default: 2000)")
    parser.add_argument("--beams", type=int, nargs="+", default=[20, 50], help="beams to compare (default: 20 50)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, split = Console(), Split.load(arguments.run / "data")
    codes = load_codes(arguments.run / "scid" / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
    asked = sample_users(split.histories("validation"), arguments.users, seed=0)
    measure_scores(split, codes[:, 0], asked, console)
    if not (arguments.run / "sft" / "model").is_dir():
        return
    user_codes = load_codes(arguments.run / "scid" / "user_codes.parquet", USER_ID, split.users[USER_ID])
    table = Table("beam", "Recall@10", "NDCG@10", "masked Recall@10", title="Width of the search")
    for beams in arguments.beams:
        recommender = Recommender.from_pretrained(arguments.run / "sft" / "model", num_beams=beams)
        prompts = recommender.prompt_builder
        if beams == arguments.beams[0]:
            rows = zip(asked.user_rows, asked.histories, strict=True)
            texts = [prompts.prompt(user_codes[user], codes[history]) for user, history in rows]
            levels = nats_of_model(recommender, texts, codes[asked.targets])
            console.print(f"The model: {', '.join(f'{value:.2f}' for value in levels)} by level, {sum(levels):.2f}")
        lists = rank_policy(recommender.search, prompts, asked, codes, user_codes, 10, progress=False)
        columns = three_columns(lists.seen_allowed, lists.seen_masked, asked.targets, asked.histories, (10,))
        allowed, masked = columns["seen_allowed"], columns["seen_masked"]
        table.add_row(
            str(beams), *(f"{v:.4f}" for v in (allowed["recall@10"], allowed["ndcg@10"], masked["recall@10"]))
        )
    console.print(table)


if __name__ == "__main__":
    main()
