"""Self-play preference data: what the policy recommends in place of the true next item, by difficulty.

The difficulty of a rejected item is the length of the longest common prefix of its SCID and that of the chosen item
(the prefix-ngram match of Align3GR). Candidates come from beam search with the current policy, on the train split
alone. Where the beam has too few of the wanted difficulty, items that share just as long a prefix with the chosen one
are drawn from the catalogue; the rows say how many of each kind they hold. Distinctness is meant by SCID: two items
with the same tokens are one completion.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder

logger = logging.getLogger(__name__)

DIFFICULTIES = ("easy", "medium", "hard")


class PreferenceRows(NamedTuple):
    """Rows for `SoftmaxDPOTrainer` and what they consist of.

    Attributes:
        rows: `prompt_ids`, `chosen_ids`, `rejected_ids` (token ids), `num_beam` and `num_filler` (how many rejected
            the policy proposed, how many were drawn), and `prompt`, the number of the prompt the row was made from.
        statistics: `prompts`, `rows`, `dropped` (prompts without any rejected), `mean_rejected`, `beam_share`,
            `filler_share` and `prefix_lengths`, the share of rejected by the number of codes shared with the chosen.
    """

    rows: list[dict[str, Any]]
    statistics: dict[str, Any]


class TrainPositions(NamedTuple):
    """Places in train sequences to predict: item `positions[i]` of the sequence `user_rows[i]`; both (prompts,)."""

    user_rows: np.ndarray
    positions: np.ndarray


def longest_common_prefix(codes_a: np.ndarray, codes_b: np.ndarray) -> np.ndarray:
    """Number of codes two SCIDs share from the start. Shape: (..., levels) and (..., levels), broadcast -> (...).

    >>> longest_common_prefix(np.array([3, 7, 1]), np.array([[3, 7, 2], [3, 0, 1], [4, 7, 1], [3, 7, 1]])).tolist()
    [2, 1, 0, 3]
    """
    return np.cumprod(np.asarray(codes_a) == np.asarray(codes_b), axis=-1).sum(-1)


def prefix_lengths(difficulty: str, levels: int) -> range:
    """Prefix lengths of a difficulty: easy shares no code, medium one, hard two or more but not all.

    Raises:
        InputError: The difficulty is unknown, or SCIDs of so few levels have no such pairs.

    >>> prefix_lengths("hard", levels=4)
    range(2, 4)
    """
    if difficulty not in DIFFICULTIES:
        raise InputError(f"difficulty={difficulty!r} is unknown; expected one of {', '.join(DIFFICULTIES)}")
    lengths = {"easy": range(0, 1), "medium": range(1, 2), "hard": range(2, levels)}[difficulty]
    if not lengths or lengths[-1] >= levels:
        raise InputError(f"difficulty={difficulty!r} does not exist for SCIDs of {levels} levels; leave the stage out")
    return lengths


def sample_train_positions(
    train_sequences: Sequence[np.ndarray], num_prompts: int, rng: np.random.Generator, min_history: int = 1
) -> TrainPositions:
    """Draw positions of train sequences without repetition, each equally likely; all of them if there are fewer.

    Args:
        train_sequences: Item indices of each user's train split, in time order. Nothing else is ever looked at.
        num_prompts: Positions to draw.
        rng: Source of randomness.
        min_history: Items that must stand before a position.
    """
    lengths = np.array([max(len(sequence) - min_history, 0) for sequence in train_sequences], dtype=np.int64)
    total = int(lengths.sum())
    drawn = rng.choice(total, size=min(num_prompts, total), replace=False)
    ends = np.cumsum(lengths)
    user_rows = np.searchsorted(ends, drawn, side="right")
    return TrainPositions(user_rows, drawn - (ends - lengths)[user_rows] + min_history)


def build_preference_rows(
    prompts: Sequence[Sequence[int]],
    candidates: np.ndarray,
    targets: np.ndarray,
    codes: np.ndarray,
    completion_ids: np.ndarray,
    difficulty: str,
    rng: np.random.Generator,
    num_rejected: int = 20,
    known_positives: Sequence[np.ndarray] | None = None,
) -> PreferenceRows:
    """Choose the rejected completions of each prompt: candidates of the wanted difficulty first, drawn items after.

    Args:
        prompts: Token ids of each prompt.
        candidates: Item indices the policy proposes, best first, -1 for none; (prompts, candidates).
        targets: Item index of each true next item; (prompts,).
        codes: SCIDs of the catalogue; (items, levels).
        completion_ids: Token ids of each item's SCID; (items, levels).
        difficulty: "easy", "medium" or "hard".
        rng: Source of randomness for the drawn items.
        num_rejected: Most rejected a row.
        known_positives: For each prompt item indices that must not be rejected, such as the user's other train items.

    Raises:
        InputError: The difficulty does not exist for these SCIDs.
    """
    lengths = prefix_lengths(difficulty, codes.shape[1])
    catalogue = _Catalogue(codes)
    completions = np.asarray(completion_ids)[catalogue.first_item].tolist()
    proposed = catalogue.leaf_of_item[candidates]
    shared = longest_common_prefix(codes[candidates], codes[targets][:, None])
    wanted = (candidates >= 0) & (shared >= lengths.start) & (shared < lengths.stop)
    rows: list[dict[str, Any]] = []
    by_length = np.zeros(codes.shape[1], dtype=np.int64)
    for prompt, ids in enumerate(prompts):
        target = catalogue.leaf_of_item[targets[prompt]]
        known = catalogue.leaf_of_item[known_positives[prompt]] if known_positives is not None else np.empty(0, int)
        beam = proposed[prompt, wanted[prompt]]
        beam = _in_first_order(beam[~np.isin(beam, known)])[:num_rejected]
        filler = catalogue.draw(target, lengths, num_rejected - len(beam), np.concatenate([known, beam]), rng)
        rejected = np.concatenate([beam, filler])
        if not len(rejected):
            continue
        by_length += np.bincount(
            longest_common_prefix(catalogue.codes[rejected], catalogue.codes[target]), minlength=len(by_length)
        )
        rows.append(
            {
                "prompt": prompt,
                "prompt_ids": list(ids),
                "chosen_ids": completions[target],
                "rejected_ids": [completions[leaf] for leaf in rejected],
                "num_beam": len(beam),
                "num_filler": len(filler),
            }
        )
    return PreferenceRows(rows, _statistics(rows, len(prompts), by_length))


def self_play_rows(
    search: ConstrainedBeamSearch,
    prompt_builder: PromptBuilder,
    train_sequences: Sequence[np.ndarray],
    item_codes: np.ndarray,
    user_codes: np.ndarray | None,
    difficulty: str,
    num_prompts: int,
    rng: np.random.Generator,
    num_rejected: int = 20,
    min_history: int = 1,
    exclude_known_positives: bool = True,
    batch_size: int = 16,
    progress: bool = True,
) -> PreferenceRows:
    """Let the current policy play against the train split: its beam against what the user really chose.

    Args:
        search: Beam search over the catalogue with the current policy; all its beams are candidates.
        prompt_builder: Makes the prompts, as in fine-tuning and evaluation.
        train_sequences: Item indices of each user's train split, in time order.
        item_codes: (items, levels).
        user_codes: (users, levels), in the order of `train_sequences`, or None.
        difficulty: "easy", "medium" or "hard".
        num_prompts: Train positions to play at.
        rng: Source of randomness.
        num_rejected: Most rejected a row.
        min_history: Items that must stand before a position.
        exclude_known_positives: Never reject another train item of the same user.
        batch_size: Prompts in one search.
        progress: Show a progress bar.

    Returns:
        Rows with `user_row` and `position` in place of `prompt`, and their statistics.
    """
    places = sample_train_positions(train_sequences, num_prompts, rng, min_history)
    prompts, targets = [], np.empty(len(places.positions), dtype=np.int64)
    for index, (user, position) in enumerate(zip(*places, strict=True)):
        history = train_sequences[user][:position]
        prompts.append(prompt_builder.prompt(None if user_codes is None else user_codes[user], item_codes[history]))
        targets[index] = train_sequences[user][position]
    rankings = generate_rankings(search, prompts, batch_size, k=search.num_beams, progress=progress)
    rows, statistics = build_preference_rows(
        prompts,
        rankings.allowed,
        targets,
        item_codes,
        prompt_builder.vocabulary.item_ids(item_codes),
        difficulty,
        rng,
        num_rejected,
        [train_sequences[user] for user in places.user_rows] if exclude_known_positives else None,
    )
    for row in rows:
        prompt = row.pop("prompt")
        row["user_row"], row["position"] = int(places.user_rows[prompt]), int(places.positions[prompt])
    logger.info("self-play, %s: %s", difficulty, statistics)
    return PreferenceRows(rows, statistics)


class _Catalogue:
    """Distinct SCIDs ("leaves") in code order, where items that share a prefix are neighbours.

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


def _in_first_order(leaves: np.ndarray) -> np.ndarray:
    """Distinct values in the order of their first appearance."""
    return leaves[np.sort(np.unique(leaves, return_index=True)[1])]


def _statistics(rows: list[dict[str, Any]], num_prompts: int, by_length: np.ndarray) -> dict[str, Any]:
    beam, filler = sum(row["num_beam"] for row in rows), sum(row["num_filler"] for row in rows)
    rejected = max(beam + filler, 1)
    return {
        "prompts": num_prompts,
        "rows": len(rows),
        "dropped": num_prompts - len(rows),
        "mean_rejected": (beam + filler) / max(len(rows), 1),
        "beam_share": beam / rejected,
        "filler_share": filler / rejected,
        "prefix_lengths": {str(length): count / rejected for length, count in enumerate(by_length.tolist())},
    }
