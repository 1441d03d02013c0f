"""What systems that read item sequences share: pieces and batches of the train split, steps, encoded histories."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

# Batches that are sorted by length together, so that a batch holds little padding and still is random.
_SORTED_TOGETHER = 50
# Histories encoded at once when lists are made.
_ENCODED_AT_ONCE = 512


def cut(sequence: np.ndarray, max_history: int) -> Iterator[np.ndarray]:
    """Pieces of at most `max_history + 1` items, from the end backwards, in which every item but the first of all
    follows another one exactly once.

    >>> [piece.tolist() for piece in cut(np.arange(6), 3)]
    [[2, 3, 4, 5], [0, 1, 2]]
    """
    end = len(sequence)
    while end > 1:
        start = max(0, end - max_history - 1)
        yield sequence[start:end]
        end = start + 1


def pad(sequences: Sequence[np.ndarray], padding: int) -> np.ndarray:
    """Rows of one length, filled at the right. Shape: `(rows, longest)` int64.

    >>> pad([np.array([4]), np.array([1, 2])], 9).tolist()
    [[4, 9], [1, 2]]
    """
    table = np.full((len(sequences), max(map(len, sequences))), padding, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        table[row, : len(sequence)] = sequence
    return table


def batches(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of each batch of an epoch, in random order; a batch holds rows of similar length."""
    order = rng.permutation(len(lengths))
    width = batch_size * _SORTED_TOGETHER
    found = []
    for start in range(0, len(order), width):
        block = order[start : start + width]
        block = block[np.argsort(np.asarray(lengths)[block], kind="stable")]
        found += [block[at : at + batch_size] for at in range(0, len(block), batch_size)]
    return [found[at] for at in rng.permutation(len(found))]


def take_steps(optimizer: torch.optim.Optimizer, losses: Iterable[torch.Tensor]) -> float:
    """One step for each loss, which is computed when its turn comes; their mean."""
    values = []
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return float(np.mean(values))


@torch.no_grad()
def encode_histories(
    histories: Sequence[np.ndarray], latest: int, dim: int, encode: Callable[[list[np.ndarray]], torch.Tensor]
) -> np.ndarray:
    """Encodes histories of similar length together. Nobody's history is the zero vector.

    Args:
        histories: for each user the item indices, oldest first.
        latest: items of a history that are shown.
        dim: width of the vectors.
        encode: histories with at least one item each -> `(histories, dim)`.

    Returns:
        `(users, dim)` float32.
    """
    recent = [np.asarray(history)[-latest:] for history in histories]
    lengths = np.array([len(history) for history in recent], dtype=np.int64)
    vectors = np.zeros((len(recent), dim), dtype=np.float32)
    known = np.flatnonzero(lengths)
    order = known[np.argsort(lengths[known], kind="stable")]
    for start in range(0, len(order), _ENCODED_AT_ONCE):
        rows = order[start : start + _ENCODED_AT_ONCE]
        vectors[rows] = encode([recent[row] for row in rows]).cpu().numpy()
    return vectors
