"""The tasks of multi-task fine-tuning ("Multi-task SFT" of Align3GR, after LC-Rec, Zheng et al. 2024).

A task yields examples: values for the fields that its templates name. One pass of a task holds one example a user (at
a random position of the train sequence) or one an item. Only the train split is ever looked at. A new task is one
class here, listed in `TASKS`, and one block of templates.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from align3gr.data import Split
from align3gr.data.profiles import HistoryTopics
from align3gr.data.schema import ITEM_ID, POSITION, PROFILE, REVIEW, TEXT, TITLE, USER_ID
from align3gr.scid.template import Value
from align3gr.scid.vocabulary import SCIDVocabulary
from align3gr.sft.user_codes import UserCodes

Example = dict[str, Value]

MAX_WORDS = 48  # of a title, text, profile or review that stands in a row
INTENTION_TOPICS = 3
INTENTION_WORDS = 24


@dataclass
class TaskData:
    """What the tasks draw from: the train split, in words and in token ids.

    Args:
        items: item_id, title, text.
        users: user_id, profile.
        sequences: item indices of each user's train split, oldest first.
        item_tokens: token ids of each item's SCID.
            Shape: `(items, levels)`.
        vocabulary: where the SCID tokens stand.
        user_codes: the users' SCIDs; None leaves them out of every prompt.
        max_history: latest items that a prompt holds.
        reviews: by user row and position in the train sequence, of the train split alone.
    """

    items: pl.DataFrame
    users: pl.DataFrame
    sequences: Sequence[np.ndarray]
    item_tokens: np.ndarray
    vocabulary: SCIDVocabulary
    user_codes: UserCodes | None
    max_history: int
    reviews: dict[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def from_split(
        cls,
        split: Split,
        vocabulary: SCIDVocabulary,
        item_codes: np.ndarray,
        user_codes: UserCodes | None,
        max_history: int,
    ) -> "TaskData":
        """The data of a split; `item_codes` is `(items, levels)`."""
        sequences, tokens = split.train_sequences(), vocabulary.item_ids(item_codes)
        data = cls(split.items, split.users, sequences, tokens, vocabulary, user_codes, max_history)
        if split.reviews is not None:
            reviews = split.reviews.collect()
            rows = {user_id: row for row, user_id in enumerate(split.users[USER_ID].to_list())}
            data.reviews = {
                (rows[user_id], position): text
                for user_id, position, text in reviews.select(USER_ID, POSITION, REVIEW).iter_rows()
                if text
            }
        return data

    @cached_property
    def titles(self) -> list[str]:
        return [_short(title) for title in self.items[TITLE].to_list()]

    @cached_property
    def texts(self) -> list[str]:
        return [_short(text) for text in self.items[TEXT].to_list()]

    @cached_property
    def profiles(self) -> list[str]:
        return [_short(profile) for profile in self.users[PROFILE].to_list()]

    @cached_property
    def topics(self) -> HistoryTopics:
        return HistoryTopics(self.items.select(ITEM_ID, TITLE, TEXT))

    @cached_property
    def topics_of_items(self) -> list[list[str]]:
        return self.topics.of_items()

    def user(self, user: int, position: int | None = None) -> list[int] | None:
        """Token ids of a user's SCID, as it may stand in front of the item at a position of the train sequence."""
        if self.user_codes is None:
            return None
        codes = self.user_codes.full[user] if position is None else self.user_codes.at(user, position)
        return self.vocabulary.user_ids(codes).tolist()

    def history(self, items: np.ndarray) -> Example:
        """The fields of a history, cut to its latest items."""
        recent = items[-self.max_history :]
        titles = "; ".join(self.titles[item] for item in recent if self.titles[item])
        tokens = self.item_tokens[recent].reshape(-1).tolist()
        return {"history": tokens, "history_titles": titles or None, "history_items": recent.tolist()}

    def item(self, item: int) -> Example:
        """The fields of an item."""
        return {
            "item": self.item_tokens[item].tolist(),
            "title": self.titles[item] or None,
            "text": self.texts[item] or None,
        }

    def positions(self, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
        """For each user with two or more train items a random position after the first, in random order of users."""
        users = np.array([user for user, sequence in enumerate(self.sequences) if len(sequence) > 1], dtype=np.int64)
        for user in rng.permutation(users).tolist():
            yield user, int(rng.integers(1, len(self.sequences[user])))


class Task(ABC):
    """A task of multi-task fine-tuning.

    Attributes:
        name: its name in settings and templates.
        fields: what its templates may name.
    """

    name: str
    fields: frozenset[str]

    @staticmethod
    @abstractmethod
    def examples(data: TaskData, rng: np.random.Generator) -> Iterator[Example]:
        """One pass: the values of all fields, None where there is none."""


class SequentialItemPrediction(Task):
    """SEQ: the next item of a history. One pass here is one position a user, see `align3gr.sft.objectives` for all."""

    name = "sequential"
    fields = frozenset({"user", "history", "item"})

    @staticmethod
    def examples(data: TaskData, rng: np.random.Generator) -> Iterator[Example]:
        return _next_items(data, rng)


class AsymmetricItemPrediction(Task):
    """C1: history in SCIDs, answer in words, and the other way round."""

    name = "asymmetric"
    fields = frozenset({"user", "history", "history_titles", "item", "title", "text"})

    @staticmethod
    def examples(data: TaskData, rng: np.random.Generator) -> Iterator[Example]:
        return _next_items(data, rng)


class IntentionItemPrediction(Task):
    """C2: the item that a query asks for.

    The query is the beginning of what the user wrote about the target, where the train split has a review, else some
    topics of the target's text, drawn anew each time. Items without either give no example.
    """

    name = "intention"
    fields = frozenset({"user", "history", "history_titles", "intention", "item"})

    @staticmethod
    def examples(data: TaskData, rng: np.random.Generator) -> Iterator[Example]:
        for user, position in data.positions(rng):
            sequence = data.sequences[user]
            item = int(sequence[position])
            intention = _short(data.reviews.get((user, position), ""), INTENTION_WORDS)
            topics = data.topics_of_items[item]
            if not intention and topics:
                drawn = rng.permutation(len(topics))[: int(rng.integers(1, INTENTION_TOPICS + 1))]
                intention = ", ".join(topics[topic] for topic in drawn)
            if intention:
                asked: Example = {"user": data.user(user, position), "intention": intention}
                yield asked | data.history(sequence[:position]) | data.item(item)


class PreferenceInference(Task):
    """C3: what a history says about its user, in words: the topics that set its items apart."""

    name = "preference"
    fields = frozenset({"user", "history", "history_titles", "preference"})

    @staticmethod
    def examples(data: TaskData, rng: np.random.Generator) -> Iterator[Example]:
        drawn = list(data.positions(rng))
        histories = [data.sequences[user][:position][-data.max_history :] for user, position in drawn]
        preferences = data.topics.of_histories(histories)
        for (user, position), history, preference in zip(drawn, histories, preferences, strict=True):
            if preference:
                inferred: Example = {"user": data.user(user, position), "preference": preference}
                yield inferred | data.history(history)


class ItemTextAlignment(Task):
    """B1: an item's words to its SCID, and its SCID to its words."""

    name = "item_text"
    fields = frozenset({"item", "title", "text"})

    @staticmethod
    def examples(data: TaskData, rng: np.random.Generator) -> Iterator[Example]:
        for item in rng.permutation(len(data.item_tokens)).tolist():
            yield data.item(item)


class UserProfileAlignment(Task):
    """B2: a user's profile to the SCID, and the SCID to the profile."""

    name = "user_profile"
    fields = frozenset({"user", "profile"})

    @staticmethod
    def examples(data: TaskData, rng: np.random.Generator) -> Iterator[Example]:
        for user in rng.permutation(len(data.profiles)).tolist():
            if data.profiles[user]:
                yield {"user": data.user(user), "profile": data.profiles[user]}


TASKS: tuple[type[Task], ...] = (
    SequentialItemPrediction,
    AsymmetricItemPrediction,
    IntentionItemPrediction,
    PreferenceInference,
    ItemTextAlignment,
    UserProfileAlignment,
)


def _next_items(data: TaskData, rng: np.random.Generator) -> Iterator[Example]:
    for user, position in data.positions(rng):
        sequence = data.sequences[user]
        example: Example = {"user": data.user(user, position)}
        yield example | data.history(sequence[:position]) | data.item(int(sequence[position]))


def _short(text: str, words: int = MAX_WORDS) -> str:
    return " ".join(text.split()[:words])
