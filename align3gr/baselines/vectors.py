"""Baselines that score an item by the dot product of two vectors: their lists, and when training stops."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch

from align3gr.data.evaluation_set import EvaluationSet
from align3gr.errors import InputError
from align3gr.progress import ProgressBar

logger = logging.getLogger(__name__)

# Users scored at once: 40 MB of scores on 20,000 items.
BATCH_SIZE = 512


@runtime_checkable
class VectorBaseline(Protocol):
    """A comparison system whose score of an item is the dot product of a user's and the item's vector."""

    def fit(
        self, train_sequences: Sequence[np.ndarray], num_items: int, validate: Callable[[], float] | None = None
    ) -> Self:
        """Learn from train interactions.

        Args:
            train_sequences: for each user the int64 item indices, oldest first.
            num_items: size of the catalogue.
            validate: how good the system is now, higher is better. What trains in epochs calls it after each, stops
                when it no longer grows and ends as it was at the best one; without it, all epochs are run.
        """
        ...

    def item_vectors(self) -> np.ndarray:
        """`(items, dim)` float32."""
        ...

    def user_vectors(self, histories: Sequence[np.ndarray], user_rows: np.ndarray) -> np.ndarray:
        """`(users, dim)` float32.

        Args:
            histories: for each user all item indices before the target, oldest first.
            user_rows: the users' rows in the train split.
        """
        ...


def rank_by_vectors(
    baseline: VectorBaseline, questions: EvaluationSet, k: int, batch_size: int = BATCH_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Rank the whole catalogue: with items of the history, and without.

    Args:
        baseline: a fitted system.
        questions: users and histories.
        k: length of the lists.
        batch_size: users scored at once.

    Returns:
        Two `(questions, k)` int64 item indices, best first, -1 where nothing is left to show. Equal scores are ranked
        by item index within a list.
    """
    items = torch.from_numpy(np.ascontiguousarray(baseline.item_vectors())).T
    users = torch.from_numpy(np.ascontiguousarray(baseline.user_vectors(questions.histories, questions.user_rows)))
    allowed, masked = (np.full((len(questions), k), -1, dtype=np.int64) for _ in range(2))
    for start in range(0, len(questions), batch_size):
        histories = questions.histories[start : start + batch_size]
        end = start + len(histories)
        scores = users[start:end] @ items  # (batch, items)
        width = min(k, scores.shape[1])
        allowed[start:end, :width] = _top_k(scores, width)
        rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        scores[torch.from_numpy(rows), torch.from_numpy(np.concatenate(histories))] = -torch.inf
        masked[start:end, :width] = _top_k(scores, width)
    return allowed, masked


def _top_k(scores: torch.Tensor, k: int) -> np.ndarray:
    """`(users, items)` -> `(users, k)`, -1 where only items of score -inf are left."""
    values, items = scores.topk(k)
    order = np.lexsort((items.numpy(), -values.numpy()), axis=1)
    found = np.where(torch.isinf(values).numpy(), -1, items.numpy())
    return np.take_along_axis(found, order, axis=1)


def train_until_flat(
    run_epoch: Callable[[], float],
    validate: Callable[[], float] | None,
    module: torch.nn.Module,
    epochs: int,
    patience: int,
) -> list[float]:
    """Trains until validation has not grown for `patience` epochs; leaves the weights of the best epoch.

    Args:
        run_epoch: trains one epoch, returns its mean loss.
        validate: how good the module is now, higher is better; None runs all epochs and keeps the last weights.
        module: what is trained.
        epochs: most epochs.
        patience: epochs without growth that end the training.

    Returns:
        What `validate` said after each epoch.

    Raises:
        InputError: the loss of an epoch is nan or infinite, and no epoch before it was judged; else that one is kept.
    """
    curve: list[float] = []
    best: dict[str, Any] = {}
    bar = ProgressBar(epochs, f"{type(module).__name__}, at most", "epoch")
    for epoch in range(epochs):
        module.train()
        loss = run_epoch()
        module.eval()
        bar.update()
        if not math.isfinite(loss):
            said = f"learning_rate: the loss of epoch {epoch + 1} of {type(module).__name__} is {loss}; lower it"
            if not best:
                raise InputError(said)
            logger.warning("%s; the best epoch before is kept", said)
            break
        if validate is None:
            continue
        curve.append(validate())
        logger.info("%s: epoch %d, loss %.4f, validation %.5f", type(module).__name__, epoch + 1, loss, curve[-1])
        if curve[-1] > max(curve[:-1], default=-np.inf):
            best = copy.deepcopy(module.state_dict())
        elif epoch - int(np.argmax(curve)) >= patience:
            break
    bar.close()
    if best:
        module.load_state_dict(best)
    return curve
