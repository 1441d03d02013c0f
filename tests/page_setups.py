"""What single pages of the documentation take for granted: names that their text explains, files that it mentions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import LogitsProcessorList

from align3gr import Recommender
from align3gr.data import Split
from align3gr.decoding import ConstrainedBeamSearch, SCIDLogitsProcessor, StochasticBeamSearch, generate_rankings
from align3gr.pipeline import STAGES
from align3gr.scid import load_codes


def _split() -> Split:
    return Split.load("runs/yelp/data")


def _histories() -> tuple[list[list[str]], list[str]]:
    """Item ids and user ids of two users."""
    split = _split()
    return split.train["items"][:2].to_list(), split.users["user_id"][:2].to_list()


def _write_histories() -> None:
    histories, users = _histories()
    pl.DataFrame({"user_id": users, "items": histories}).write_parquet("histories.parquet")


def data() -> dict[str, Any]:
    """A log whose columns are named as on the page."""
    split = _split()
    log = split.train.select("items").with_row_index("customer").explode("items").rename({"items": "sku"})
    log = log.with_columns(pl.lit("2024-03-01").alias("day"))
    Path("data/shop").mkdir(parents=True)
    log.write_parquet("data/shop/events.parquet")
    return {}


def decoding() -> dict[str, Any]:
    """A loaded recommender in its parts, two prompts, sets of items."""
    _write_histories()
    split = _split()
    Path("in_stock.txt").write_text("\n".join(split.items["item_id"][:40].to_list()) + "\n")
    recommender = Recommender.from_pretrained("runs/yelp/sp_dpo/model")
    codes = load_codes("runs/yelp/scid/item_codes.parquet", "item_id", split.items["item_id"])
    seen = split.train_sequences()[:2]
    prompts = [recommender.prompt_builder.prompt(None, codes[history]) for history in seen]
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, longest, dtype=torch.long), torch.zeros(2, longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = torch.tensor(prompt), 1
    histories, user_ids = _histories()
    public = (ConstrainedBeamSearch, StochasticBeamSearch, SCIDLogitsProcessor, LogitsProcessorList, Recommender)
    return {kind.__name__: kind for kind in public} | {
        "generate_rankings": generate_rankings,
        "model": recommender.model,
        "trie": recommender.search.trie,
        "vocabulary": recommender.prompt_builder.vocabulary,
        "ids": ids,
        "mask": mask,
        "prompts": prompts,
        "seen": seen,
        "in_stock": np.arange(40),
        "near_each_user": [np.arange(30), np.arange(20, 60)],
        "histories": histories,
        "user_ids": user_ids,
    }


def encoders() -> dict[str, Any]:
    """The page's rows of a history."""
    return {"item_indices": np.array([1, 2, 3])}


def evaluation() -> dict[str, Any]:
    """Lists of every test user, codes and vectors of the items, two finished runs."""
    split = _split()
    for name in "ab":
        shutil.copytree("runs/yelp", f"runs/{name}")
    histories = split.histories("test").histories
    every = np.arange(len(split.items))
    return {
        "item_codes": load_codes("runs/yelp/scid/item_codes.parquet", "item_id", split.items["item_id"]),
        "item_vectors": np.eye(len(split.items), 8, dtype=np.float32),
        "allowed": np.tile(every[:10], (len(histories), 1)),
        "masked": np.stack([np.setdiff1d(every, history)[:10] for history in histories]),
    }


def preference_level() -> dict[str, Any]:
    """The policy to start from, the run's folders."""
    recommender = Recommender.from_pretrained("runs/yelp/sft/model", is_trainable=True)
    return {"recommender": recommender, "split": _split(), "scid": Path("runs/yelp/scid"), "folder": Path("played")}


def tutorial() -> dict[str, Any]:
    """The settings of the built-in market at the size of the smoke run, and its stages."""
    shutil.copytree("recipes/yelp", "recipes/synthetic")
    stages = [path.stem for path in Path("recipes/synthetic").glob("*.yaml")]
    Path("recipes/synthetic/pipeline.yaml").write_text(json.dumps({"stages": sorted(stages, key=STAGES.index)}))
    return {}


SETUPS: dict[str, Callable[[], dict[str, Any]]] = {
    "data": data,
    "decoding": decoding,
    "encoders": encoders,
    "evaluation": evaluation,
    "preference-level": preference_level,
    "tutorial": tutorial,
}
