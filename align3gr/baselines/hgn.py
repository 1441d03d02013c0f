"""HGN: gates over the latest items and their features (Ma, Kang and Liu 2019)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from align3gr.baselines.next_item_loss import NextItemLoss
from align3gr.baselines.window_training import WindowBaseline, WindowNetwork


class HGNModel(WindowNetwork):
    """A user, the gated latest items and each of these items have a say in what comes next.

    Args:
        num_users: rows of the train split.
        num_items: size of the catalogue; the index `num_items` is padding.
        dim: width of the embeddings.
        window: latest items.
    """

    def __init__(self, num_users: int, num_items: int, dim: int, window: int) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=num_items)
        self.users = nn.Embedding(num_users, dim)
        self.feature_gate, self.feature_gate_user = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        # The user says how much each place of the window counts.
        self.instance_gate, self.instance_gate_user = nn.Linear(dim, 1, False), nn.Linear(dim, window, False)
        # The last column is the bias of an item.
        self.answers = nn.Parameter(torch.zeros(num_items, dim + 1))
        with torch.no_grad():
            for weight in (self.items.weight, self.users.weight, self.answers):
                weight[:, :dim].normal_(std=1 / dim)
            self.items.weight[num_items] = 0
        for gate in (self.feature_gate, self.feature_gate_user, self.instance_gate, self.instance_gate_user):
            nn.init.xavier_uniform_(gate.weight)

    def forward(self, users: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """See `WindowNetwork.forward`; the last column is 1. Padding does not count among the items."""
        items, user = self.items(history), self.users(users)  # (batch, window, dim), (batch, dim)
        feature = torch.sigmoid(self.feature_gate(items) + self.feature_gate_user(user)[:, None])
        gated = items * feature
        instance = torch.sigmoid(self.instance_gate(gated)[..., 0] + self.instance_gate_user(user))
        instance = instance * (history < len(self.answers))  # (batch, window)
        total = instance.sum(1, keepdim=True).clamp(min=torch.finfo(instance.dtype).tiny)
        pooled = torch.einsum("bl,bld->bd", instance / total, gated)
        # The three say: u q_j + s q_j + sum_i e_i q_j for the answer j.
        said = user + pooled + items.sum(1)
        return torch.cat([said, torch.ones_like(said[:, :1])], dim=1)

    @property
    def catalogue(self) -> torch.Tensor:
        """Embeddings of the answers and their biases: `(items, dim + 1)`."""
        return self.answers


class HGN(WindowBaseline):
    """HGN as a comparison system. Users and windows of the test: see [`WindowBaseline`].

    Args:
        seed: of weights, batches and negatives.
        dim: width of the embeddings.
        window: latest items, the paper's L.
        ahead: next items of a window, the paper's T; each epoch learns one of them.
        loss: kind of [`NextItemLoss`]; that of the paper is "bpr" with one negative.
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
        loss: str = "sampled_softmax",
        negatives: int = 0,
        learning_rate: float = 1e-3,
        l2: float = 1e-6,
        batch_size: int = 1024,
        epochs: int = 50,
        patience: int = 5,
    ) -> None:
        super().__init__(seed, window, ahead, learning_rate, l2, batch_size, epochs, patience)
        self.dim, self.loss = dim, NextItemLoss(loss, negatives)

    def make_network(self, train_sequences: Sequence[np.ndarray], num_items: int) -> HGNModel:
        """See `WindowBaseline.make_network`."""
        self.loss.count(train_sequences, num_items)
        return HGNModel(len(train_sequences), num_items, self.dim, self.window)

    def batch_loss(self, users: torch.Tensor, history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `WindowBaseline.batch_loss`."""
        return self.loss(self.network(users, history), targets, self.network.catalogue)
