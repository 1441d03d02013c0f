"""BERT4Rec: a transformer that reads a history in both directions and fills in masked items (Sun et al. 2019)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from align3gr.baselines.next_item_loss import NextItemLoss
from align3gr.baselines.sequence_training import batches, cut, encode_histories, pad, take_steps
from align3gr.baselines.vectors import train_until_flat
from align3gr.errors import InputError


class BERT4RecModel(nn.Module):
    """Items, some of them masked -> a vector at each position that is to be near the item that stands there.

    Places are counted from the end of a row, so that the mask that asks for the next item always stands at the same.
    The blocks are those of `torch.nn.TransformerEncoderLayer`, normalised before each part.

    Args:
        num_items: size of the catalogue; the index `num_items` is padding, the one after it the mask.
        dim: width of the embeddings, a multiple of `heads`.
        layers: blocks.
        heads: of the attention.
        length: places that are learnt.
        dropout: of embeddings and blocks.
    """

    def __init__(self, num_items: int, dim: int, layers: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.num_items = num_items
        self.items = nn.Embedding(num_items + 2, dim, padding_idx=num_items)
        self.places = nn.Embedding(length, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.project, self.project_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(num_items))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
        with torch.no_grad():
            self.items.weight[num_items] = 0

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        """Shape: `(batch, length)` item indices, padded at the right -> `(batch, length, dim + 1)`, the last 1."""
        padding = table == self.num_items
        lengths = (~padding).sum(1, keepdim=True)
        places = (lengths - 1 - torch.arange(table.shape[1], device=table.device)).clamp(min=0)
        embedded = self.dropout(self.norm(self.items(table) + self.places(places)))
        hidden = self.blocks(embedded, src_key_padding_mask=padding)
        hidden = self.project_norm(F.gelu(self.project(hidden)))
        return torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=-1)

    @property
    def catalogue(self) -> torch.Tensor:
        """The embeddings of all items, tied to those of the input, and their biases: `(items, dim + 1)`."""
        return torch.cat([self.items.weight[: self.num_items], self.bias[:, None]], dim=1)


class BERT4Rec:
    """BERT4Rec as a comparison system: a mask after the history asks for the next item.

    Args:
        seed: of weights, batches, masks and negatives.
        dim: width of the embeddings.
        layers: blocks.
        heads: of the attention.
        dropout: of embeddings and blocks.
        max_history: items and mask that are seen; longer train sequences are cut into pieces.
        masked: chance of an item to be masked.
        only_last: chance of a train sequence to have its last item masked and no other, which is what the test asks.
        loss: kind of [`NextItemLoss`]; that of the paper is "softmax".
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
        dim: int = 64,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        max_history: int = 50,
        masked: float = 0.4,
        only_last: float = 0.1,
        loss: str = "sampled_softmax",
        negatives: int = 0,
        learning_rate: float = 3e-3,
        batch_size: int = 64,
        epochs: int = 50,
        patience: int = 5,
    ) -> None:
        if dim % heads:
            raise InputError(f"dim: got {dim}, expected a multiple of heads={heads}")
        if max_history < 2:
            raise InputError(f"max_history: got {max_history}, expected at least 2, an item and the mask")
        for name, value in (("dropout", dropout), ("masked", masked), ("only_last", only_last)):
            if not 0 <= value < 1:
                raise InputError(f"{name}: got {value}, expected at least 0 and below 1")
        self.seed, self.dim, self.layers, self.heads, self.dropout = seed, dim, layers, heads, dropout
        self.max_history, self.masked, self.only_last = max_history, masked, only_last
        self.loss = NextItemLoss(loss, negatives)
        self.learning_rate, self.batch_size, self.epochs, self.patience = learning_rate, batch_size, epochs, patience
        self.curve: list[float] = []

    def fit(
        self, train_sequences: Sequence[np.ndarray], num_items: int, validate: Callable[[], float] | None = None
    ) -> Self:
        """See `VectorBaseline.fit`."""
        torch.manual_seed(self.seed)
        rng = np.random.default_rng(self.seed)
        pieces = [piece for sequence in train_sequences for piece in cut(sequence, self.max_history - 1)]
        if not pieces:
            raise InputError("train: no user has two interactions, which BERT4Rec needs; choose other baselines")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = BERT4RecModel(num_items, self.dim, self.layers, self.heads, self.max_history, self.dropout)
        self.model.to(device)
        self.loss.count(train_sequences, num_items)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)

        def losses() -> Iterator[torch.Tensor]:
            for rows in batches([len(piece) for piece in pieces], self.batch_size, rng):
                table = pad([pieces[row] for row in rows], num_items)
                hidden = hide(table, num_items, self.masked, self.only_last, rng)
                yield self._loss(torch.from_numpy(table).to(device), torch.from_numpy(hidden).to(device))

        self.curve = train_until_flat(
            lambda: take_steps(optimizer, losses()), validate, self.model, self.epochs, self.patience
        )
        return self

    @torch.no_grad()
    def item_vectors(self) -> np.ndarray:
        """`(items, dim + 1)` float32."""
        return self.model.catalogue.cpu().numpy()

    def user_vectors(self, histories: Sequence[np.ndarray], user_rows: np.ndarray) -> np.ndarray:
        """See `VectorBaseline.user_vectors`; the history says all about the user. Nobody's history is the zero
        vector."""
        num_items, device = self.model.num_items, self.model.bias.device

        def encode(recent: list[np.ndarray]) -> torch.Tensor:
            asked = pad([np.append(history, num_items + 1) for history in recent], num_items)
            hidden = self.model(torch.from_numpy(asked).to(device))
            return hidden[torch.arange(len(recent)), torch.tensor([len(history) for history in recent])]

        return encode_histories(histories, self.max_history - 1, self.dim + 1, encode)

    def _loss(self, table: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Mean over the masked places. Shape: `(batch, length)` items, and which of them are masked."""
        shown = table.masked_fill(hidden, self.model.num_items + 1)
        return self.loss(self.model(shown)[hidden], table[hidden], self.model.catalogue)


def hide(table: np.ndarray, padding: int, masked: float, only_last: float, rng: np.random.Generator) -> np.ndarray:
    """Draws the items of each row that are masked: never padding, at least one a row, never all of them.

    Args:
        table: `(rows, length)` item indices, at least two a row, padded at the right.
        padding: its index.
        masked: chance of an item.
        only_last: chance of a row to have its last item masked and no other.
        rng: what draws.

    Returns:
        Which places are masked: `(rows, length)` bool.
    """
    real = table != padding
    hidden = (rng.random(table.shape) < masked) & real
    alone = rng.random(len(table)) < only_last
    # Where the draw hides nothing or everything, the last item is masked too.
    alone |= ~hidden.any(1) | (hidden == real).all(1)
    hidden[alone] = False
    hidden[alone, real[alone].sum(1) - 1] = True
    return hidden
