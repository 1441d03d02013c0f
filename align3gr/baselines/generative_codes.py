"""Item codes from two sources, as EAGER-LLM makes them: clusters of clusters of texts, then of behaviour."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from align3gr.baselines.generative import GenerativeSystem
from align3gr.data.schema import ITEM_ID
from align3gr.encoders.embeddings import COLLABORATIVE, SEMANTIC, Embeddings
from align3gr.errors import InputError
from align3gr.pipeline import stage_folder
from align3gr.scid.code_table import save_codes

logger = logging.getLogger(__name__)

MAX_CODES = 256
CODES_FILE = "ready_item_codes.parquet"
# A code that no item of the cluster stands for: taken only where the others are not enough.
_UNUSED = 1e6


class DualSourceCodes(GenerativeSystem):
    """EAGER-LLM's item indices (Hong et al. 2025): two levels from the texts, then two from behaviour.

    Each source is clustered by k-means, and each cluster by k-means again. Everything else is the pipeline's own.
    """

    def stage_options(self, stage: str, run_dir: Path) -> Mapping[str, Any]:
        """Writes the codes and names them to the stage `scid`."""
        if stage != "scid":
            return {}
        ids = self.chain.split.items[ITEM_ID]
        table = stage_folder(self.chain.run_dir, "embed") / "items.parquet"
        embeddings = Embeddings.load(table, ITEM_ID, ids)
        if embeddings.semantic is None or embeddings.collaborative is None:
            raise InputError(f"{table}: EAGER-LLM needs columns '{SEMANTIC}' and '{COLLABORATIVE}'; embed both")
        codes = dual_source_codes(embeddings.semantic, embeddings.collaborative, self.seed)
        save_codes(run_dir / CODES_FILE, ITEM_ID, ids, codes)
        return {"item_codes": str(run_dir / CODES_FILE)}


def codes_per_level(num_items: int) -> int:
    """The smallest power of two whose square is at least the number of items, at most 256, the paper's number.

    >>> codes_per_level(20033), codes_per_level(1349), codes_per_level(80)
    (256, 64, 16)
    """
    return min(MAX_CODES, 2 ** int(np.ceil(np.log2(max(np.sqrt(num_items), 2)))))


def dual_source_codes(semantic: np.ndarray, collaborative: np.ndarray, seed: int) -> np.ndarray:
    """`(items, 4)` codes, unique: two of the semantic vectors, two of the collaborative ones.

    Args:
        semantic: `(items, dim)`.
        collaborative: `(items, dim)`.
        seed: of k-means.

    Raises:
        InputError: more items share the first three codes than the last level has codes.
    """
    size = codes_per_level(len(semantic))
    (texts, _), (behaviour, distances) = (
        hierarchical_codes(_unit(vectors), size, seed) for vectors in (semantic, collaborative)
    )
    codes = np.concatenate([texts, behaviour], axis=1)
    moved = _make_unique(codes, distances)
    logger.info("EAGER-LLM: %d codes a level, %d items have another last code than their cluster's", size, moved)
    return codes


def hierarchical_codes(vectors: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters, and clusters within each.

    Args:
        vectors: `(items, dim)`.
        size: most clusters at each of both levels.
        seed: of k-means.

    Returns:
        `(items, 2)` codes; `(items, size)` squared distances to the centres within the item's cluster.
    """
    first, _ = _cluster(vectors, size, seed)
    second = np.zeros(len(vectors), dtype=np.int64)
    distances = np.full((len(vectors), size), _UNUSED, dtype=np.float32)
    for cluster in np.unique(first):
        rows = np.flatnonzero(first == cluster)
        second[rows], centres = _cluster(vectors[rows], size, seed)
        distances[rows, : len(centres)] = np.square(vectors[rows][:, None] - centres[None]).sum(-1)
    return np.stack([first, second], axis=1), distances


def _cluster(vectors: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`(rows,)` labels and the centres; where there are no more distinct vectors than codes, each is a leaf."""
    from sklearn.cluster import KMeans

    distinct, label = np.unique(vectors, axis=0, return_inverse=True)
    if len(distinct) <= size:
        return label.reshape(-1), distinct
    found = KMeans(size, n_init=1, random_state=seed).fit(vectors)
    return found.labels_.astype(np.int64), found.cluster_centers_


def _make_unique(codes: np.ndarray, distances: np.ndarray) -> int:
    """Within each group that shares the first three codes, last codes of least total distance where two are the same.

    Shapes: `(items, 4)`, changed in place; `(items, codes)`. Returns how many items got another code.
    """
    from scipy.optimize import linear_sum_assignment

    before = codes[:, -1].copy()
    _, group, counts = np.unique(codes[:, :-1], axis=0, return_inverse=True, return_counts=True)
    for rows in np.split(np.argsort(group.reshape(-1), kind="stable"), np.cumsum(counts)[:-1]):
        if len(np.unique(codes[rows, -1])) == len(rows):
            continue
        if len(rows) > distances.shape[1]:
            raise InputError(
                f"codes: {len(rows)} items share three codes and a level has {distances.shape[1]}; their vectors are "
                "too much alike, use other embeddings"
            )
        codes[rows, -1] = linear_sum_assignment(distances[rows])[1]
    return int((codes[:, -1] != before).sum())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
