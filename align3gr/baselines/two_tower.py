"""The two-tower retriever: one network for user and history, one for items (Yi et al. 2019, Covington et al. 2016)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from align3gr.baselines.window_training import WindowBaseline, WindowNetwork
from align3gr.encoders.collaborative import PPMIFactorization, interaction_counts
from align3gr.encoders.semantic import TfidfSVDEncoder
from align3gr.errors import InputError

FEATURES = ("text+collaborative", "text", "collaborative", "none")


class TwoTowerModel(WindowNetwork):
    """Two towers that end in vectors of length 1; both know the items by the same embeddings.

    The query tower reads the latest item, the mean of the window and the user, the item tower the item's embedding and
    features.

    Args:
        num_users: rows of the train split.
        features: `(items, width)` float32, frozen; the width may be 0.
        dim: width of the embeddings and of the towers' ends; their middle is twice as wide.
        temperature: what the cosine is divided by.
    """

    def __init__(self, num_users: int, features: np.ndarray, dim: int, temperature: float) -> None:
        super().__init__()
        self.num_items, self.temperature = len(features), temperature
        self.items = nn.Embedding(len(features) + 1, dim, padding_idx=len(features))
        self.users = nn.Embedding(num_users, dim)
        self.features: torch.Tensor
        self.register_buffer("features", torch.from_numpy(features), persistent=False)
        width = dim + features.shape[1]
        self.query_tower = nn.Sequential(nn.Linear(3 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.item_tower = nn.Sequential(nn.Linear(width, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        with torch.no_grad():
            for weight in (self.items.weight, self.users.weight):
                weight.normal_(std=dim**-0.5)
            self.items.weight[self.num_items] = 0

    def forward(self, users: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """See `WindowNetwork.forward`; divided by the temperature."""
        items = self.items(history)  # (batch, window, dim), padding is zero
        mean = items.sum(1) / (history < self.num_items).sum(1, keepdim=True).clamp(min=1)
        query = self.query_tower(torch.cat([items[:, -1], mean, self.users(users)], dim=1))
        return F.normalize(query, dim=1) / self.temperature

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        """Shape: `(items,)` indices -> `(items, dim)` of length 1."""
        return F.normalize(self.item_tower(torch.cat([self.items(items), self.features[items]], dim=1)), dim=1)

    @property
    def catalogue(self) -> torch.Tensor:
        """What the item tower says of all items: `(items, dim)`."""
        return self.encode_items(torch.arange(self.num_items, device=self.features.device))


class TwoTower(WindowBaseline):
    """The two-tower retriever as a comparison system. Users and windows of the test: see [`WindowBaseline`].

    The other answers of a batch are the negatives of each, with the log-Q correction (Yi et al. 2019): an item is
    there as often as it was taken, so the logarithm of its share of the train split is subtracted from its logit.

    Args:
        item_texts: of each item of the catalogue; needed by features with "text".
        seed: of weights, batches and features.
        dim: width of the embeddings and of the vectors.
        window: latest items.
        features: what the item tower knows of an item beside its id, each vector of length 1: "text" is TF-IDF, 128
            numbers after an SVD, "collaborative" 64 numbers that factorise which items stand in the same train
            sequences (PPMI), "text+collaborative" both, "none" nothing.
        temperature: what the cosine is divided by.
        learning_rate: of Adam.
        l2: weight decay of Adam.
        batch_size: windows in a batch, hence negatives.
        epochs: most epochs.
        patience: see [`train_until_flat`].

    Raises:
        InputError: an option is out of range, or texts are missing.
    """

    network: TwoTowerModel

    def __init__(
        self,
        item_texts: Sequence[str] | None = None,
        seed: int = 0,
        dim: int = 64,
        window: int = 20,
        features: str = "text+collaborative",
        temperature: float = 0.1,
        learning_rate: float = 3e-3,
        l2: float = 0.0,
        batch_size: int = 1024,
        epochs: int = 50,
        patience: int = 3,
    ) -> None:
        super().__init__(seed, window, 1, learning_rate, l2, batch_size, epochs, patience)
        if features not in FEATURES:
            raise InputError(f"features: got '{features}', choose from {', '.join(FEATURES)}")
        if "text" in features and item_texts is None:
            raise InputError(f"item_texts: got None, but features '{features}' need the text of each item")
        if temperature <= 0:
            raise InputError(f"temperature: got {temperature}, expected more than 0")
        self.item_texts, self.features = item_texts, features
        self.dim, self.temperature = dim, temperature

    def make_network(self, train_sequences: Sequence[np.ndarray], num_items: int) -> TwoTowerModel:
        """See `WindowBaseline.make_network`; it makes the features too."""
        # What stands first in a sequence is no answer.
        counts = interaction_counts([sequence[1:] for sequence in train_sequences], num_items)
        self._log_share = torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum()))
        features = self._features(train_sequences, num_items)
        return TwoTowerModel(len(train_sequences), features, self.dim, self.temperature)

    def batch_loss(self, users: torch.Tensor, history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `WindowBaseline.batch_loss`."""
        scores = self.network(users, history) @ self.network.encode_items(targets).T
        return in_batch_softmax(scores, targets, self._log_share.to(scores.device)[targets])

    def _features(self, train_sequences: Sequence[np.ndarray], num_items: int) -> np.ndarray:
        """`(items, width)` float32."""
        found = [np.zeros((num_items, 0), dtype=np.float32)]
        if "text" in self.features and self.item_texts is not None:
            texts = TfidfSVDEncoder(seed=self.seed)
            texts.fit(self.item_texts)
            found.append(texts.encode(self.item_texts))
        if "collaborative" in self.features:
            together = PPMIFactorization(seed=self.seed)
            together.fit(train_sequences, num_items)
            found.append(together.item_vectors)
        return np.concatenate([_of_length_one(vectors) for vectors in found], axis=1)


def _of_length_one(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; what is zero but for rounding becomes zero. Shape: `(items, width)` twice."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = lengths > 1e-5 * lengths.max(initial=0)
    return np.where(known, vectors / np.where(known, lengths, 1), 0).astype(np.float32)


def in_batch_softmax(scores: torch.Tensor, targets: torch.Tensor, log_share: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the own answer among those of the batch, corrected by the share of each.

    The same item as the own answer in another row is no negative.

    Shape: `(batch, batch)` score of each row for each answer, `(batch,)` items, `(batch,)` -> a scalar.
    """
    corrected = scores - log_share
    same = (targets[:, None] == targets) & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    return F.cross_entropy(corrected.masked_fill(same, -torch.inf), torch.arange(len(targets), device=targets.device))
