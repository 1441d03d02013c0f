"""RF-DPO preference data: what a user liked, against what the same user disliked or did not care for.

A liked item of the train split, or of a log, is chosen; its prompt holds the user's train items before it. Rejected
are items with feedback of the stage's level by the same user. Those that the policy itself recommends at this prompt
come first, best first; then those of the same request, by their place in it; then the others, nearest in time first,
and behind all those the ones that stand in the prompt's history, which teach little more than not to repeat them.

Never rejected is an item that the user liked anywhere, or one of the user's train items without feedback: who bought
or watched something and said nothing is not against it. Items that nobody said anything about are never rejected at
all. Sameness is meant by SCID: two items with the same tokens are one completion.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align3gr.data.feedback import DISLIKED, LIKED, NEUTRAL, UNKNOWN, Feedback
from align3gr.decoding.search import ConstrainedSearch
from align3gr.dpo.candidates import PART_PROMPTS, generate_candidates, in_first_order, prompts_of
from align3gr.dpo.difficulty import longest_common_prefix
from align3gr.dpo.self_play import PreferenceRows
from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder

logger = logging.getLogger(__name__)

# What is rejected in each stage: easy, hard, and both at once, which is RF-DPO without progression.
FEEDBACK_STAGES = {"disliked": (DISLIKED,), "neutral": (NEUTRAL,), "mixed": (DISLIKED, NEUTRAL)}


class Negatives(NamedTuple):
    """Feedback of one level that may be rejected, sorted by user; all `(entries,)` int64."""

    user_rows: np.ndarray
    leaves: np.ndarray
    timestamps: np.ndarray
    requests: np.ndarray
    ranks: np.ndarray

    def of_user(self, user: int) -> "Negatives":
        places = slice(*np.searchsorted(self.user_rows, [user, user + 1]))
        return Negatives(*(column[places] for column in self))


def rejected_levels(stage: str) -> tuple[int, ...]:
    """The levels that a stage rejects.

    Args:
        stage: its name.

    Raises:
        InputError: there is no such stage.
    """
    if stage not in FEEDBACK_STAGES:
        raise InputError(f"stages: got {stage!r}, expected one of {', '.join(FEEDBACK_STAGES)}")
    return FEEDBACK_STAGES[stage]


def build_feedback_rows(
    search: ConstrainedSearch,
    prompt_builder: PromptBuilder,
    train_sequences: Sequence[np.ndarray],
    item_codes: np.ndarray,
    user_codes: np.ndarray | None,
    feedback: Feedback,
    stage: str,
    num_prompts: int,
    rng: np.random.Generator,
    num_rejected: int = 20,
    min_history: int = 1,
    batch_size: int = 16,
    folder: str | Path | None = None,
    part_prompts: int = PART_PROMPTS,
    distributed: bool = False,
    progress: bool = True,
) -> PreferenceRows:
    """Rows of one stage from feedback on the train split and on logs.

    Args:
        search: search over the catalogue with the current policy; all its beams are looked at.
        prompt_builder: makes the prompts, as in fine-tuning and evaluation.
        train_sequences: item indices of each user's train split, in time order.
        item_codes: (items, levels).
        user_codes: (users, levels), in the order of `train_sequences`, or None.
        feedback: what the users said.
        stage: "disliked", "neutral" or "mixed".
        num_prompts: liked items to make rows of, drawn from those whose user has anything to reject.
        rng: source of randomness of this draw.
        num_rejected: most rejected a row.
        min_history: train items that must stand before a liked one.
        batch_size, folder, part_prompts, distributed, progress: as in `generate_candidates`.

    Returns:
        Rows of `prompt_ids`, `chosen_ids`, `rejected_ids`, `user_row`, `position` (-1 for a liked item of a log), and
        how many rejected the policy generated (`num_generated`, they stand first), the log alone knows (`num_logged`),
        are of the chosen item's request (`num_same_request`) and stand in the prompt's history (`num_history`).
        Statistics: `liked` (liked items with a history), `eligible` (of these, with something to reject), `rows`,
        `users`, `mean_rejected`; as shares of the rejected `generated_share`, `logged_share`, `same_request_share`,
        `history_share`, and `prefix_lengths`, by the number of codes shared with the chosen.

    Raises:
        InputError: there is no such stage.
    """
    levels = rejected_levels(stage)
    codes, first_item, leaf_of_item = np.unique(item_codes, axis=0, return_index=True, return_inverse=True)
    leaf_of_item = leaf_of_item.reshape(-1)
    negatives = find_negatives(feedback, leaf_of_item, levels)
    liked, history_ends = _liked_entries(feedback, train_sequences, min_history)
    eligible = np.isin(feedback.user_rows[liked], negatives.user_rows)
    places = rng.permutation(np.flatnonzero(eligible))[:num_prompts]
    users = feedback.user_rows[liked[places]]
    histories = [train_sequences[user][:end] for user, end in zip(users, history_ends[places], strict=True)]
    prompts = prompts_of(prompt_builder, user_codes, item_codes, users, histories)
    beams = generate_candidates(search, prompts, batch_size, folder, part_prompts, distributed, progress)
    completions = prompt_builder.vocabulary.item_ids(item_codes[first_item]).tolist()
    rows: list[dict[str, Any]] = []
    by_length = np.zeros(codes.shape[1] + 1, dtype=np.int64)
    for prompt, (user, entry) in enumerate(zip(users, liked[places], strict=True)):
        chosen, pool = leaf_of_item[feedback.item_rows[entry]], negatives.of_user(user)
        shown = leaf_of_item[histories[prompt][-prompt_builder.max_history :]]
        beam = leaf_of_item[beams[prompt][beams[prompt] >= 0]]
        rejected, generated, same_request = _choose(
            pool, beam, shown, feedback.requests[entry], feedback.timestamps[entry], num_rejected
        )
        by_length += np.bincount(longest_common_prefix(codes[rejected], codes[chosen]), minlength=len(by_length))
        rows.append(
            {
                "prompt_ids": prompts[prompt],
                "chosen_ids": completions[chosen],
                "rejected_ids": [completions[leaf] for leaf in rejected],
                "user_row": int(user),
                "position": int(feedback.positions[entry]),
                "num_generated": generated,
                "num_logged": len(rejected) - generated,
                "num_same_request": same_request,
                "num_history": int(np.isin(rejected, shown).sum()),
            }
        )
    statistics = {"liked": len(liked), "eligible": int(eligible.sum())} | _statistics(rows, by_length[:-1])
    logger.info("feedback, %s: %s", stage, statistics)
    return PreferenceRows(rows, statistics)


def find_negatives(feedback: Feedback, leaf_of_item: np.ndarray, levels: tuple[int, ...]) -> Negatives:
    """Feedback of some levels that may be rejected: the user neither liked the item nor took it without a word, and
    said nothing worse about it.

    Args:
        feedback: what the users said.
        leaf_of_item: (items,) number of each item's SCID.
        levels: of `DISLIKED` and `NEUTRAL`.
    """
    leaves = leaf_of_item[feedback.item_rows]
    keys = feedback.user_rows * (leaf_of_item.max(initial=0) + 1) + leaves
    spared = np.isin(keys, keys[(feedback.levels == LIKED) | (feedback.levels == UNKNOWN)])
    worse = np.isin(keys, keys[(feedback.levels != UNKNOWN) & (feedback.levels < min(levels))])
    wanted = np.flatnonzero(np.isin(feedback.levels, levels) & ~spared & ~worse)
    wanted = wanted[np.argsort(feedback.user_rows[wanted], kind="stable")]
    columns = (feedback.user_rows, leaves, feedback.timestamps, feedback.requests, feedback.ranks)
    return Negatives(*(column[wanted] for column in columns))


def _liked_entries(
    feedback: Feedback, train_sequences: Sequence[np.ndarray], min_history: int
) -> tuple[np.ndarray, np.ndarray]:
    """Liked entries with enough train items before them, and how many these are; (liked,) each.

    In front of a liked item of a log stand the train items that are older: not those of the same moment, among which
    may be the item itself.
    """
    liked = np.flatnonzero(feedback.levels == LIKED)
    ends = feedback.positions[liked].copy()
    of_log = np.flatnonzero(ends < 0)
    if len(of_log):
        in_train = feedback.positions >= 0
        times: dict[int, np.ndarray] = {}
        starts = np.cumsum([0, *map(len, train_sequences)])
        train_times = feedback.timestamps[in_train]  # user by user, each in time order
        for place in of_log:
            user = int(feedback.user_rows[liked[place]])
            times.setdefault(user, train_times[starts[user] : starts[user + 1]])
            ends[place] = np.searchsorted(times[user], feedback.timestamps[liked[place]])
    kept = ends >= min_history
    return liked[kept], ends[kept]


def _choose(
    pool: Negatives, beam: np.ndarray, shown: np.ndarray, request: int, timestamp: int, num_rejected: int
) -> tuple[np.ndarray, int, int]:
    """Rejected leaves of one row, how many the policy generated, and how many are of the chosen item's request."""
    here = (pool.requests == request) & (request >= 0)
    ranks = np.where(here & (pool.ranks > 0), pool.ranks, np.iinfo(np.int64).max)
    in_history = np.isin(pool.leaves, shown)
    order = np.lexsort((np.abs(pool.timestamps - timestamp), in_history, ranks, ~here))
    logged = in_first_order(pool.leaves[order])
    generated = in_first_order(beam[np.isin(beam, logged)])
    rejected = np.concatenate([generated, logged[~np.isin(logged, generated)]])[:num_rejected]
    return rejected, min(len(generated), num_rejected), int(np.isin(rejected, pool.leaves[here]).sum())


def _statistics(rows: list[dict[str, Any]], by_length: np.ndarray) -> dict[str, Any]:
    total = sum(len(row["rejected_ids"]) for row in rows)
    kinds = ("generated", "logged", "same_request", "history")
    shares = {f"{kind}_share": sum(row[f"num_{kind}"] for row in rows) / max(total, 1) for kind in kinds}
    return {
        "rows": len(rows),
        "users": len({row["user_row"] for row in rows}),
        "mean_rejected": total / max(len(rows), 1),
        **shares,
        "prefix_lengths": {str(length): count / max(total, 1) for length, count in enumerate(by_length.tolist())},
    }
