"""LightGCN as a comparison system, through torch_geometric."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch

from align3gr.baselines.vectors import train_until_flat
from align3gr.encoders.collaborative import binary_matrix
from align3gr.encoders.histories import Histories
from align3gr.errors import InputError


class LightGCN:
    """LightGCN (He et al. 2020), trained with BPR on one uniform negative a pair.

    Item vectors are the final embeddings. A user's vector is the final embedding that the graph would give the user if
    the edges were those of the history: for the train items that is the trained one, and an item between the train
    split and the target counts without another training. No user depends on the histories of others.

    Args:
        seed: of weights, batches and negatives.
        dim: width of the vectors.
        layers: convolutions.
        learning_rate: of Adam.
        l2: weight of the squared norm of a batch's embeddings.
        batch_size: pairs in a batch; each batch runs over the whole graph.
        epochs: most epochs.
        patience: see [`train_until_flat`].

    Attributes:
        curve: validation after each epoch.

    Raises:
        InputError: torch_geometric is not installed.
    """

    def __init__(
        self,
        seed: int = 0,
        dim: int = 64,
        layers: int = 2,
        learning_rate: float = 2e-2,
        l2: float = 1e-4,
        batch_size: int = 16384,
        epochs: int = 100,
        patience: int = 10,
    ) -> None:
        try:
            from torch_geometric.nn import LightGCN as Network
        except ImportError as error:
            raise InputError("LightGCN needs torch_geometric; pip install torch-geometric") from error
        self._network: Any = Network
        self.seed, self.dim, self.layers, self.l2 = seed, dim, layers, l2
        self.learning_rate, self.batch_size, self.epochs, self.patience = learning_rate, batch_size, epochs, patience
        self.curve: list[float] = []

    def fit(
        self, train_sequences: Sequence[np.ndarray], num_items: int, validate: Callable[[], float] | None = None
    ) -> Self:
        """See `VectorBaseline.fit`."""
        torch.manual_seed(self.seed)
        rng = np.random.default_rng(self.seed)
        histories = Histories(train_sequences, num_items)
        taken = binary_matrix(train_sequences, num_items)
        users, pairs = len(train_sequences), np.stack([histories.user_of, histories.items])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        graph = adjacency(taken).to(device)
        # The adjacency is normalised once, not in each convolution.
        model = self.model = self._network(users + num_items, self.dim, self.layers, normalize=False).to(device)
        torch.nn.init.normal_(model.embedding.weight, std=0.1)  # as in the authors' code
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        self._degrees = np.asarray(taken.sum(0), dtype=np.float32).ravel()

        def run_epoch() -> float:
            losses = []
            for batch in np.array_split(rng.permutation(pairs.shape[1]), -(-pairs.shape[1] // self.batch_size)):
                owner, true = pairs[:, batch]
                false = histories.negatives(owner, 1, rng)[:, 0]
                nodes = [torch.from_numpy(rows).to(device) for rows in (owner, true + users, false + users)]
                final = model.get_embedding(graph)
                positive, negative = ((final[nodes[0]] * final[side]).sum(-1) for side in nodes[1:])
                loss = model.recommendation_loss(positive, negative, torch.cat(nodes), lambda_reg=self.l2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            self._propagate(graph, users)
            return float(np.mean(losses))

        self.curve = train_until_flat(run_epoch, validate, model, self.epochs, self.patience)
        self._propagate(graph, users)
        return self

    def item_vectors(self) -> np.ndarray:
        """`(items, dim)` float32, zero for items without train interactions."""
        return self._layers.mean(0) * (self._degrees > 0)[:, None]

    def user_vectors(self, histories: Sequence[np.ndarray], user_rows: np.ndarray) -> np.ndarray:
        """See `VectorBaseline.user_vectors`."""
        taken = binary_matrix(histories, len(self._degrees))
        lengths = np.maximum(np.asarray(taken.sum(1)), 1)
        # What an item sends in each of the convolutions: its embedding of the layer before.
        sent = self._layers[:-1].sum(0) / np.sqrt(np.maximum(self._degrees, 1))[:, None]
        received = taken @ (sent * (self._degrees > 0)[:, None]) / np.sqrt(lengths)
        return ((self._users[user_rows] + received) / (self.layers + 1)).astype(np.float32)

    @torch.no_grad()
    def _propagate(self, graph: torch.Tensor, users: int) -> None:
        """Keeps the users' own embeddings and those of the items after each layer: `(layers + 1, items, dim)`."""
        own = self.model.embedding.weight
        layers = [own]
        for convolution in self.model.convs:
            layers.append(convolution(layers[-1], graph))
        self._users = own[:users].cpu().numpy().copy()
        self._layers = torch.stack([layer[users:] for layer in layers]).cpu().numpy()


def adjacency(taken: sp.csr_matrix) -> torch.Tensor:
    """The symmetrically normalised graph of users, then items: 1 / sqrt(degree * degree) at each edge.

    Shape: `(users, items)` zeros and ones -> `(users + items, users + items)`, sparse CSR.
    """
    graph = sp.bmat([[None, taken], [taken.T, None]], format="csr")
    scale = sp.diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(1)).ravel(), 1)))
    graph = (scale @ graph @ scale).tocsr()
    starts, columns, values = (torch.from_numpy(part) for part in (graph.indptr, graph.indices, graph.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts.long(), columns.long(), values.float(), size=graph.shape, check_invariants=False
        )
