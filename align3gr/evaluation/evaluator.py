"""Full-ranking evaluation of a language model over SCIDs: no sampled negatives, three protocols from one search."""

from collections.abc import Callable, Sequence

import numpy as np

from align3gr.data.tables import EvaluationSet
from align3gr.decoding.batch_size import BatchSize
from align3gr.decoding.rankings import Rankings, generate_rankings
from align3gr.decoding.search import ConstrainedSearch
from align3gr.evaluation.metrics import three_columns
from align3gr.processes import in_shares
from align3gr.scid.prompts import PromptBuilder

# Users that a system without a model ranks at a time.
JUDGED_K = 10  # length of the lists by which models are validated
BLOCK_USERS = 1024


def rank_policy(
    search: ConstrainedSearch,
    prompts: PromptBuilder,
    questions: EvaluationSet,
    item_codes: np.ndarray,
    user_codes: np.ndarray | None,
    k: int,
    batch_size: BatchSize = "auto",
    progress: bool = True,
    distributed: bool = False,
) -> Rankings:
    """The lists of a model on a validation or test set: with items of the history, and without.

    Args:
        search: the model with its catalogue; its beam must be at least `k`.
        prompts: the prompt that the model was trained with.
        questions: users, histories and targets.
        item_codes: `(items, levels)`.
        user_codes: `(users, levels)`, or None for prompts without users.
        k: length of the lists.
        batch_size: prompts in one search, or "auto"; see `generate_rankings`.
        progress: whether to show a progress bar.
        distributed: share the users out over the processes of the launch, see [`generate_rankings`].
    """
    inputs = [
        prompts.prompt(None if user_codes is None else user_codes[user], item_codes[history])
        for user, history in zip(questions.user_rows, questions.histories, strict=True)
    ]
    return generate_rankings(
        search, inputs, batch_size, k, histories=questions.histories, progress=progress, distributed=distributed
    )


def rank_histories(rank: Callable[[Sequence[np.ndarray]], np.ndarray], histories: Sequence[np.ndarray]) -> np.ndarray:
    """The lists of a system that looks at each user's history alone, shared out over the processes of the launch.

    All processes must make the call; each gets all lists. They are ranked block by block also where there is one
    process, so that sums come out the same.

    Args:
        rank: `(users, k)` lists for some histories, such as a [`Baseline.rank`] with its options.
        histories: for each user the whole history, item indices.
    """
    starts = range(0, max(len(histories), 1), BLOCK_USERS)
    return np.concatenate(in_shares([histories[start : start + BLOCK_USERS] for start in starts], rank))


def evaluate_policy(
    search: ConstrainedSearch,
    prompts: PromptBuilder,
    questions: EvaluationSet,
    item_codes: np.ndarray,
    user_codes: np.ndarray | None,
    ks: tuple[int, ...] = (5, JUDGED_K),
    batch_size: BatchSize = "auto",
    progress: bool = True,
    distributed: bool = False,
) -> dict[str, dict[str, float]]:
    """Metrics of a model on a validation or test set: [`three_columns`] of the lists of [`rank_policy`].

    Args:
        search: the model with its catalogue; its beam must be at least `max(ks)`.
        prompts: the prompt that the model was trained with.
        questions: users, histories and targets.
        item_codes: `(items, levels)`.
        user_codes: `(users, levels)`, or None for prompts without users.
        ks: lengths of the lists that are judged.
        batch_size: prompts in one search, or "auto"; see `generate_rankings`.
        progress: whether to show a progress bar.
        distributed: share the users out over the processes of the launch; each gets the same metrics.
    """
    ranked = rank_policy(
        search, prompts, questions, item_codes, user_codes, max(ks), batch_size, progress, distributed
    )
    return three_columns(
        ranked.seen_allowed, ranked.seen_masked, questions.targets, questions.histories, ks, questions.ratings
    )


def sample_users(questions: EvaluationSet, users: int, seed: int) -> EvaluationSet:
    """A fixed random sample of the questions; all of them if `users` is 0 or not fewer.

    Args:
        questions: all of them.
        users: how many to draw.
        seed: of the draw.
    """
    if users <= 0 or users >= len(questions):
        return questions
    rows = np.random.default_rng(seed).choice(len(questions), users, replace=False)
    return questions.subset(np.sort(rows))
