"""How hard a rejected item is to tell from the chosen one, and items of a wanted difficulty.

Two measures of Align3GR: the length of the longest common prefix of the two SCIDs (prefix-ngram), and the cosine of
their code vectors. Both sort items into the buckets easy, medium and hard. Two more difficulties are not steps of
a progression: "mixed" takes equal shares of all buckets, "random" looks at no bucket at all (S-DPO).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from align3gr.errors import InputError

# Where `DualSCIDModel` keeps them in its file.
_CODE_BOOKS = "item_rqvae.quantizer.codebooks."
BUCKETS = ("easy", "medium", "hard")
DIFFICULTIES = (*BUCKETS, "mixed", "random")
MEASURES = ("prefix", "cosine")


def longest_common_prefix(codes_a: np.ndarray, codes_b: np.ndarray) -> np.ndarray:
    """Number of codes two SCIDs share from the start. Shape: (..., levels) and (..., levels), broadcast -> (...).

    >>> longest_common_prefix(np.array([3, 7, 1]), np.array([[3, 7, 2], [3, 0, 1], [4, 7, 1], [3, 7, 1]])).tolist()
    [2, 1, 0, 3]
    """
    return np.cumprod(np.asarray(codes_a) == np.asarray(codes_b), axis=-1).sum(-1)


def prefix_lengths(difficulty: str, levels: int) -> range:
    """Prefix lengths of a bucket: easy shares no code, medium one, hard two or more but not all.

    Args:
        difficulty: "easy", "medium" or "hard".
        levels: codes in an SCID.

    Raises:
        InputError: The bucket is unknown, or SCIDs of so few levels have no such pairs.

    >>> prefix_lengths("hard", levels=4)
    range(2, 4)
    """
    if difficulty not in BUCKETS:
        raise InputError(f"difficulty={difficulty!r} is unknown; expected one of {', '.join(BUCKETS)}")
    lengths = {"easy": range(0, 1), "medium": range(1, 2), "hard": range(2, levels)}[difficulty]
    if not lengths or lengths[-1] >= levels:
        raise InputError(f"difficulty={difficulty!r} does not exist for SCIDs of {levels} levels; leave the stage out")
    return lengths


def buckets_of(difficulty: str, levels: int, measure: str = "prefix") -> tuple[str, ...]:
    """The buckets a difficulty takes its items from; none for "random".

    Args:
        difficulty: of a stage, such as "easy", "mixed" or "random".
        levels: codes in an SCID.
        measure: what difficulty goes by, "prefix" or "cosine".

    Raises:
        InputError: The difficulty or the measure is unknown, or SCIDs of so few levels have no such pairs.

    >>> buckets_of("mixed", levels=2)
    ('easy', 'medium')
    """
    if measure not in MEASURES:
        raise InputError(f"difficulty_measure={measure!r} is unknown; expected one of {', '.join(MEASURES)}")
    if difficulty not in DIFFICULTIES:
        raise InputError(f"difficulty={difficulty!r} is unknown; expected one of {', '.join(DIFFICULTIES)}")
    if difficulty == "random":
        return ()
    if difficulty == "mixed":
        return BUCKETS if measure == "cosine" else BUCKETS[:levels]
    if measure == "prefix":
        prefix_lengths(difficulty, levels)
    return (difficulty,)


def bucket_shares(count: int, buckets: Sequence[str], turn: int) -> dict[str, int]:
    """Equal shares of `count`; what is left over goes to another bucket at each turn.

    >>> bucket_shares(20, ("easy", "medium", "hard"), turn=0)
    {'easy': 7, 'medium': 7, 'hard': 6}
    >>> bucket_shares(20, ("easy", "medium", "hard"), turn=1)
    {'easy': 6, 'medium': 7, 'hard': 7}
    """
    share, more = divmod(count, len(buckets))
    return {name: share + ((place - turn) % len(buckets) < more) for place, name in enumerate(buckets)}


def item_vectors(scid: str | Path, item_codes: np.ndarray) -> np.ndarray:
    """The vector of each item's SCID: the sum of its code vectors, as the decoder of the RQ-VAE sees the item.

    Args:
        scid: Folder of the token level; the code books are those of `scid/model`.
        item_codes: (items, levels). A level beyond those of the model, which tells twins apart, has no vector.

    Returns:
        (items, dim) float32 of length 1.

    Raises:
        InputError: There is no such model, or the codes are not its codes.
    """
    path = Path(scid) / "model" / "model.safetensors"
    if not path.is_file():
        raise InputError(f"difficulty_measure: cosine needs {path}; imported codes have no vectors, use prefix")
    books = _code_books(path)
    largest = item_codes.max(axis=0, initial=-1)
    if len(largest) < len(books) or any(code >= len(book) for code, book in zip(largest, books, strict=False)):
        sizes = [len(book) for book in books]
        raise InputError(f"{path}: has code books of {sizes}, the codes go up to {largest.tolist()}; use its own")
    vectors = np.sum([book[codes] for book, codes in zip(books, item_codes.T, strict=False)], axis=0)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _code_books(path: Path) -> list[np.ndarray]:
    """The item side's code vectors of each level, (codes, dim); read without the model around them."""
    with safe_open(path, "np") as tensors:
        names = [name for name in tensors.keys() if name.startswith(_CODE_BOOKS)]  # noqa: SIM118 - it is no dictionary
        names.sort(key=lambda name: int(name.removeprefix(_CODE_BOOKS)))
        return [tensors.get_tensor(name) for name in names]


class DistinctSCIDs:
    """The distinct SCIDs of a catalogue ("leaves") in code order, where items that share a prefix are neighbours.

    Attributes:
        codes: (leaves, levels).
        leaf_of_item: (items,).
        first_item: An item of each leaf, (leaves,).
    """

    def __init__(self, codes: np.ndarray):
        self.codes, self.first_item, leaf_of_item = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        self.leaf_of_item = leaf_of_item.reshape(-1)
        leaves, levels = self.codes.shape
        # starts[d, leaf] and ends[d, leaf]: the leaves that share its first d codes; (levels + 1, leaves) each.
        self._starts = np.empty((levels + 1, leaves), dtype=np.int64)
        self._ends = np.empty_like(self._starts)
        is_first = np.arange(leaves) == 0
        for depth in range(levels + 1):
            if depth:
                is_first[1:] |= self.codes[1:, depth - 1] != self.codes[:-1, depth - 1]
            first = np.flatnonzero(is_first)
            group = np.cumsum(is_first) - 1
            self._starts[depth] = first[group]
            self._ends[depth] = np.append(first[1:], leaves)[group]

    def draw(
        self, leaf: int, lengths: range, count: int, excluded: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Up to `count` distinct leaves whose common prefix with `leaf` has one of `lengths`, none of the excluded."""
        outer, inner = (self._starts[lengths.start, leaf], self._ends[lengths.start, leaf]), lengths.stop
        hole, hole_end = self._starts[inner, leaf], self._ends[inner, leaf]
        pool = (outer[1] - outer[0]) - (hole_end - hole)
        # So many draws that even if each excluded leaf is among them, enough remain.
        drawn = outer[0] + rng.choice(pool, size=min(pool, count + len(excluded)) if count else 0, replace=False)
        drawn[drawn >= hole] += hole_end - hole
        return drawn[~np.isin(drawn, excluded)][:count]


class PrefixBuckets:
    """The leaves of a catalogue by the length of the prefix that they share with one of them, the chosen one."""

    def __init__(self, leaves: DistinctSCIDs, chosen: int):
        self._leaves, self._chosen, self._levels = leaves, chosen, leaves.codes.shape[1]

    def among(self, candidates: np.ndarray, bucket: str) -> np.ndarray:
        """Which candidates (n,) are in the bucket; (n,) bool."""
        lengths = prefix_lengths(bucket, self._levels)
        shared = longest_common_prefix(self._leaves.codes[candidates], self._leaves.codes[self._chosen])
        return (shared >= lengths.start) & (shared < lengths.stop)

    def draw(self, bucket: str, count: int, excluded: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Up to `count` distinct leaves of the bucket, none of the excluded."""
        return self._leaves.draw(self._chosen, prefix_lengths(bucket, self._levels), count, excluded, rng)


class CosineBuckets:
    """The leaves of a catalogue by the cosine of their vectors with that of one of them, the chosen one.

    The bounds are the terciles of what the policy generated for this prompt: a cosine means something else in every
    corner of a space of code vectors, a fixed bound would leave some prompts without hard items and others without
    easy ones. So each bucket gets a third of the candidates of each prompt.

    Args:
        leaves: The catalogue.
        vectors: Vector of each leaf, of length 1; (leaves, dim).
        chosen: The chosen leaf.
        candidates: Leaves the policy generated, without the chosen; fewer than three leave the terciles to the whole
            catalogue.
    """

    def __init__(self, leaves: DistinctSCIDs, vectors: np.ndarray, chosen: int, candidates: np.ndarray):
        self._vectors, self._chosen = vectors, chosen
        enough = candidates if len(candidates) >= len(BUCKETS) else np.delete(np.arange(len(leaves.codes)), chosen)
        self._bounds = np.quantile(self.cosine(enough), [1 / 3, 2 / 3]) if len(enough) else np.zeros(2)

    def cosine(self, leaves: np.ndarray) -> np.ndarray:
        """Cosine with the chosen one; (n,) -> (n,)."""
        return self._vectors[leaves] @ self._vectors[self._chosen]

    def among(self, candidates: np.ndarray, bucket: str) -> np.ndarray:
        """Which candidates (n,) are in the bucket; (n,) bool."""
        return np.searchsorted(self._bounds, self.cosine(candidates), side="right") == BUCKETS.index(bucket)

    def draw(self, bucket: str, count: int, excluded: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Up to `count` distinct leaves of the bucket, none of the excluded."""
        if not count:
            return np.empty(0, dtype=np.int64)
        open_to = np.ones(len(self._vectors), dtype=bool)
        open_to[excluded] = open_to[self._chosen] = False
        pool = np.flatnonzero(open_to)
        pool = pool[self.among(pool, bucket)]
        return rng.choice(pool, size=min(count, len(pool)), replace=False)
