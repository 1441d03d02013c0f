"""A market that only the order of items tells, for tests of sequential systems."""

from typing import Any

import numpy as np

from align3gr.baselines import rank_by_vectors
from tests.baselines.test_vectors import questions

ITEMS = 24
# After item i comes item i + 7 modulo 24, which no popularity tells.
FOLLOW = [(item + 7) % ITEMS for item in range(ITEMS)]


def sequences(users: int = 120, length: int = 6) -> list[np.ndarray]:
    """Walks from random items, and at the end a user who took nothing."""
    rng = np.random.default_rng(0)
    walks = []
    for _ in range(users):
        walk = [int(rng.integers(ITEMS))]
        while len(walk) < length:
            walk.append(FOLLOW[walk[-1]])
        walks.append(np.array(walk))
    return [*walks, np.zeros(0, dtype=np.int64)]


def learnt(model: Any, behind: int = 1) -> float:
    """Fits with early stopping; the share of items after which the right one stands first.

    Args:
        model: an unfitted system.
        behind: items of a history.
    """
    histories = [[(item - 7 * step) % ITEMS for step in reversed(range(behind))] for item in range(ITEMS)]
    train = sequences()
    # Asked by the user who took nothing, whose embedding says nothing.
    asked = questions(histories, np.full(ITEMS, len(train) - 1))

    def hits() -> float:
        return float((rank_by_vectors(model, asked, 1)[0][:, 0] == FOLLOW).mean())

    model.fit(train, ITEMS, hits)
    assert hits() == max(model.curve)
    return hits()
