"""What the page shows, without the page: models, users to choose from, histories as text, and answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, TEXT, TITLE, USER_ID
from align3gr.decoding.recommender import Recommender
from align3gr.decoding.requests import Recommendation
from align3gr.demo.beam_levels import BeamLevel, BeamViewer
from align3gr.errors import InputError

_SEED = 42


@dataclass(frozen=True)
class ModelAnswer:
    """What one model says.

    Attributes:
        name: of the model.
        reads_users: whether its prompts hold users' SCIDs at all.
        items: the list, best first.
        without_user: the list of the same history without the user's SCID; None where the prompt holds none.
        levels: the beam behind `items`, level by level.
    """

    name: str
    reads_users: bool
    items: list[Recommendation]
    without_user: list[Recommendation] | None
    levels: list[BeamLevel]


@dataclass(frozen=True)
class DemoAnswer:
    """What all models say about one history.

    Attributes:
        user_id: who was asked for, or None.
        history: item ids, oldest first.
        read: how many of them, the latest, stand in the prompt of the last model.
        user_codes: the user's SCID, or None.
        target: what came next in the data, where the history is that of the test user.
        models: one answer a model, in the order of the session.
    """

    user_id: str | None
    history: list[str]
    read: int
    user_codes: tuple[int, ...] | None
    target: str | None
    models: list[ModelAnswer]


class DemoSession:
    """Answers for a page that compares models over one catalogue.

    Args:
        models: recommenders by the name to show, at least one, such as fine-tuned before preference-trained.
        split: prepared data, for users with their histories and targets, and texts of the items.

    Attributes:
        names: names of the models.
        ids, titles: of the items by row; an item without a title has its id for one.
        row: row of each item id.
        codes: SCIDs of the items. Shape: `(items, levels)`.
        users: ids of the users of the test split in the order of the data; empty without a split.
        longest: the longest list that every model can give.

    Raises:
        InputError: the models have other SCIDs than the first, a search without beams, or no SCID for an item of the
            split.
    """

    def __init__(self, models: Mapping[str, Recommender], split: Split | None = None):
        self.names = list(models)
        first = models[self.names[0]]
        for name, recommender in models.items():
            if not recommender.items.select(ITEM_ID, "codes").equals(first.items.select(ITEM_ID, "codes")):
                raise InputError(
                    f"{name}: its items have other SCIDs than those of {self.names[0]}; compare models of one run"
                )
        self.ids: list[str] = first.items[ITEM_ID].to_list()
        self.titles: list[str] = [title or item for title, item in zip(first.items[TITLE], self.ids, strict=True)]
        self.row = {item: row for row, item in enumerate(self.ids)}
        self._labels = [f"{' '.join(t.split())} [{i}]" for t, i in zip(self.titles, self.ids, strict=True)]
        self._by_label = {label: row for row, label in enumerate(self._labels)}
        self._by_title: dict[str, list[int]] = {}
        for row, title in enumerate(self.titles):
            self._by_title.setdefault(title.casefold(), []).append(row)
        texts = None if split is None else self._texts(split)
        self._viewers = {name: BeamViewer(recommender, texts) for name, recommender in models.items()}
        self.longest = min(len(self.ids), *(recommender.search.num_beams for recommender in models.values()))
        self.codes = self._viewers[self.names[0]].codes
        self._questions: dict[str, tuple[list[str], str]] = {} if split is None else _questions(split)
        self.users = list(self._questions)

    def some_users(self, number: int) -> list[str]:
        """Users of the test split, drawn with a fixed seed, in the order of the data."""
        drawn = np.random.default_rng(_SEED).permutation(len(self.users))[:number]
        return [self.users[place] for place in np.sort(drawn).tolist()]

    def history_text(self, user_id: str) -> str:
        """History of a user of the test split as text, a label a line, oldest first.

        Raises:
            InputError: the data asks nothing about this user.
        """
        if user_id not in self._questions:
            known = f"the test split has {len(self.users):,}" if self.users else "there are no test data (--data)"
            raise InputError(f"user: there is no history of {user_id!r}, {known}; choose one, or type a history")
        return "\n".join(self.label(item) for item in self._questions[user_id][0])

    def label(self, item_id: str) -> str:
        """Title and id in one line; no two items have the same."""
        return self._labels[self.row[item_id]]

    def find(self, words: str, most: int = 20) -> list[str]:
        """Labels that hold all of the words, in any case, in the order of the catalogue."""
        wanted = words.casefold().split()
        if not wanted:
            return []
        found = (label for label in self._labels if all(word in label.casefold() for word in wanted))
        return [label for label, _ in zip(found, range(most), strict=False)]

    def read_history(self, text: str) -> list[str]:
        """Item ids of a text with one label, id or title a line; empty lines are passed over.

        Raises:
            InputError: a line is no item, or a title that several items have.
        """
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
        return [self.ids[self._read(number, line)] for number, line in lines if line]

    def _read(self, number: int, line: str) -> int:
        if line in self._by_label:
            return self._by_label[line]
        if line in self.row:
            return self.row[line]
        same = self._by_title.get(line.casefold(), [])
        if len(same) == 1:
            return same[0]
        if same:
            some = ", ".join(repr(self._labels[row]) for row in same[:3])
            raise InputError(
                f"history: line {number}: {len(same)} items are called {line!r}; name one, such as {some}"
            )
        near = self.find(re.sub(r"\[.*\]$", "", line), 3)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else "find its title with the search"
        raise InputError(f"history: line {number}: {line!r} is no title and no id of the catalogue; {hint}")

    def answer(self, history: Sequence[str], user_id: str | None, k: int, exclude_seen: bool = False) -> DemoAnswer:
        """What each model recommends, with and without the user's SCID, and how it got there.

        Args:
            history: item ids, oldest first.
            user_id: the user, or None; one that no model knows is prompted for without an SCID.
            k: length of the lists, at most the number of beams.
            exclude_seen: leave out the items of the history.

        Raises:
            InputError: an unknown item, `k` out of range, or nothing to make a prompt of.
        """
        question = self._questions.get(user_id or "")
        answers = []
        for name, viewer in self._viewers.items():
            recommend = viewer.recommender.recommend
            known = viewer.user_codes(user_id) is not None
            answers.append(
                ModelAnswer(
                    name,
                    viewer.recommender.prompt_builder.user_scid,
                    recommend([history], [user_id], k, exclude_seen)[0],
                    recommend([history], None, k, exclude_seen)[0] if known else None,
                    viewer.levels(history, user_id, exclude_seen),
                )
            )
        last = self._viewers[self.names[-1]]
        codes, read = last.user_codes(user_id), min(len(history), last.recommender.prompt_builder.max_history)
        target = question[1] if question is not None and question[0] == list(history) else None
        return DemoAnswer(
            user_id, list(history), read, None if codes is None else tuple(codes.tolist()), target, answers
        )

    def _texts(self, split: Split) -> list[str]:
        unknown = next((item for item in split.items[ITEM_ID] if item not in self.row), None)
        if unknown is not None:
            raise InputError(f"data: item {unknown!r} is not in the model's catalogue; give the data of the same run")
        texts = dict(split.items.select(ITEM_ID, TEXT).iter_rows())
        return [f"{title}\n{texts.get(item, '')}" for title, item in zip(self.titles, self.ids, strict=True)]


def _questions(split: Split) -> dict[str, tuple[list[str], str]]:
    """History and target of each user of the test split, as item ids."""
    ids, users, asked = split.items[ITEM_ID].to_list(), split.users[USER_ID].to_list(), split.histories("test")
    return {
        users[user]: ([ids[item] for item in history.tolist()], ids[target])
        for user, history, target in zip(
            asked.user_rows.tolist(), asked.histories, asked.targets.tolist(), strict=True
        )
    }
