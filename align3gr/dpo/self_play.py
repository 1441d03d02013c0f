"""Self-play preference data: what the policy recommends in place of the true next item, by difficulty.

Candidates come from the current policy, on the train split alone (`candidates.py`); how hard each is to tell from
the chosen item says `difficulty.py`. Where the policy gives too few of the wanted difficulty, items of the same bucket
are drawn from the catalogue: they stand behind the generated ones in `rejected_ids`, and the rows say how many of
each kind they hold. Distinctness is meant by SCID: two items with the same tokens are one completion.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align3gr.decoding.search import ConstrainedSearch
from align3gr.dpo.candidates import (
    PART_PROMPTS,
    generate_candidates,
    in_first_order,
    prompts_of,
    sample_train_positions,
)
from align3gr.dpo.difficulty import (
    CosineBuckets,
    DistinctSCIDs,
    PrefixBuckets,
    bucket_shares,
    buckets_of,
    longest_common_prefix,
)
from align3gr.processes import launched
from align3gr.scid.prompts import PromptBuilder

logger = logging.getLogger(__name__)


class PreferenceRows(NamedTuple):
    """Rows for `SoftmaxDPOTrainer` and what they consist of.

    Attributes:
        rows: `prompt_ids`, `chosen_ids`, `rejected_ids` (token ids) and free columns. Those of self-play: `num_beam`
            and `num_filler` (how many rejected the policy proposed, how many were drawn; in this order), `num_history`
            (how many stand in the prompt's history), and `prompt`, the number of the prompt the row was made from.
        statistics: Of self-play `prompts`, `rows`, `dropped` (prompts without any rejected), `mean_rejected`,
            `beam_share`, `filler_share`, `history_share` and `prefix_lengths`, the share of rejected by the number of
            codes shared with the chosen; `known_positives`, candidates a prompt that were not rejected because the
            user chose them elsewhere; with code vectors `mean_cosine` between the rejected and the chosen.
    """

    rows: list[dict[str, Any]]
    statistics: dict[str, Any]


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
    histories: Sequence[np.ndarray] | None = None,
    vectors: np.ndarray | None = None,
) -> PreferenceRows:
    """Choose the rejected completions of each prompt: candidates of the wanted difficulty first, drawn items after.

    "mixed" gives each bucket an equal share of `num_rejected`; a bucket with too few items, drawn ones included,
    leaves its share empty. "random" takes candidates at random, whatever they share with the chosen one.

    Args:
        prompts: Token ids of each prompt.
        candidates: Item indices the policy proposes, best first, -1 for none; (prompts, candidates).
        targets: Item index of each true next item; (prompts,).
        codes: SCIDs of the catalogue; (items, levels).
        completion_ids: Token ids of each item's SCID; (items, levels).
        difficulty: "easy", "medium", "hard", "mixed" or "random".
        rng: Source of randomness for what is drawn.
        num_rejected: Most rejected a row.
        known_positives: For each prompt item indices that must not be rejected, such as the user's other train items.
        histories: For each prompt the item indices that stand in it, to count them among the rejected.
        vectors: Vector of each item, of length 1, (items, dim): difficulty by cosine in place of common prefixes.

    Raises:
        InputError: The difficulty does not exist for these SCIDs.
    """
    levels = codes.shape[1]
    wanted = buckets_of(difficulty, levels, "prefix" if vectors is None else "cosine")
    leaves = DistinctSCIDs(codes)
    leaf_vectors = None if vectors is None else vectors[leaves.first_item]
    completions = np.asarray(completion_ids)[leaves.first_item].tolist()
    tally = _Tally(levels, leaves, leaf_vectors)
    rows: list[dict[str, Any]] = []
    for prompt, ids in enumerate(prompts):
        chosen = int(leaves.leaf_of_item[targets[prompt]])
        known = leaves.leaf_of_item[known_positives[prompt]] if known_positives is not None else np.empty(0, int)
        proposed = in_first_order(leaves.leaf_of_item[candidates[prompt][candidates[prompt] >= 0]])
        proposed = proposed[proposed != chosen]
        free = proposed[~np.isin(proposed, known)]
        tally.known_positives += len(proposed) - len(free)
        if wanted:
            shares = bucket_shares(num_rejected, wanted, turn=prompt)
            buckets = (
                PrefixBuckets(leaves, chosen)
                if leaf_vectors is None
                else CosineBuckets(leaves, leaf_vectors, chosen, free)
            )
            beam, filler = _by_bucket(buckets, shares, free, known, rng)
        else:
            beam = rng.choice(free, size=min(num_rejected, len(free)), replace=False)
            taken = np.concatenate([known, beam])
            filler = leaves.draw(chosen, range(levels), num_rejected - len(beam), taken, rng)
        rejected = np.concatenate([beam, filler])
        if not len(rejected):
            continue
        history = leaves.leaf_of_item[histories[prompt]] if histories is not None else np.empty(0, int)
        tally.add(chosen, rejected)
        rows.append(
            {
                "prompt": prompt,
                "prompt_ids": list(ids),
                "chosen_ids": completions[chosen],
                "rejected_ids": [completions[leaf] for leaf in rejected],
                "num_beam": len(beam),
                "num_filler": len(filler),
                "num_history": int(np.isin(rejected, history).sum()),
            }
        )
    return PreferenceRows(rows, tally.statistics(rows, len(prompts)))


def self_play_rows(
    search: ConstrainedSearch,
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
    vectors: np.ndarray | None = None,
    folder: str | Path | None = None,
    part_prompts: int = PART_PROMPTS,
    distributed: bool = False,
    progress: bool = True,
) -> PreferenceRows:
    """Let the current policy play against the train split: its candidates against what the user really chose.

    Args:
        search: Search over the catalogue with the current policy; its whole list is taken as candidates.
        prompt_builder: Makes the prompts, as in fine-tuning and evaluation.
        train_sequences: Item indices of each user's train split, in time order.
        item_codes: (items, levels).
        user_codes: (users, levels), in the order of `train_sequences`, or None.
        difficulty, vectors: As in `build_preference_rows`.
        num_prompts: Train positions to play at.
        rng: Source of randomness.
        num_rejected: Most rejected a row.
        min_history: Items that must stand before a position.
        exclude_known_positives: Never reject another train item of the same user.
        batch_size, folder, part_prompts, distributed, progress: As in `generate_candidates`.

    Returns:
        Rows with `user_row` and `position` in place of `prompt`, and their statistics.
    """
    places = sample_train_positions(train_sequences, num_prompts, rng, min_history)
    histories = [train_sequences[user][:position] for user, position in zip(*places, strict=True)]
    prompts = prompts_of(prompt_builder, user_codes, item_codes, places.user_rows, histories)
    candidates = generate_candidates(search, prompts, batch_size, folder, part_prompts, distributed, progress)
    rows, statistics = build_preference_rows(
        prompts,
        candidates,
        np.array([train_sequences[user][position] for user, position in zip(*places, strict=True)], dtype=np.int64),
        item_codes,
        prompt_builder.vocabulary.item_ids(item_codes),
        difficulty,
        rng,
        num_rejected,
        [train_sequences[user] for user in places.user_rows] if exclude_known_positives else None,
        [history[-prompt_builder.max_history :] for history in histories],
        vectors,
    )
    for row in rows:
        prompt = row.pop("prompt")
        row["user_row"], row["position"] = int(places.user_rows[prompt]), int(places.positions[prompt])
    if launched().is_main_process:
        logger.info("self-play, %s: %s", difficulty, statistics)
    return PreferenceRows(rows, statistics)


def _by_bucket(
    buckets: PrefixBuckets | CosineBuckets,
    shares: dict[str, int],
    candidates: np.ndarray,
    known: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The first candidates of each bucket, as many as its share, and drawn leaves for what it lacks."""
    beam, filler = [], []
    for bucket, share in shares.items():
        found = candidates[buckets.among(candidates, bucket)][:share]
        beam.append(found)
        filler.append(buckets.draw(bucket, share - len(found), np.concatenate([known, found]), rng))
    return np.concatenate(beam), np.concatenate(filler)


class _Tally:
    """Counts what the rejected of all rows are."""

    def __init__(self, levels: int, leaves: DistinctSCIDs, vectors: np.ndarray | None):
        self._leaves, self._vectors = leaves, vectors
        self._by_length = np.zeros(levels, dtype=np.int64)
        self._cosine = 0.0
        self.known_positives = 0

    def add(self, chosen: int, rejected: np.ndarray) -> None:
        codes = self._leaves.codes
        shared = longest_common_prefix(codes[rejected], codes[chosen])
        self._by_length += np.bincount(shared, minlength=len(self._by_length))
        if self._vectors is not None:
            self._cosine += float((self._vectors[rejected] @ self._vectors[chosen]).sum())

    def statistics(self, rows: list[dict[str, Any]], num_prompts: int) -> dict[str, Any]:
        beam, filler, history = (sum(row[name] for row in rows) for name in ("num_beam", "num_filler", "num_history"))
        rejected = max(beam + filler, 1)
        statistics = {
            "prompts": num_prompts,
            "rows": len(rows),
            "dropped": num_prompts - len(rows),
            "mean_rejected": (beam + filler) / max(len(rows), 1),
            "beam_share": beam / rejected,
            "filler_share": filler / rejected,
            "history_share": history / rejected,
            "known_positives": self.known_positives / max(num_prompts, 1),
            "prefix_lengths": {str(at): count / rejected for at, count in enumerate(self._by_length.tolist())},
        }
        return statistics if self._vectors is None else statistics | {"mean_cosine": self._cosine / rejected}
