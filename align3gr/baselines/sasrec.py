"""SASRec: a causal transformer over item histories (Kang and McAuley 2018).

Histories stand at the left of a padded row, so the causal mask alone keeps padding away from what comes before it. The
blocks are those of `torch.nn.TransformerEncoderLayer`, normalised before each part.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from align3gr.baselines.vectors import train_until_flat
from align3gr.encoders.collaborative import interaction_counts
from align3gr.errors import InputError

LOSSES = ("softmax", "sampled_softmax", "bce")
# Batches that are sorted by length together, so that a batch holds little padding and still is random.
_SORTED_TOGETHER = 50
# Histories encoded at once when lists are made.
_ENCODED_AT_ONCE = 512


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
        loss: "softmax" is cross-entropy over all items; "sampled_softmax" estimates it with `negatives` items a batch,
            half of them uniform, half by their number of train interactions, where that is less than half of the
            catalogue; "bce" is that of the paper: yes or no for the next item and for `negatives` others a position.
        negatives: for the last two; 0 takes 1,024 for "sampled_softmax" and, as the paper, 1 for "bce".
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
        dropout: float = 0.3,
        max_history: int = 50,
        loss: str = "sampled_softmax",
        negatives: int = 0,
        learning_rate: float = 3e-3,
        batch_size: int = 256,
        epochs: int = 50,
        patience: int = 2,
    ) -> None:
        if loss not in LOSSES:
            raise InputError(f"loss: got '{loss}', choose from {', '.join(LOSSES)}")
        if dim % heads:
            raise InputError(f"dim: got {dim}, expected a multiple of heads={heads}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout: got {dropout}, expected at least 0 and below 1")
        self.seed, self.dim, self.layers, self.heads, self.dropout = seed, dim, layers, heads, dropout
        self.max_history, self.loss = max_history, loss
        self.negatives = negatives or (1 if loss == "bce" else 1024)
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
        counts = torch.from_numpy(interaction_counts(train_sequences, num_items)).to(device)
        self._chance = 0.5 / num_items + 0.5 * counts / counts.sum()
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.learning_rate, betas=(0.9, 0.98))

        def run_epoch() -> float:
            losses = []
            for rows in batches([len(piece) for piece in pieces], self.batch_size, rng):
                table = torch.from_numpy(pad([pieces[row] for row in rows], num_items)).to(device)
                loss = self._loss(table[:, :-1], table[:, 1:])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            return float(np.mean(losses))

        self.curve = train_until_flat(run_epoch, validate, self.model, self.epochs, self.patience)
        return self

    def item_vectors(self) -> np.ndarray:
        """`(items, dim)` float32."""
        return self.model.catalogue.detach().cpu().numpy()

    @torch.no_grad()
    def user_vectors(self, histories: Sequence[np.ndarray], user_rows: np.ndarray) -> np.ndarray:
        """See `VectorBaseline.user_vectors`; the history says all about the user. Nobody's history is the zero
        vector."""
        num_items = len(self.model.catalogue)
        device = self.model.items.weight.device
        recent = [np.asarray(history)[-self.max_history :] for history in histories]
        lengths = np.array([len(history) for history in recent], dtype=np.int64)
        vectors = np.zeros((len(recent), self.dim), dtype=np.float32)
        known = np.flatnonzero(lengths)
        order = known[np.argsort(lengths[known], kind="stable")]
        for start in range(0, len(order), _ENCODED_AT_ONCE):
            rows = order[start : start + _ENCODED_AT_ONCE]
            hidden = self.model(torch.from_numpy(pad([recent[row] for row in rows], num_items)).to(device))
            vectors[rows] = hidden[torch.arange(len(rows)), lengths[rows] - 1].cpu().numpy()
        return vectors

    def _loss(self, history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss over positions with a target. Shape: `(batch, length)` item indices each, padded."""
        catalogue = self.model.catalogue
        real = targets < len(catalogue)
        hidden, targets = self.model(history)[real], targets[real]  # (positions, dim), (positions,)
        # So many draws would save nothing over the exact sum.
        exact = self.loss == "sampled_softmax" and 2 * self.negatives >= len(catalogue)
        if self.loss == "softmax" or exact:
            return F.cross_entropy(hidden @ catalogue.T, targets)
        if self.loss == "sampled_softmax":
            drawn = torch.multinomial(self._chance, self.negatives, replacement=True)
            return sampled_softmax(hidden, targets, catalogue, drawn, self._chance[drawn])
        true = (hidden * catalogue[targets]).sum(-1, keepdim=True)
        drawn = torch.randint(len(catalogue), (len(targets), self.negatives), device=targets.device)
        false = torch.einsum("pd,pnd->pn", hidden, catalogue[drawn])
        # A negative that happens to be the next item is left out.
        taken = (drawn == targets[:, None]).to(false.dtype)
        return (F.softplus(-true).sum() + (F.softplus(false) * (1 - taken)).sum()) / len(targets)


def sampled_softmax(
    hidden: torch.Tensor, targets: torch.Tensor, catalogue: torch.Tensor, drawn: torch.Tensor, chance: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy over all items, its sum over the others estimated from items drawn for the whole batch.

    A drawn item counts for as many as its chance says (Bengio and Senecal 2008), so that the estimated sum is right in
    the mean.

    Shape: `(positions, dim)`, `(positions,)`, `(items, dim)`, `(drawn,)`, `(drawn,)` chance of each -> a scalar.
    """
    others = hidden @ catalogue[drawn].T - (chance * len(drawn)).log()
    others = others.masked_fill(drawn == targets[:, None], -torch.inf)
    true = (hidden * catalogue[targets]).sum(-1, keepdim=True)
    return (torch.logsumexp(torch.cat([true, others], dim=1), dim=1) - true[:, 0]).mean()


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
