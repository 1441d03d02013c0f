"""The questions of an evaluation, as arrays."""

from dataclasses import dataclass

import numpy as np


@dataclass
class EvaluationSet:
    """What validation or test asks: one question a user.

    Attributes:
        user_rows: (users,) int64 rows of `Split.users`.
        histories: for each user the indices of all items before the target, oldest first (int64).
        targets: (users,) int64 item indices.
        ratings: (users,) float64 rating of the target, NaN where there is none; None if no target has one.
        max_history: length to which `recent` cuts.
        num_users: users of the split, asked or not.
        num_items: items of the catalogue.
    """

    user_rows: np.ndarray
    histories: list[np.ndarray]
    targets: np.ndarray
    ratings: np.ndarray | None
    max_history: int
    num_users: int
    num_items: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def recent(self) -> list[np.ndarray]:
        """The latest `max_history` items of each history: what a model is shown. Masking uses the whole of it."""
        return [history[-self.max_history :] for history in self.histories]

    def subset(self, rows: np.ndarray) -> "EvaluationSet":
        """The questions at `rows` (positions in this set), for evaluation on a sample."""
        return EvaluationSet(
            user_rows=self.user_rows[rows],
            histories=[self.histories[row] for row in rows],
            targets=self.targets[rows],
            ratings=None if self.ratings is None else self.ratings[rows],
            max_history=self.max_history,
            num_users=self.num_users,
            num_items=self.num_items,
        )
