"""What a validation target costs, by its first code and the rest of its SCID, and what a wider beam finds.

    python benchmarks/lost_targets.py runs/yelp
    python benchmarks/lost_targets.py runs/yelp/codebooks/3-x-256/seed-0 --beams 20 50 100 200
    python benchmarks/lost_targets.py runs/yelp/codebooks/1-024-and-64/seed-0 --exchange

The last ranks the whole catalogue by the model's probabilities of first codes and MF's of the items behind them, and
the other way round: which part of a list is worth having from whom.

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
from align3gr.decoding import ExhaustiveSearch, Recommender
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


def parted(scores: torch.Tensor, first_codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities under a softmax of scores: of each item's first code, and of the item behind it.

    Shapes: `(users, items)`, `(items,)` -> twice `(users, items)`.
    """
    scores = scores.log_softmax(-1)
    of_code = scores.new_full((len(scores), int(first_codes.max()) + 1), float("-inf"))
    for code in first_codes.unique().tolist():
        of_code[:, code] = scores[:, first_codes == code].logsumexp(-1)
    first = of_code[:, first_codes]
    return first, scores - first


def masked_recall(scores: torch.Tensor, asked: EvaluationSet, k: int = 10) -> float:
    """Recall@k over all items that are not in the history. Shape: `(users, items)`."""
    scores = scores.clone()
    users = np.repeat(np.arange(len(asked)), [len(history) for history in asked.histories])
    scores[torch.from_numpy(users), torch.from_numpy(np.concatenate(asked.histories))] = float("-inf")
    seen = torch.tensor(
        [target in set(history) for target, history in zip(asked.targets, asked.histories, strict=True)]
    )
    hits = (scores.topk(k).indices == torch.from_numpy(asked.targets)[:, None]).any(1)
    return (hits & ~seen).float().mean().item()


def scores_of_model(recommender: Recommender, prompts: list[list[int]], items: int) -> torch.Tensor:
    """Log-probabilities of the whole catalogue: `(prompts, items)`."""
    search, found = recommender.search, torch.empty(len(prompts), items)
    every = ExhaustiveSearch(search.model, search.trie, recommender.prompt_builder.vocabulary.item_tokens)
    for row, prompt in enumerate(prompts):
        top = every.search(torch.tensor([prompt])).top(items)
        found[row, top.items[0]] = top.scores[0].float()
    return found


def measure_exchange(
    model: torch.Tensor, mf: torch.Tensor, popular: torch.Tensor, codes: torch.Tensor, asked: EvaluationSet
) -> dict[str, float]:
    """Masked Recall@10 of each way to put the two parts together; MF's with what suits each part best, in nats."""
    targets = torch.from_numpy(asked.targets).long()
    tried = [(mf / temperature + weight * popular) for temperature in TEMPERATURES for weight in WEIGHTS]
    nats = [nats_of_scores(scores, codes, targets) for scores in tried]
    best = [tried[min(range(len(tried)), key=lambda at: nats[at][part])] for part in (0, 1)]
    mf_first, mf_behind = parted(best[0], codes)[0], parted(best[1], codes)[1]
    first, behind = parted(model, codes)
    _, popular_behind = parted(popular.expand(len(model), -1), codes)
    return {
        "the model": masked_recall(model, asked),
        "its first codes, popularity behind": masked_recall(first + popular_behind, asked),
        "its first codes, MF behind": masked_recall(first + mf_behind, asked),
        "MF's first codes, the model behind": masked_recall(mf_first + behind, asked),
        "MF's first codes, MF behind": masked_recall(mf_first + mf_behind, asked),
        "MF, its scores": masked_recall(mf, asked),
    }


def counted(split: Split) -> np.ndarray:
    """Train interactions of each item, and one more."""
    return np.bincount(np.concatenate(split.train_sequences()), minlength=len(split.items)) + 1.0


def scores_of_mf(split: Split, asked: EvaluationSet) -> torch.Tensor:
    """`(users, items)` of the default setting of `align3gr baselines`."""
    mf = MatrixFactorization(seed=0).fit(split.train_sequences(), len(split.items))
    users = torch.as_tensor(mf.user_vectors(asked.histories, asked.user_rows)).float()
    return users @ torch.as_tensor(mf.item_vectors()).float().T


def measure_scores(
    scores: torch.Tensor, popular: torch.Tensor, codes: torch.Tensor, asked: EvaluationSet, console: Console
) -> dict[str, Nats]:
    """Way of scoring -> nats of the first code, and behind it."""
    targets = torch.from_numpy(asked.targets).long()
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
    parser.add_argument("--exchange", action="store_true", help="rank by first codes of one and items of the other")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, split = Console(), Split.load(arguments.run / "data")
    codes = load_codes(arguments.run / "scid" / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
    asked = sample_users(split.histories("validation"), arguments.users, seed=0)
    first_codes = torch.from_numpy(codes[:, 0]).long()
    popular = torch.from_numpy(np.log(counted(split) / counted(split).sum())).float()
    mf = scores_of_mf(split, asked)
    measure_scores(mf, popular, first_codes, asked, console)
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
            if arguments.exchange:
                parts = Table("first codes and what is behind them", "masked Recall@10", title="Parts exchanged")
                model = scores_of_model(recommender, texts, len(codes))
                for name, value in measure_exchange(model, mf, popular, first_codes, asked).items():
                    parts.add_row(name, f"{value:.4f}")
                console.print(parts)
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
