"""LightGCN over the graph of users and items, through torch_geometric."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from align3gr.encoders.collaborative import ITEM_VECTORS, binary_matrix, interaction_counts, save_arrays
from align3gr.encoders.histories import VALIDATION_NEGATIVES, Histories, auc_of_true_items, last_items
from align3gr.encoders.semantic import read_settings
from align3gr.errors import InputError
from align3gr.progress import ProgressBar

logger = logging.getLogger(__name__)


class LightGCNEncoder:
    """LightGCN (He et al. 2020), trained with BPR until its AUC on each user's last train item is flat.

    Item vectors are the final embeddings. A user's vector is one more light graph convolution: the sum of the final
    vectors of the distinct items of the history, each divided by `sqrt(history length * users of the item)`; that is
    the same for users of the train split and for later ones. An item without interactions and a user without history
    get the zero vector.

    Args:
        dim: width of the vectors.
        seed: of weights, batches and negatives.
        layers: convolutions.
        learning_rate: of Adam.
        batch_size: pairs in a batch; each batch runs over the whole graph.
        epochs: most epochs.
        patience: training ends when the AUC has not grown for this many epochs; the best one is kept.

    Raises:
        InputError: torch_geometric is not installed; in `fit`, training diverged.
    """

    def __init__(
        self,
        dim: int = 64,
        seed: int = 0,
        layers: int = 2,
        learning_rate: float = 5e-3,
        batch_size: int = 8192,
        epochs: int = 30,
        patience: int = 3,
    ) -> None:
        try:
            from torch_geometric.nn import LightGCN
        except ImportError as error:
            raise InputError("collaborative: 'lightgcn' needs torch_geometric; pip install torch-geometric") from error
        self._network = LightGCN
        self.dim, self.seed, self.layers = dim, seed, layers
        self.learning_rate, self.batch_size, self.epochs, self.patience = learning_rate, batch_size, epochs, patience
        self.auc: list[float] = []
        self.item_vectors = np.zeros((0, dim), dtype=np.float32)
        self.popularity = np.zeros(0, dtype=np.float32)

    def fit(self, sequences: Sequence[np.ndarray], num_items: int) -> None:
        torch.manual_seed(self.seed)
        rng = np.random.default_rng(self.seed)
        histories = Histories(sequences, num_items)
        last = last_items(histories, rng, "lightgcn")
        validation = torch.from_numpy(
            np.concatenate(
                [
                    histories.items[last][:, None],
                    histories.negatives(histories.user_of[last], VALIDATION_NEGATIVES, rng),
                ],
                axis=1,
            )
        )
        held_out = histories.starts[1:][histories.lengths >= 3] - 1
        pairs = np.delete(np.stack([histories.user_of, histories.items]), held_out, axis=1)
        users = len(sequences)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = self._network(users + num_items, self.dim, self.layers).to(device)
        edges = torch.from_numpy(np.unique(pairs + np.array([[0], [users]]), axis=1))
        graph = torch.cat([edges, edges.flip(0)], dim=1).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        best, self.auc = torch.zeros(num_items, self.dim), []
        bar = ProgressBar(self.epochs, "lightgcn, at most", "epoch")
        for epoch in range(self.epochs):
            for batch in np.array_split(rng.permutation(pairs.shape[1]), -(-pairs.shape[1] // self.batch_size)):
                self._step(model, optimizer, graph, pairs[:, batch], histories, rng)
            with torch.no_grad():
                final = model.get_embedding(graph).cpu()
            if not final.isfinite().all():
                raise InputError(
                    f"learning_rate: lightgcn diverged in epoch {epoch + 1} at a rate of {self.learning_rate:.2g}; "
                    "lower it"
                )
            owner = torch.from_numpy(histories.user_of[last])
            logits = (final[owner][:, None] * final[users + validation]).sum(-1)
            self.auc.append(auc_of_true_items(logits.numpy()))
            bar.update()
            logger.info("lightgcn: epoch %d, validation AUC %.4f", epoch + 1, self.auc[-1])
            if self.auc[-1] == max(self.auc):
                best = final[users:]
            elif epoch - int(np.argmax(self.auc)) >= self.patience:
                break
        bar.close()
        self.popularity = np.asarray(binary_matrix(sequences, num_items).sum(0), dtype=np.float32).ravel()
        self.item_vectors = best.numpy() * (interaction_counts(sequences, num_items) > 0)[:, None]

    def _step(self, model: Any, optimizer: Any, graph: torch.Tensor, pairs: np.ndarray, histories, rng) -> None:
        """One step of BPR. Shape: `pairs` `(2, batch)`, users and items."""
        users = len(histories.lengths)
        negatives = histories.negatives(pairs[0], 1, rng)[:, 0]
        owner = torch.from_numpy(pairs[0]).to(graph.device)
        true, false = (torch.from_numpy(items).to(graph.device) + users for items in (pairs[1], negatives))
        scores = model(graph, torch.stack([torch.cat([owner, owner]), torch.cat([true, false])]))
        positive, negative = scores.chunk(2)
        loss = model.recommendation_loss(positive, negative, torch.cat([owner, true, false]).unique())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def encode_users(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        matrix = binary_matrix(histories, len(self.item_vectors))
        lengths = np.maximum(np.asarray(matrix.sum(1)), 1)
        scaled = self.item_vectors / np.sqrt(np.maximum(self.popularity, 1))[:, None]
        return (matrix @ scaled / np.sqrt(lengths)).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        names = ("dim", "seed", "layers", "learning_rate", "batch_size", "epochs", "patience")
        settings = {"type": "lightgcn", **{name: getattr(self, name) for name in names}}
        save_arrays(folder, settings, {"items": self.item_vectors, "popularity": self.popularity})

    @classmethod
    def load(cls, folder: str | Path) -> "LightGCNEncoder":
        """What `save` wrote into the folder."""
        settings = read_settings(folder)
        del settings["type"]
        encoder = cls(**settings)
        arrays = load_file(Path(folder, ITEM_VECTORS))
        encoder.item_vectors, encoder.popularity = arrays["items"], arrays["popularity"]
        return encoder
