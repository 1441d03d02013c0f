"""Item sequences end to end, what a model is asked about them, and how well it answers."""

from collections.abc import Sequence

import numpy as np
import torch

from align3gr.errors import InputError

VALIDATION_USERS = 10_000
VALIDATION_NEGATIVES = 20


class Histories:
    """Item sequences end to end, and the stretch before any position as a padded row."""

    def __init__(self, sequences: Sequence[np.ndarray], num_items: int, max_history: int = 20) -> None:
        self.num_items, self.max_history = num_items, max_history
        self.lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.items = np.concatenate([np.zeros(0, np.int64), *sequences]).astype(np.int64)
        self.user_of = np.repeat(np.arange(len(sequences)), self.lengths)
        self.taken = np.unique(self.user_of * num_items + self.items)

    def before(self, users: np.ndarray, ends: np.ndarray) -> torch.Tensor:
        """The latest items of each user before a position in `items`. Shape: `(rows,)` twice -> `(rows, length)`."""
        length = min(self.max_history, int((ends - self.starts[users]).max(initial=1)))
        at = ends[:, None] - np.arange(length, 0, -1)
        inside = at >= self.starts[users][:, None]
        return torch.from_numpy(np.where(inside, self.items[np.where(inside, at, 0)], self.num_items))

    def negatives(self, users: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
        """Uniform items that the users did not take: `(rows, number)`. One who took all gets any."""
        drawn = rng.integers(self.num_items, size=(len(users), number))
        for _ in range(10):
            wrong = self._took(users, drawn)
            if not wrong.any():
                return drawn
            drawn[wrong] = rng.integers(self.num_items, size=int(wrong.sum()))
        # Whoever took most of the catalogue is served from the rest of it.
        wrong = self._took(users, drawn)
        for row in np.flatnonzero(wrong.any(1)):
            own = self.items[self.starts[users[row]] : self.starts[users[row] + 1]]
            rest = np.setdiff1d(np.arange(self.num_items), own)
            if len(rest):
                drawn[row, wrong[row]] = rng.choice(rest, int(wrong[row].sum()))
        return drawn

    def _took(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each user took the items of the row. Shapes: `(rows,)`, `(rows, number)` -> `(rows, number)`."""
        key = users[:, None] * self.num_items + items
        place = np.minimum(np.searchsorted(self.taken, key), len(self.taken) - 1)
        return self.taken[place] == key


def last_items(histories: Histories, rng: np.random.Generator, encoder: str) -> np.ndarray:
    """Positions of the inner validation: the last items of users with three or more, of `VALIDATION_USERS` at most.

    Raises:
        InputError: there is no such user.
    """
    last = histories.starts[1:][histories.lengths >= 3] - 1
    if not len(last):
        raise InputError(
            f"train: no user has three interactions, which '{encoder}' needs; choose collaborative 'ppmi'"
        )
    return last if len(last) <= VALIDATION_USERS else np.sort(rng.choice(last, VALIDATION_USERS, replace=False))


def auc_of_true_items(logits: np.ndarray) -> float:
    """Chance that the true item scores above a negative of the same user, mean over users.

    Shape: `(users, 1 + negatives)`, the true item first.

    >>> auc_of_true_items(np.array([[2.0, 1.0, 3.0], [5.0, 5.0, 1.0]]))  # (1/2 + 3/4) / 2
    0.625
    """
    true, false = logits[:, :1], logits[:, 1:]
    return float(((true > false) + 0.5 * (true == false)).mean())
