"""Full-ranking evaluation of a language model over SCIDs: no sampled negatives, three protocols from one search."""

from typing import cast

import numpy as np

from align3gr.data.tables import EvaluationSet
from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.evaluation.metrics import three_columns
from align3gr.scid.prompts import PromptBuilder


def evaluate_policy(
    search: ConstrainedBeamSearch,
    prompts: PromptBuilder,
    questions: EvaluationSet,
    item_codes: np.ndarray,
    user_codes: np.ndarray | None,
    ks: tuple[int, ...] = (5, 10),
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Metrics of a model on a validation or test set, see [`three_columns`].

    Args:
        search: the model with its catalogue; its beam must be at least `max(ks)`.
        prompts: the prompt that the model was trained with.
        questions: users, histories and targets.
        item_codes: `(items, levels)`.
        user_codes: `(users, levels)`, or None for prompts without users.
        ks: lengths of the lists that are judged.
        batch_size: prompts in one search.
        progress: whether to show a progress bar.
    """
    inputs = [
        prompts.prompt(None if user_codes is None else user_codes[user], item_codes[history])
        for user, history in zip(questions.user_rows, questions.histories, strict=True)
    ]
    rankings = generate_rankings(search, inputs, batch_size, max(ks), histories=questions.histories, progress=progress)
    masked = cast(np.ndarray, rankings.masked)  # there, since histories were given
    return three_columns(rankings.allowed, masked, questions.targets, questions.histories, ks, questions.ratings)


def sample_users(questions: EvaluationSet, users: int, seed: int) -> EvaluationSet:
    """A fixed random sample of the questions; all of them if `users` is 0 or not fewer."""
    if users <= 0 or users >= len(questions):
        return questions
    rows = np.random.default_rng(seed).choice(len(questions), users, replace=False)
    return questions.subset(np.sort(rows))
