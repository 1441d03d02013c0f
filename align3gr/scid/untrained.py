"""Codes that no model of ours is trained for: imported ones, and those of P5."""

from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.scid.categories import category_codes
from align3gr.scid.clusters import cluster_codes
from align3gr.scid.code_table import read_code_table
from align3gr.scid.collisions import resolve_collisions
from align3gr.scid.settings import SCIDSettings


def ready_codes(
    settings: SCIDSettings, split: Split, imported: Path | None, seed: int
) -> tuple[np.ndarray, list[int], dict[str, Any]]:
    """Item codes, the sizes of their levels, and what is reported.

    Args:
        settings: `codes` and its options, and `collisions`.
        split: texts of the items for categories, the train split for clusters.
        imported: a table of codes, where these are taken.
        seed: of the clusters.

    Raises:
        InputError: an item has no code, or an option does not fit the data.
    """
    if imported is not None:
        raw = read_code_table(imported, ITEM_ID).select(split.items[ITEM_ID])
    elif settings.codes == "categories":
        raw = category_codes(split.items, settings.category_levels)
    else:
        raw = cluster_codes(
            split.train_sequences(),
            len(split.items),
            settings.clusters,
            settings.largest_cluster,
            settings.cluster_levels,
            seed,
        )
    unique, collisions = resolve_collisions(raw, strategy=settings.collisions)
    return unique, (unique.max(0) + 1).tolist(), {"item_collisions": asdict(collisions)}


def hashed_user_codes(split: Split, buckets: int) -> np.ndarray:
    """One code a user, by a hash of the id: what TIGER puts in front of a history. Shape: `(users, 1)` int64.

    Args:
        split: whose users.
        buckets: number of codes.
    """
    ids = split.users[USER_ID].to_list()
    return np.array([[int(sha256(name.encode()).hexdigest(), 16) % buckets] for name in ids], dtype=np.int64)
