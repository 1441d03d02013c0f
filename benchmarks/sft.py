"""Training steps of the three objectives: every item and the tree against one sample a prefix.

    python benchmarks/sft.py [--full] [--json PATH]

All variants learn the same items of the same users: a seeded draw from the Yelp train sequences, one user of each
stretch of equally many in the order of their length, so that few users have the lengths of all. Items carry random
unique codes of three levels, users one; the words of the prompts are whole tokens, as in a pretrained vocabulary. A
step is forward, backward and optimizer. Rows are taken in the order of their length, and a batch is filled as long as
its rows times its longest row stay within BATCH_TOKENS: the same budget, and no padding to speak of, for everyone. The
variants run interleaved in one process on one thread; a time is the median over the rounds of the process CPU time
for all rows.

`tree_ratio` is against one sample a prefix with the same prompt. `every_item_ratio` is against that too, although
every-item needs another prompt, which ends in the history; `every_item_ratio_same_prompt` is against one sample a
prefix with this one. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from align3gr.scid import PromptBuilder, SCIDTokenizer, train_base_tokenizer
from align3gr.sft import TreeCollator, every_item_rows, prefix_rows, tree_rows

SHORT = "[{user}]{history}"
INSTRUCTION = (
    "An instruction describes a task, the response completes it. Instruction: predict the item that the user chooses "
    "next from those chosen so far, oldest first.[ User{user}.] Items:{history}. Response:"
)
SENTENCE = "[User{user}. ]Predict the next item from those chosen so far, oldest first:{history}. Next:"
QUESTION = "[User{user}. ]Items chosen so far, oldest first:{history}. What is the next item?"
PROMPTS = {"instruction in front": INSTRUCTION, "sentence in front": SENTENCE, "question behind": QUESTION}
MAX_HISTORY, BATCH_TOKENS, CODEBOOK = 20, 1024, 256
SIZES = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8}

Collator = Callable[[list[Any]], dict[str, Tensor]]


class Objective(NamedTuple):
    """Rows of one objective, the batches that they form, and how a batch is made."""

    rows: Dataset
    batches: list[list[int]]
    collate: Collator

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows["input_ids"]))


def read_yelp() -> tuple[list[list[int]], list[str]]:
    """Train sequences (all but the last two items, which are validation and test) and item titles."""
    folder = Path(os.environ.get("ALIGN3GR_DATA", Path(__file__).parent.parent.parent / "shared" / "data"), "yelp")
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there; set ALIGN3GR_DATA to the folder that holds yelp")
    users = json.loads((folder / "Yelp.inter.json").read_text(encoding="utf-8"))
    items = json.loads((folder / "Yelp.item.json").read_text(encoding="utf-8"))
    return [items[:-2] for items in users.values()], [item["title"] for item in items.values()]


def draw(sequences: list[list[int]], users: int, seed: int = 0) -> list[np.ndarray]:
    """One user of each of `users` stretches of the sequences in the order of their length."""
    ordered = sorted(sequences, key=len)
    edges = np.linspace(0, len(ordered), users + 1).astype(int)
    rng = np.random.default_rng(seed)
    return [np.asarray(ordered[rng.integers(a, b)]) for a, b in pairwise(edges)]


def token_batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Rows in the order of their length, in batches whose padded size stays within the budget."""
    batches: list[list[int]] = [[]]
    for row in np.argsort(lengths, kind="stable").tolist():
        if batches[-1] and (len(batches[-1]) + 1) * lengths[row] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def build_objectives(
    tokenizer: SCIDTokenizer, sequences: list[np.ndarray], items: int, templates: dict[str, str]
) -> dict[str, Objective]:
    """The variants by name: one sample a prefix and the tree for each template, every item for the short one."""
    rng = np.random.default_rng(0)
    numbers = rng.choice(CODEBOOK**3, items, replace=False)
    item_codes = np.stack([numbers // CODEBOOK**level % CODEBOOK for level in range(3)], axis=1)
    user_codes = rng.integers(0, CODEBOOK, (len(sequences), 1))
    usual, tree = DataCollatorForLanguageModeling(tokenizer.pad_token_id), TreeCollator(tokenizer.pad_token_id)
    objectives = {}

    def add(name: str, make: Callable[..., Dataset], template: str, collate: Collator) -> None:
        rows = make(PromptBuilder(tokenizer, MAX_HISTORY, template=template), sequences, user_codes, item_codes)
        objectives[name] = Objective(rows, token_batches(list(map(len, rows["input_ids"])), BATCH_TOKENS), collate)

    for prompt, template in templates.items():
        add(f"prefix, {prompt}", prefix_rows, template, usual)
        add(f"tree, {prompt}", tree_rows, template, tree)
    add("prefix, short prompt", prefix_rows, SHORT, usual)
    add("every item, short prompt", every_item_rows, SHORT, usual)
    return objectives


def median_times(model: LlamaForCausalLM, objectives: dict[str, Objective], rounds: int) -> dict[str, float]:
    """Median CPU seconds of one pass over the rows of each variant, interleaved."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    times: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(rounds):
        for name, objective in objectives.items():
            started = time.process_time()
            for batch in objective.batches:
                inputs = objective.collate([objective.rows[row] for row in batch])
                optimizer.zero_grad(set_to_none=True)
                model(**inputs, use_cache=False).loss.backward()
                optimizer.step()
            times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def gradient_difference(model: LlamaForCausalLM, one: Objective, other: Objective) -> float:
    """Relative distance of the gradients of the loss, summed over all rows."""
    gradients = []
    for objective in (one, other):
        model.zero_grad(set_to_none=True)
        for batch in objective.batches:
            inputs = objective.collate([objective.rows[row] for row in batch])
            model(**inputs, use_cache=False, num_items_in_batch=1).loss.backward()  # a sum in place of a mean
        gradients.append(torch.cat([parameter.grad.ravel() for parameter in model.parameters()]))
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def measure(
    sequences: list[list[int]], titles: list[str], users: int, rounds: int, full: bool, sizes: dict[str, int]
) -> tuple[dict[str, float], Table]:
    """The figures and the table."""
    texts = [*titles, *list(PROMPTS.values()) * len(titles)]
    tokenizer = SCIDTokenizer.from_base(train_base_tokenizer(texts, 1000), [CODEBOOK] * 3, [CODEBOOK])
    templates = PROMPTS if full else {"instruction in front": INSTRUCTION}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    drawn = draw(sequences, users)
    few = build_objectives(tokenizer, drawn[:: max(1, users // 8)], len(titles), {"": INSTRUCTION})
    difference = gradient_difference(model, few["tree, "], few["prefix, "])
    objectives = build_objectives(tokenizer, drawn, len(titles), templates)
    times = median_times(model, objectives, rounds)
    first = "prefix, instruction in front"
    table = Table(title=f"Yelp, {users} users, {sum(len(s) - 1 for s in drawn)} items learnt, Llama {sizes}")
    for column in ("objective, prompt", "rows", "tokens", "CPU s", "fewer tokens", "times faster"):
        table.add_column(column, justify="left" if column.startswith("objective") else "right")
    for name, objective in objectives.items():
        against = f"prefix, {name.partition(', ')[2]}"
        ratios = (objectives[against].tokens / objective.tokens, times[against] / times[name])
        row = [name, f"{len(objective.rows):,}", f"{objective.tokens:,}", f"{times[name]:.1f}"]
        table.add_row(*row, *(f"{ratio:.2f}" for ratio in ratios))
    figures = {
        "every_item_ratio": times[first] / times["every item, short prompt"],
        "tree_ratio": times[first] / times["tree, instruction in front"],
        "tree_grad_diff": difference,
        "every_item_ratio_same_prompt": times["prefix, short prompt"] / times["every item, short prompt"],
        "tree_token_ratio": objectives[first].tokens / objectives["tree, instruction in front"].tokens,
    }
    if full:
        figures["tree_ratio_sentence"] = times["prefix, sentence in front"] / times["tree, sentence in front"]
        figures["tree_ratio_question"] = times["prefix, question behind"] / times["tree, question behind"]
    return figures, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="four times the users, and other prompts")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sequences, titles = read_yelp()
    users = 400 if options.full else 100
    figures, table = measure(sequences, titles, users, rounds=3, full=options.full, sizes=SIZES)
    Console(width=120).print(table)
    line = json.dumps(figures)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
