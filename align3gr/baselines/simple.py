"""Popularity, history repeat and item-kNN: full rankings of the catalogue from counts alone.

All share one protocol: `fit(train_sequences, num_items)` sees train interactions only, `rank(histories, k,
exclude_seen)` gives (users, k) int64 item indices, best first, -1 where there is nothing more to show. Equal scores
are ranked by item index, so a ranking can be repeated.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, Self

import numpy as np
import scipy.sparse as sp

from align3gr.data.tables import EvaluationSet, Split
from align3gr.errors import InputError
from align3gr.evaluation.evaluator import rank_histories
from align3gr.evaluation.full_evaluation import FullEvaluation
from align3gr.evaluation.policies import latest_then
from align3gr.processes import launched

# Users scored at once. A user reaches some thousands of items over their neighbours: 100 MB of sparse scores a batch.
BATCH_SIZE = 4096


class Baseline(Protocol):
    """What every comparison system offers."""

    def fit(self, train_sequences: Sequence[np.ndarray], num_items: int) -> Self:
        """Learn from train interactions.

        Args:
            train_sequences: for each user the int64 item indices, oldest first.
            num_items: size of the catalogue.
        """
        ...

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> np.ndarray:
        """Rank the catalogue for each history.

        Args:
            histories: for each user the whole history, oldest first.
            k: length of the lists.
            exclude_seen: whether items of the history may not be shown.

        Returns:
            (users, k) int64 item indices, -1 where nothing is left to show.
        """
        ...


class Popularity:
    """Items by their number of train interactions, the same for everyone."""

    def fit(self, train_sequences: Sequence[np.ndarray], num_items: int) -> Self:
        """Count; see `Baseline.fit`."""
        counts = np.bincount(_flatten(train_sequences, num_items)[1], minlength=num_items)
        self.order = np.argsort(-counts, kind="stable")
        return self

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> np.ndarray:
        """See `Baseline.rank`."""
        if not exclude_seen:
            return _pad(np.tile(self.order[:k], (len(histories), 1)), k)
        # Among the first k + |history| items at least k are unseen, or the catalogue ends.
        longest = max((len(history) for history in histories), default=0)
        head = self.order[: k + longest]
        users, items = _flatten(histories, len(self.order))
        place = np.full(len(self.order), -1)
        place[head] = np.arange(len(head))
        seen = np.zeros((len(histories), len(head)), dtype=bool)
        inside = place[items] >= 0
        seen[users[inside], place[items[inside]]] = True
        return _pad(_keep_first(np.where(seen, -1, head), k), k)


class HistoryRepeat:
    """The user's own distinct items, latest first. Nothing is left to show where seen items are excluded."""

    def fit(self, train_sequences: Sequence[np.ndarray], num_items: int) -> Self:
        """There is nothing to learn beyond the size of the catalogue."""
        self.num_items = num_items
        return self

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> np.ndarray:
        """See `Baseline.rank`."""
        rankings = np.full((len(histories), k), -1, dtype=np.int64)
        if not exclude_seen:
            for row, history in enumerate(histories):
                latest = list(dict.fromkeys(np.asarray(history)[::-1].tolist()))[:k]
                rankings[row, : len(latest)] = latest
        return rankings


class ItemKNN:
    """Item-kNN: the items most often consumed by the users who consumed the user's latest items.

    The similarity of two items is the cosine of their co-occurrence over the users' train sets. An item's score is its
    similarity to the items of the history, summed with a weight of `decay` to the power of steps back in time
    (Sarwar et al. 2001, with the decay of session-based variants).

    Args:
        max_history: latest interactions that count.
        decay: weight lost with every step back, above 0 and at most 1.
    """

    def __init__(self, max_history: int = 20, decay: float = 0.8) -> None:
        if max_history < 1:
            raise InputError(f"max_history: got {max_history}, expected at least 1")
        if not 0 < decay <= 1:
            raise InputError(f"decay: got {decay}, expected above 0 and at most 1")
        self.max_history = max_history
        self.decay = decay

    def fit(self, train_sequences: Sequence[np.ndarray], num_items: int) -> Self:
        """Compute the (items, items) sparse similarities; see `Baseline.fit`."""
        users, items = _flatten(train_sequences, num_items)
        # Users x items with ones: duplicates are added up on construction, hence the reset to 1.
        consumed = sp.csr_matrix(
            (np.ones(len(items), dtype=np.float32), (users, items)), shape=(len(train_sequences), num_items)
        )
        consumed.data[:] = 1.0
        norms = np.sqrt(np.maximum(np.asarray(consumed.sum(axis=0)).ravel(), 1.0))
        unit = (consumed @ sp.diags(1.0 / norms)).astype(np.float32)
        self.similarity = (unit.T @ unit).tocsr()
        # An item is not its own neighbour: with the diagonal the ranking would mostly repeat the history.
        self.similarity.setdiag(0.0)
        self.similarity.eliminate_zeros()
        return self

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> np.ndarray:
        """See `Baseline.rank`. Items without any similarity to the history are not shown."""
        rankings = np.full((len(histories), k), -1, dtype=np.int64)
        for start in range(0, len(histories), BATCH_SIZE):
            batch = histories[start : start + BATCH_SIZE]
            scores = (self._weights(batch) @ self.similarity).tocsr()  # (batch, items), sparse
            rankings[start : start + len(batch)] = _top_k(scores, k, batch if exclude_seen else None)
        return rankings

    def _weights(self, histories: Sequence[np.ndarray]) -> sp.csr_matrix:
        """(users, items) sparse: decay ** steps back, summed over an item's occurrences."""
        num_items = self.similarity.shape[0]
        recent = [np.asarray(history)[-self.max_history :] for history in histories]
        users, items = _flatten(recent, num_items)
        steps = np.concatenate([np.arange(len(history))[::-1] for history in recent] or [np.empty(0, np.int64)])
        weights = (self.decay**steps).astype(np.float32)
        return sp.csr_matrix((weights, (users, items)), shape=(len(histories), num_items))


class HistoryThenItemKNN:
    """The latest distinct items of the history, then item-kNN over unseen items: what a sequence model has to beat.

    Args:
        num_repeated: history items at the top.
        item_knn: neighbours that fill the list; a default `ItemKNN` if None.
    """

    def __init__(self, num_repeated: int = 5, item_knn: ItemKNN | None = None) -> None:
        if num_repeated < 0:
            raise InputError(f"num_repeated: got {num_repeated}, expected 0 or more items")
        self.num_repeated = num_repeated
        self.item_knn = item_knn or ItemKNN()

    def fit(self, train_sequences: Sequence[np.ndarray], num_items: int) -> Self:
        """See `ItemKNN.fit`."""
        self.item_knn.fit(train_sequences, num_items)
        return self

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> np.ndarray:
        """See `Baseline.rank`; the same as item-kNN where seen items are excluded."""
        unseen = self.item_knn.rank(histories, k, exclude_seen=True)
        if exclude_seen:
            return unseen
        return latest_then(histories, unseen, self.num_repeated)


def _flatten(sequences: Sequence[np.ndarray], num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(row of the sequence, item) for every interaction; refuses items outside the catalogue."""
    rows = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    items = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences] or [np.empty(0, np.int64)])
    outside = np.flatnonzero((items < 0) | (items >= num_items))
    if len(outside):
        raise InputError(
            f"sequences: row {rows[outside[0]]} has item {items[outside[0]]}, expected an index from 0 to "
            f"{num_items - 1}; take items and num_items from the same split"
        )
    return rows, items


def _top_k(scores: sp.csr_matrix, k: int, denied: Sequence[np.ndarray] | None) -> np.ndarray:
    """The k highest stored scores of each row, ties by index: (rows, items) sparse -> (rows, k), -1 where fewer are.

    Only stored entries are looked at, row by row: on 20,000 items that is 40 times faster than a dense partition.
    """
    rankings = np.full((scores.shape[0], k), -1, dtype=np.int64)
    blocked = np.zeros(scores.shape[1], dtype=bool)
    for row, (start, end) in enumerate(zip(scores.indptr[:-1], scores.indptr[1:], strict=True)):
        items, values = scores.indices[start:end], scores.data[start:end]
        if denied is not None:
            blocked[denied[row]] = True
            allowed = ~blocked[items]
            items, values = items[allowed], values[allowed]
            blocked[denied[row]] = False
        if len(items) > k:
            # All that tie with the k-th score stay for the sort, so that the lowest index wins.
            best = values >= np.partition(values, -k)[-k]
            items, values = items[best], values[best]
        order = np.lexsort((items, -values))[:k]
        rankings[row, : len(order)] = items[order]
    return rankings


def _keep_first(rankings: np.ndarray, k: int) -> np.ndarray:
    """Close the gaps (-1) of each row, order kept, and cut to k."""
    order = np.argsort(rankings < 0, axis=1, kind="stable")
    return np.take_along_axis(rankings, order, axis=1)[:, :k]


def _pad(rankings: np.ndarray, k: int) -> np.ndarray:
    return np.pad(rankings, ((0, 0), (0, k - rankings.shape[1])), constant_values=-1)


SIMPLE_SYSTEMS: dict[str, Callable[[], Baseline]] = {
    "popularity": Popularity,
    "history, latest first": HistoryRepeat,
    "item-kNN": ItemKNN,
    "five latest, then item-kNN": HistoryThenItemKNN,
}


def judge_simple_systems(evaluation: FullEvaluation, split: Split, questions: EvaluationSet, k: int) -> None:
    """A row for each system that needs no model, beside those of the models.

    All processes of a launch must make the call; each ranks its share of the users, the main one judges.

    Args:
        evaluation: takes the rows, in the main process.
        split: its train part is all that the systems learn from.
        questions: histories and targets.
        k: length of the lists.
    """
    for name, system in SIMPLE_SYSTEMS.items():
        begun = time.perf_counter()
        fitted = system().fit(split.train_sequences(), len(split.items))
        allowed, masked = (
            rank_histories(partial(fitted.rank, k=k, exclude_seen=seen), questions.histories) for seen in (False, True)
        )
        if launched().is_main_process:
            evaluation.add(name, questions, allowed, masked, seconds=time.perf_counter() - begun)
