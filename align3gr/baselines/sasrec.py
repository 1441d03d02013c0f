"""SASRec: a causal transformer over item histories (Kang and McAuley 2018).

Histories stand at the left of a padded row, so the causal mask alone keeps padding away from what comes before it. The
blocks are those of `torch.nn.TransformerEncoderLayer`, normalised before each part.
"""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import nn

from align3gr.baselines.next_item_loss import NextItemLoss
from align3gr.baselines.sequence_training import batches, cut, encode_histories, pad, take_steps
from align3gr.baselines.vectors import train_until_flat
from align3gr.errors import InputError


class SASRecModel(nn.Module):
    """Item histories -> a vector at each position that is to be near the next item's embedding.

    Args:
        num_items: size of the catalogue; the index `num_items` is padding.
        dim: width of the embeddings, a multiple of `heads`.
        layers: blocks.
        heads: of the attention.
        max_history: positions that are learnt.
        dropout: of embeddings and blocks.
    """

    def __init__(self, num_items: int, dim: int, layers: int, heads: int, max_history: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=num_items)
        self.positions = nn.Embedding(max_history, dim)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(dim, heads, dim, dropout, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        with torch.no_grad():
            self.items.weight[num_items] = 0

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Shape: `(batch, length)` item indices, padded at the right -> `(batch, length, dim)`."""
        length = history.shape[1]
        # Scaled as in the paper: embeddings start small beside the positions otherwise.
        embedded = self.items(history) * self.items.embedding_dim**0.5 + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=history.device)
        return self.blocks(self.dropout(embedded), mask=mask, is_causal=True)

    @property
    def catalogue(self) -> torch.Tensor:
        """The embeddings of all items, tied to those of the input: `(items, dim)`."""
        return self.items.weight[:-1]


class SASRec:
    """SASRec as a comparison system: the next item at every position of the train split.

    Args:
        seed: of weights, batches and negatives.
        dim: width of the embeddings.
        layers: blocks.
        heads: of the attention.
        dropout: of embeddings and blocks.
        max_history: latest items that are seen; longer train sequences are cut into pieces.
        loss: kind of [`NextItemLoss`]; that of the paper is "bce".
        negatives: see [`NextItemLoss`].
        learning_rate: of Adam.
        batch_size: sequences in a batch.
        epochs: most epochs.
        patience: see [`train_until_flat`].

    Attributes:
        curve: validation after each epoch.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        seed: int = 0,
        dim: int = 128,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.3,
        max_history: int = 50,
        loss: str = "sampled_softmax",
        negatives: int = 0,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        epochs: int = 50,
        patience: int = 2,
    ) -> None:
        if dim % heads:
            raise InputError(f"dim: got {dim}, expected a multiple of heads={heads}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout: got {dropout}, expected at least 0 and below 1")
        self.seed, self.dim, self.layers, self.heads, self.dropout = seed, dim, layers, heads, dropout
        self.max_history, self.loss = max_history, NextItemLoss(loss, negatives)
        self.learning_rate, self.batch_size, self.epochs, self.patience = learning_rate, batch_size, epochs, patience
        self.curve: list[float] = []

    def fit(
        self, train_sequences: Sequence[np.ndarray], num_items: int, validate: Callable[[], float] | None = None
    ) -> Self:
        """See `VectorBaseline.fit`."""
        torch.manual_seed(self.seed)
        rng = np.random.default_rng(self.seed)
        pieces = [piece for sequence in train_sequences for piece in cut(sequence, self.max_history)]
        if not pieces:
            raise InputError("train: no user has two interactions, which SASRec needs; choose other baselines")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = SASRecModel(num_items, self.dim, self.layers, self.heads, self.max_history, self.dropout)
        self.model.to(device)
        self.loss.count(train_sequences, num_items)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.learning_rate, betas=(0.9, 0.98))

        def run_epoch() -> float:
            rows = batches([len(piece) for piece in pieces], self.batch_size, rng)
            tables = (torch.from_numpy(pad([pieces[row] for row in some], num_items)).to(device) for some in rows)
            return take_steps(optimizer, (self._loss(table[:, :-1], table[:, 1:]) for table in tables))

        self.curve = train_until_flat(run_epoch, validate, self.model, self.epochs, self.patience)
        return self

    def item_vectors(self) -> np.ndarray:
        """`(items, dim)` float32."""
        return self.model.catalogue.detach().cpu().numpy()

    def user_vectors(self, histories: Sequence[np.ndarray], user_rows: np.ndarray) -> np.ndarray:
        """See `VectorBaseline.user_vectors`; the history says all about the user. Nobody's history is the zero
        vector."""
        num_items, device = len(self.model.catalogue), self.model.items.weight.device

        def encode(recent: list[np.ndarray]) -> torch.Tensor:
            hidden = self.model(torch.from_numpy(pad(recent, num_items)).to(device))
            return hidden[torch.arange(len(recent)), torch.tensor([len(history) - 1 for history in recent])]

        return encode_histories(histories, self.max_history, self.dim, encode)

    def _loss(self, history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss over positions with a target. Shape: `(batch, length)` item indices each, padded."""
        real = targets < len(self.model.catalogue)
        return self.loss(self.model(history)[real], targets[real], self.model.catalogue)
