"""Does a fine-tuned model copy from its history? What it gives to items that a user knows, and what it looks at.

    python benchmarks/copying.py --run_dir runs/yelp                # the SFT model of a finished run
    python benchmarks/copying.py --run_dir runs/yelp --model runs/yelp/sp_dpo/model --users 3000

Needs a run with the stages prepare, scid and sft; asks with validation targets, as a prompt holds them. The second
table gives the loss of a target at each level when the prompt is changed: a model that copies loses much on returns
when the history is another user's. The last line is one JSON object.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.decoding import Recommender
from align3gr.decoding.beam_search import generate_rankings
from align3gr.evaluation import sample_users
from align3gr.scid import load_codes


class Probe:
    """A model, its catalogue, and questions whose answers are known."""

    def __init__(self, run_dir: Path, model: Path, users: int) -> None:
        split = Split.load(run_dir / "data")
        self.item_codes = load_codes(run_dir / "scid" / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        self.user_codes = load_codes(run_dir / "scid" / "user_codes.parquet", USER_ID, split.users[USER_ID])
        self.recommender = Recommender.from_pretrained(model, num_beams="all")
        self.prompts = self.recommender.prompt_builder
        self.questions = sample_users(split.histories("validation"), users, seed=0)
        kept = self.prompts.max_history
        self.histories = [history[-kept:] for history in self.questions.histories]
        self.returns = np.array(
            [target in history for target, history in zip(self.questions.targets, self.histories, strict=True)]
        )

    def prompt(self, user: int, history: np.ndarray) -> list[int]:
        return self.prompts.prompt(self.user_codes[user], self.item_codes[history])

    def shares(self) -> dict[str, float | None]:
        """Probability on the items of the history, and Recall@10 of returns and discoveries."""
        prompts = [self.prompt(*each) for each in zip(self.questions.user_rows, self.histories, strict=True)]
        known = [np.unique(history) for history in self.histories]
        longest = max(len(items) for items in known)
        lists = generate_rankings(self.recommender.search, prompts, 16, longest, allowed=known, progress=False)
        probability = np.exp(lists.seen_allowed_scores)
        latest = np.array([history[-1] for history in self.histories])
        together, on_latest = probability.sum(1), (probability * (lists.seen_allowed == latest[:, None])).sum(1)
        best = generate_rankings(self.recommender.search, prompts, 16, 10, progress=False).seen_allowed
        hit = (best == np.asarray(self.questions.targets)[:, None]).any(1)

        def over(values: np.ndarray, some: np.ndarray) -> float | None:
            return float(values[some].mean()) if some.any() else None

        return {
            "users": len(prompts),
            "returns": float(self.returns.mean()),
            "probability_on_history": float(together.mean()),
            "probability_on_history_of_those_who_return": over(together, self.returns),
            "probability_on_latest": float(on_latest.mean()),
            "recall@10": float(hit.mean()),
            "recall@10_of_returns": over(hit, self.returns),
            "recall@10_of_discoveries": over(hit, ~self.returns),
        }

    @torch.inference_mode()
    def losses(self, make_prompt: Callable[[int, np.ndarray, int], list[int]]) -> np.ndarray:
        """Loss of each target at each level, `(users, levels)`, behind `make_prompt(user, history, question)`."""
        model, likelihood = self.recommender.model, self.recommender.search.likelihood
        losses = []
        for number, (user, history, target) in enumerate(
            zip(self.questions.user_rows, self.histories, self.questions.targets, strict=True)
        ):
            answer = torch.tensor([self.prompts.completion(self.item_codes[target])])
            prompt = torch.tensor([make_prompt(user, history, number)])
            levels = answer.shape[1]
            logits = model(torch.cat([prompt, answer], dim=1)).logits[0, -levels - 1 : -1]
            rows = torch.arange(levels)[None]
            if likelihood is not None:
                found = likelihood.log_probs(logits, rows, answer)[0]
            else:
                found = logits.float().log_softmax(-1).gather(1, answer.T)[:, 0]
            losses.append(-found.numpy())
        return np.stack(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, required=True, help="a run with the stages prepare, scid and sft")
    parser.add_argument("--model", type=Path, help="folder of the model (default: that of the stage sft)")
    parser.add_argument("--users", type=int, default=1000, help="validation users")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    probe = Probe(arguments.run_dir, arguments.model or arguments.run_dir / "sft" / "model", arguments.users)
    figures: dict = probe.shares()
    table = Table("", "", title="What the model gives to items of the history")
    for name, value in figures.items():
        table.add_row(
            name.replace("_", " "), f"{value:,}" if name == "users" else "-" if value is None else f"{value:.4f}"
        )
    console = Console()
    console.print(table)

    other = np.random.default_rng(0).permutation(len(probe.histories))
    histories, users = probe.histories, probe.questions.user_rows

    def of_another(user: int, history: np.ndarray, number: int) -> list[int]:
        return probe.prompt(user, histories[other[number]])

    variants: dict[str, Callable[[int, np.ndarray, int], list[int]]] = {
        "as it is": lambda user, history, number: probe.prompt(user, history),
        "latest item only": lambda user, history, number: probe.prompt(user, history[-1:]),
        "another user's history": of_another,
        "another user's SCID": lambda user, history, number: probe.prompt(users[other[number]], history),
    }
    if not probe.prompts.user_scid:
        del variants["another user's SCID"]
    table = Table("prompt", "returns, by level", "discoveries, by level", title="Loss of the target in nats")
    figures["losses"] = {}
    for name, make_prompt in variants.items():
        losses = probe.losses(make_prompt)
        by_kind = [losses[kind].mean(0).tolist() if kind.any() else [] for kind in (probe.returns, ~probe.returns)]
        table.add_row(name, *("  ".join(f"{value:.2f}" for value in values) for values in by_kind))
        figures["losses"][name] = {"returns": by_kind[0], "discoveries": by_kind[1]}
    console.print(table)
    line = json.dumps(figures)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
