"""Histories in which more items come again than users really come back to: how a model from scratch learns to copy.

Where users return to items they know, showing these again is worth more than most models are. Copying an SCID takes
induction: find in the history the codes that have been written so far, and go on as it goes on there. A pretrained
model can do that; one that sees a few million tokens, in which a return is rare, does not come to it. Put into many
histories, returns teach it. That does not make returns look frequent to the model: a history in which nothing has come
again after a few items is recognised as a real one.
"""

from collections.abc import Sequence

import numpy as np

from align3gr.errors import InputError

RETURN_RATE = 0.5  # items after which an earlier one comes again


def with_returns(train_sequences: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The sequences with returns put in, each as far back as a real one somewhere in the data.

    Args:
        train_sequences: item indices of each user's train split, oldest first.
        rng: source of randomness.

    Raises:
        InputError: nobody comes back to an item in this data, so there is no such behaviour to learn.
    """
    distances = return_distances(train_sequences)
    if not len(distances):
        raise InputError(
            "returns: no user of this data comes back to an item, so there is nothing to learn; set it to 0"
        )
    longer = []
    for sequence in train_sequences:
        items: list[int] = []
        for item in sequence.tolist():
            items.append(item)
            if len(items) > 1 and rng.random() < RETURN_RATE:
                distance = int(rng.choice(distances))
                items.append(items[-min(distance, len(items))])
        longer.append(np.array(items, dtype=np.int64))
    return longer


def return_distances(train_sequences: Sequence[np.ndarray]) -> np.ndarray:
    """For each item that stood in its sequence before, how many places back, the last time. Shape: `(returns,)`."""
    distances = []
    for sequence in train_sequences:
        last: dict[int, int] = {}
        for place, item in enumerate(sequence.tolist()):
            if item in last:
                distances.append(place - last[item])
            last[item] = place
    return np.array(distances, dtype=np.int64)
