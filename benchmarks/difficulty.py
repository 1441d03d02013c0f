"""Are hard pairs hard? How often a policy prefers the chosen item, by the bucket and the source of the rejected.

    python benchmarks/difficulty.py --run_dir runs/yelp             # the SFT model of a finished run
    python benchmarks/difficulty.py --run_dir runs/yelp --model runs/yelp/sp_dpo/model --prompts 1000

Needs a run with the stages prepare, scid and sft. The same train positions are asked with rejected items of three
sources: drawn evenly from the bucket, draws of the policy, and the best of its beam. Only the first says what the
bucket alone does: a beam proposes what the policy finds most probable, in every bucket.
The last line is one JSON object.
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
from align3gr.decoding import Recommender, StochasticBeamSearch
from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.dpo.candidates import generate_candidates, sample_train_positions
from align3gr.dpo.difficulty import CosineBuckets, DistinctSCIDs, PrefixBuckets, buckets_of, item_vectors
from align3gr.scid import load_codes

SOURCES = ("drawn evenly", "draws of the policy", "best of the beam")


class Pairs:
    """Train positions with what was chosen there, and a policy that says how probable any item is."""

    def __init__(self, run_dir: Path, model: Path, prompts: int) -> None:
        split, scid = Split.load(run_dir / "data"), run_dir / "scid"
        self.item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        self.vectors = item_vectors(scid, self.item_codes)
        self.recommender = Recommender.from_pretrained(model)
        builder = self.recommender.prompt_builder
        sequences, self.rng = split.train_sequences(), np.random.default_rng(0)
        places = sample_train_positions(sequences, prompts, self.rng, 1)
        at = list(zip(places.user_rows, places.positions, strict=True))
        self.prompts = [
            builder.prompt(user_codes[user], self.item_codes[sequences[user][:place]]) for user, place in at
        ]
        self.known = [sequences[user] for user, _ in at]
        self.targets = [int(sequences[user][place]) for user, place in at]
        self.completions = builder.vocabulary.item_ids(self.item_codes)

    def candidates(self, source: str, width: int) -> np.ndarray:
        """(prompts, width) item indices, none of them known positives: -1 in their place."""
        if source == "drawn evenly":
            return np.full((len(self.prompts), 0), -1)
        policy, trie = self.recommender.model, self.recommender.search.trie
        tokens = self.recommender.prompt_builder.vocabulary.item_tokens
        if source == "best of the beam":
            search = ConstrainedBeamSearch(policy, trie, tokens, width)
        else:
            search = StochasticBeamSearch(policy, trie, tokens, width, 1.0, 0)
        return generate_candidates(search, self.prompts, 32, progress=False)

    @torch.inference_mode()
    def scores(self, prompt: int, items: np.ndarray) -> np.ndarray:
        """Log-probability of the items' SCIDs behind the prompt; (items,)."""
        answers = torch.as_tensor(self.completions[items])
        ids = torch.cat([torch.tensor(self.prompts[prompt]).expand(len(items), -1), answers], dim=1)
        levels = answers.shape[1]
        logits = self.recommender.model(ids).logits[:, -levels - 1 : -1].float()
        return logits.log_softmax(-1).gather(2, answers[..., None]).sum((1, 2)).numpy()

    def measure(self, source: str, measure: str, width: int, num_rejected: int) -> list[dict]:
        """For each bucket the mean number of rejected and the share of them that the chosen one beats."""
        leaves = DistinctSCIDs(self.item_codes)
        vectors = self.vectors[leaves.first_item]
        proposed = self.candidates(source, width)
        names = buckets_of("mixed", self.item_codes.shape[1], measure)
        beaten = {name: [0, 0] for name in names}
        for prompt, target in enumerate(self.targets):
            chosen, known = int(leaves.leaf_of_item[target]), leaves.leaf_of_item[self.known[prompt]]
            found = np.unique(leaves.leaf_of_item[proposed[prompt][proposed[prompt] >= 0]], return_index=True)
            ranked = found[0][np.argsort(found[1])]
            free = ranked[~np.isin(ranked, known)]
            if measure == "prefix":
                buckets: PrefixBuckets | CosineBuckets = PrefixBuckets(leaves, chosen)
            else:
                buckets = CosineBuckets(leaves, vectors, chosen, free)
            rejected = {}
            for name in names:
                if source == "drawn evenly":
                    rejected[name] = buckets.draw(name, num_rejected, known, self.rng)
                else:
                    rejected[name] = free[buckets.among(free, name)][:num_rejected]
            every = np.concatenate([[chosen], *rejected.values()]).astype(np.int64)
            scores = self.scores(prompt, leaves.first_item[every])
            start = 1
            for name in names:
                mine = scores[start : start + len(rejected[name])]
                start += len(mine)
                beaten[name][0] += int((scores[0] > mine).sum())
                beaten[name][1] += len(mine)
        return [
            {
                "measure": measure,
                "source": source,
                "bucket": name,
                "mean_rejected": count / len(self.prompts),
                "accuracy": wins / count if count else None,
            }
            for name, (wins, count) in beaten.items()
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, required=True, help="a run with the stages prepare, scid and sft")
    parser.add_argument("--model", type=Path, help="folder of the policy (default: that of the stage sft)")
    parser.add_argument("--prompts", type=int, default=500, help="train positions")
    parser.add_argument("--candidates", type=int, default=100, help="items that the policy generates")
    parser.add_argument("--num_rejected", type=int, default=20, help="most rejected of a bucket")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = Pairs(arguments.run_dir, arguments.model or arguments.run_dir / "sft" / "model", arguments.prompts)
    figures = [
        row
        for measure in ("prefix", "cosine")
        for source in SOURCES
        for row in pairs.measure(source, measure, arguments.candidates, arguments.num_rejected)
    ]
    table = Table("difficulty by", "rejected", "bucket", "mean N", "chosen preferred", title="Accuracy at the start")
    for row in figures:
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
        table.add_row(row["measure"], row["source"], row["bucket"], f"{row['mean_rejected']:.1f}", accuracy)
    Console().print(table)
    line = json.dumps({"prompts": len(pairs.prompts), "rows": figures})
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
