"""Systems that read the latest items of a user: the windows of the train split, and the training over them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from align3gr.baselines.sequence_training import take_steps
from align3gr.baselines.vectors import train_until_flat
from align3gr.errors import InputError

# Users encoded at once when lists are made.
_ENCODED_AT_ONCE = 4096


class Windows:
    """Every item of the train split but a user's first, after the items before it.

    Args:
        sequences: for each user the item indices, oldest first.
        length: latest items that are seen; fewer are filled up at the left.
        ahead: the item itself and those after it that count as what comes next.
        padding: index that fills up.

    Attributes:
        users: `(windows,)` int64, the row of the user.
    """

    def __init__(self, sequences: Sequence[np.ndarray], length: int, ahead: int, padding: int) -> None:
        left, right = np.full(length, padding, dtype=np.int64), np.full(ahead - 1, padding, dtype=np.int64)
        parts = [part for sequence in sequences for part in (left, np.asarray(sequence, dtype=np.int64), right)]
        self._line = np.concatenate([*parts, left[:0]])
        sizes = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        counts = np.maximum(sizes - 1, 0)
        self.users = np.repeat(np.arange(len(sequences)), counts)
        # A user's part of the line begins with the padding; the first window is one item further.
        begins = np.cumsum(sizes + length + ahead - 1) - (sizes + length + ahead - 1)
        nth = np.arange(len(self.users)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._begins = np.repeat(begins + 1, counts) + nth
        self._length, self._width = length, length + ahead

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Users `(rows,)`, histories `(rows, length)` and next items `(rows, ahead)`, int64, of some windows."""
        table = self._line[self._begins[rows][:, None] + np.arange(self._width)]
        return self.users[rows], table[:, : self._length], table[:, self._length :]


def latest_items(histories: Sequence[np.ndarray], length: int, padding: int) -> np.ndarray:
    """The end of each history, filled up at the left. Shape: `(users, length)` int64.

    >>> latest_items([np.array([4]), np.array([1, 2, 3])], 2, 9).tolist()
    [[9, 4], [2, 3]]
    """
    table = np.full((len(histories), length), padding, dtype=np.int64)
    for row, history in enumerate(histories):
        recent = np.asarray(history)[-length:]
        table[row, length - len(recent) :] = recent
    return table


class WindowNetwork(nn.Module, ABC):
    """A network over a user and the latest items.

    Attributes:
        users: the embeddings of the users of the train split.
    """

    users: nn.Embedding

    @abstractmethod
    def forward(self, users: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Shape: `(batch,)` rows of users, `(batch, length)` item indices, padded at the left -> `(batch, width)`."""

    @property
    @abstractmethod
    def catalogue(self) -> torch.Tensor:
        """What the dot product scores: `(items, width)`."""


class WindowBaseline(ABC):
    """A comparison system whose network reads the latest items of a user.

    A user of the test has the embedding of the train split, and the window ends with the newest item of the history.
    The embedding of a user who gave no window is zero.

    Args:
        seed: of weights, batches and negatives.
        window: latest items that are seen.
        ahead: of how many next items a window is to tell one; which one is drawn anew in each epoch.
        learning_rate: of Adam.
        l2: weight decay of Adam, on all weights.
        batch_size: windows in a batch.
        epochs: most epochs.
        patience: see [`train_until_flat`].

    Attributes:
        curve: validation after each epoch.
        network: what was trained.
    """

    network: WindowNetwork

    def __init__(
        self,
        seed: int,
        window: int,
        ahead: int,
        learning_rate: float,
        l2: float,
        batch_size: int,
        epochs: int,
        patience: int,
    ) -> None:
        for name, value in (("window", window), ("ahead", ahead)):
            if value < 1:
                raise InputError(f"{name}: got {value}, expected at least 1 item")
        self.seed, self.window, self.ahead, self.learning_rate, self.l2 = seed, window, ahead, learning_rate, l2
        self.batch_size, self.epochs, self.patience = batch_size, epochs, patience
        self.curve: list[float] = []

    @abstractmethod
    def make_network(self, train_sequences: Sequence[np.ndarray], num_items: int) -> WindowNetwork:
        """An untrained network; `num_items` is the index of padding."""

    @abstractmethod
    def batch_loss(self, users: torch.Tensor, history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """A scalar. Shape: `(batch,)` rows, `(batch, window)` items padded at the left, `(batch,)` items."""

    def fit(
        self, train_sequences: Sequence[np.ndarray], num_items: int, validate: Callable[[], float] | None = None
    ) -> Self:
        """See `VectorBaseline.fit`."""
        torch.manual_seed(self.seed)
        rng = np.random.default_rng(self.seed)
        windows = Windows(train_sequences, self.window, self.ahead, num_items)
        if not len(windows):
            name = type(self).__name__
            raise InputError(f"train: no user has two interactions, which {name} needs; choose other baselines")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = self.make_network(train_sequences, num_items).to(device)
        without = np.setdiff1d(np.arange(len(train_sequences)), windows.users)
        with torch.no_grad():
            self.network.users.weight[torch.from_numpy(without)] = 0
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, weight_decay=self.l2)

        def losses() -> Iterator[torch.Tensor]:
            for rows in np.array_split(rng.permutation(len(windows)), -(-len(windows) // self.batch_size)):
                users, history, following = windows.take(rows)
                # Items after the last one are padding, which stands behind all others.
                chosen = rng.integers((following < num_items).sum(1))
                batch = (users, history, following[np.arange(len(rows)), chosen])
                yield self.batch_loss(*(torch.from_numpy(part).to(device) for part in batch))

        self.curve = train_until_flat(
            lambda: take_steps(optimizer, losses()), validate, self.network, self.epochs, self.patience
        )
        return self

    def item_vectors(self) -> np.ndarray:
        """`(items, width)` float32."""
        with torch.no_grad():
            return self.network.catalogue.cpu().numpy()

    @torch.no_grad()
    def user_vectors(self, histories: Sequence[np.ndarray], user_rows: np.ndarray) -> np.ndarray:
        """See `VectorBaseline.user_vectors`; the class says which embedding a user has."""
        catalogue: Any = self.network.catalogue
        vectors = np.zeros((len(histories), catalogue.shape[1]), dtype=np.float32)
        for start in range(0, len(histories), _ENCODED_AT_ONCE):
            rows = slice(start, start + _ENCODED_AT_ONCE)
            recent = torch.from_numpy(latest_items(histories[rows], self.window, len(catalogue)))
            users = torch.from_numpy(np.asarray(user_rows[rows], dtype=np.int64))
            vectors[rows] = self.network(users.to(catalogue.device), recent.to(catalogue.device)).cpu().numpy()
        return vectors
