"""Caser: convolutions over the latest items (Tang and Wang 2018)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from align3gr.baselines.next_item_loss import NextItemLoss
from align3gr.baselines.window_training import WindowBaseline, WindowNetwork
from align3gr.errors import InputError


class CaserModel(WindowNetwork):
    """The latest items as a picture of `window` rows and `dim` columns, read by filters of two kinds.

    Args:
        num_users: rows of the train split.
        num_items: size of the catalogue; the index `num_items` is padding, a row of zeros.
        dim: width of the embeddings.
        window: items of a picture.
        horizontal: filters of each height from 1 to `window`, as wide as the picture; the largest value counts.
        vertical: filters of one column, as high as the picture: weighted sums of the items.
        dropout: of what the filters say.
    """

    def __init__(
        self, num_users: int, num_items: int, dim: int, window: int, horizontal: int, vertical: int, dropout: float
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=num_items)
        self.users = nn.Embedding(num_users, dim)
        # A filter of height h is a linear map of h items that stand one after the other.
        self.horizontal = nn.ModuleList([nn.Linear(height * dim, horizontal) for height in range(1, window + 1)])
        self.vertical = nn.Linear(window, vertical)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(dim * vertical + horizontal * window, dim)
        # The last column is the bias of an item.
        self.answers = nn.Parameter(torch.zeros(num_items, 2 * dim + 1))
        with torch.no_grad():
            for weight, width in ((self.items.weight, dim), (self.users.weight, dim), (self.answers, 2 * dim)):
                weight[:, :width].normal_(std=1 / width)
            self.items.weight[num_items] = 0

    def forward(self, users: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """See `WindowNetwork.forward`; the last column is 1."""
        picture = self.items(history)  # (batch, window, dim)
        read = [self.vertical(picture.transpose(1, 2)).flatten(1)]  # (batch, dim * vertical)
        for height, filters in enumerate(self.horizontal, start=1):
            # (batch, window - height + 1, dim, height) -> the items of each place, one after the other
            places = picture.unfold(1, height, 1).transpose(2, 3).flatten(2)
            read.append(F.relu(filters(places)).amax(1))
        sequence = F.relu(self.dense(self.dropout(torch.cat(read, dim=1))))
        return torch.cat([sequence, self.users(users), torch.ones_like(sequence[:, :1])], dim=1)

    @property
    def catalogue(self) -> torch.Tensor:
        """Embeddings of the answers and their biases: `(items, 2 * dim + 1)`."""
        return self.answers


class Caser(WindowBaseline):
    """Caser as a comparison system. Users and windows of the test: see [`WindowBaseline`].

    Args:
        seed: of weights, batches and negatives.
        dim: width of the embeddings.
        window: items of a picture, the paper's L.
        ahead: next items of a window, the paper's T; each epoch learns one of them.
        horizontal: filters of each height.
        vertical: filters of one column.
        dropout: of what the filters say.
        loss: kind of [`NextItemLoss`]; that of the paper is "bce" with 3 negatives.
        negatives: see [`NextItemLoss`].
        learning_rate: of Adam.
        l2: weight decay of Adam.
        batch_size: windows in a batch.
        epochs: most epochs.
        patience: see [`train_until_flat`].

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        seed: int = 0,
        dim: int = 64,
        window: int = 5,
        ahead: int = 3,
        horizontal: int = 16,
        vertical: int = 4,
        dropout: float = 0.5,
        loss: str = "sampled_softmax",
        negatives: int = 0,
        learning_rate: float = 3e-3,
        l2: float = 1e-6,
        batch_size: int = 1024,
        epochs: int = 50,
        patience: int = 2,
    ) -> None:
        super().__init__(seed, window, ahead, learning_rate, l2, batch_size, epochs, patience)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout: got {dropout}, expected at least 0 and below 1")
        self.dim, self.horizontal, self.vertical, self.dropout = dim, horizontal, vertical, dropout
        self.loss = NextItemLoss(loss, negatives)

    def make_network(self, train_sequences: Sequence[np.ndarray], num_items: int) -> CaserModel:
        """See `WindowBaseline.make_network`."""
        self.loss.count(train_sequences, num_items)
        users = len(train_sequences)
        return CaserModel(users, num_items, self.dim, self.window, self.horizontal, self.vertical, self.dropout)

    def batch_loss(self, users: torch.Tensor, history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `WindowBaseline.batch_loss`."""
        return self.loss(self.network(users, history), targets, self.network.catalogue)
