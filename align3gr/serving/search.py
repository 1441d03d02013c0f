"""From a checked request to a question, and from a batch of questions to lists."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align3gr.data.schema import ITEM_ID
from align3gr.decoding.recommender import Recommender
from align3gr.decoding.requests import Recommendation, Request
from align3gr.errors import InputError
from align3gr.serving.messages import RecommendRequest

logger = logging.getLogger(__name__)

DEFAULT_K = 10


@dataclass(frozen=True)
class Question:
    """What a search needs to know of a request.

    Attributes:
        request: user and history; every item is in the catalogue.
        k: length of the list.
        allowed: rows of the catalogue that alone may be shown; None for all.
            Shape: `(items,)`, int64.
        denied: rows that must not be shown.
            Shape: `(items,)`, int64.
        exclude_seen: leave out the history, too.
    """

    request: Request
    k: int
    allowed: np.ndarray | None
    denied: np.ndarray
    exclude_seen: bool


def question_of(recommender: Recommender, message: RecommendRequest) -> tuple[Question, list[str]]:
    """The question, and the items of the request that were skipped.

    Raises:
        InputError: `k` is too large, an unknown item may not be skipped, or there is a profile and no token level.
    """
    longest = recommender.search.num_beams
    k = min(DEFAULT_K, longest) if message.k is None else message.k
    if k > longest:
        raise InputError(f"k: got {k}, expected 1 to {longest}; start the server with more --num_beams")
    if message.profile is not None and recommender.assigner is None:
        raise InputError("profile: this server has no token level; start it with --scid FOLDER, or leave it out")
    rows, skipped = {}, dict[str, None]()
    for name, ids in (("history", message.history), ("allowed", message.allowed), ("denied", message.denied)):
        if ids is None:
            continue
        rows[name] = recommender.item_rows(ids, message.unknown_items, name)
        if len(rows[name]) < len(ids):
            known = set(recommender.items[ITEM_ID][rows[name].tolist()])
            skipped |= {item: None for item in ids if item not in known}
    history = [item for item in message.history if item not in skipped]
    request = Request("history", history, message.user_id, message.profile)
    return Question(request, k, rows.get("allowed"), rows["denied"], message.exclude_seen), list(skipped)


def answer(recommender: Recommender, questions: Sequence[Question]) -> list[list[Recommendation] | Exception]:
    """The list of each question, or why there is none. Questions of a kind share a search."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for place, one in enumerate(questions):
        # A set of all items, for questions without one, would cost memory by the catalogue.
        kinds.setdefault((one.allowed is not None, one.exclude_seen), []).append(place)
    answers: list[list[Recommendation] | Exception] = [[] for _ in questions]
    for places in kinds.values():
        for place, found in zip(places, _search(recommender, [questions[place] for place in places]), strict=True):
            answers[place] = found
    return answers


def _search(recommender: Recommender, questions: Sequence[Question]) -> list[list[Recommendation] | Exception]:
    """Questions of one kind, together; each alone where that fails."""
    allowed = [one.allowed for one in questions if one.allowed is not None]
    denied = [one.denied for one in questions] if any(len(one.denied) for one in questions) else None
    try:
        lists = recommender.rank(
            [one.request for one in questions],
            max(one.k for one in questions),
            questions[0].exclude_seen,
            allowed=allowed or None,
            denied=denied,
        )
    except Exception as error:
        if len(questions) > 1:
            return [_search(recommender, [one])[0] for one in questions]
        if not isinstance(error, InputError):
            logger.exception("a search failed")
        return [error]
    return [found[: one.k] for found, one in zip(lists, questions, strict=True)]
