"""Collaborative vectors from the train split alone: who took what together with what."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save

from align3gr.encoders.semantic import SETTINGS, read_settings
from align3gr.errors import InputError

ITEM_VECTORS = "items.safetensors"


class CollaborativeEncoder(Protocol):
    """Anything that learns vectors from sequences of items and then stays as it is.

    An item without interactions and a user without history get the zero vector. Items are rows of the catalogue that
    `fit` saw. A user's vector depends on the history alone, so users who come later are encoded like all others.
    """

    @property
    def item_vectors(self) -> np.ndarray:
        """`(items, dim)` float32."""
        ...

    def fit(self, sequences: Sequence[np.ndarray], num_items: int) -> None:
        """Learns from the train split: the item indices of each user, oldest first."""
        ...

    def encode_users(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Histories (item indices, oldest first) -> `(users, dim)` float32."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes all that `load_collaborative_encoder` needs."""
        ...


def interaction_matrix(sequences: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """Counts of (user, item). Shape: one array of item indices a user -> `(users, items)` float32.

    Args:
        sequences: item indices of each user.
        num_items: size of the catalogue.
    """
    lengths = [len(sequence) for sequence in sequences]
    rows = np.repeat(np.arange(len(sequences)), lengths)
    columns = (
        np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences]) if sequences else np.zeros(0, np.int64)
    )
    ones = np.ones(len(columns), dtype=np.float32)
    return sp.csr_matrix((ones, (rows, columns)), shape=(len(sequences), num_items))


def binary_matrix(sequences: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """1 where a user took an item, once or often. Shape: `(users, items)` float32."""
    matrix = interaction_matrix(sequences, num_items)
    matrix.data[:] = 1
    return matrix


def interaction_counts(sequences: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """How often each item was taken. Shape: `(items,)` float32."""
    return np.asarray(interaction_matrix(sequences, num_items).sum(0), dtype=np.float32).ravel()


class PPMIFactorization:
    """Matrix factorisation of the positive pointwise mutual information of co-consumption (Levy and Goldberg 2014).

    Item vectors are the left singular vectors of the item-by-item PPMI matrix, scaled by the square root of the
    singular values. A user's vector is the mean of the vectors of the distinct items of the history. An item without
    interactions and a user without history get the zero vector.

    Args:
        dim: width of the vectors.
        seed: of the truncated SVD.
    """

    def __init__(self, dim: int = 64, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed
        self.item_vectors = np.zeros((0, dim), dtype=np.float32)

    def fit(self, sequences: Sequence[np.ndarray], num_items: int) -> None:
        from sklearn.utils.extmath import randomized_svd

        ppmi = positive_pmi(binary_matrix(sequences, num_items))
        rank = min(self.dim, num_items - 1)
        left, singular, _ = randomized_svd(ppmi, rank, random_state=self.seed)
        self.item_vectors = np.zeros((num_items, self.dim), dtype=np.float32)
        self.item_vectors[:, :rank] = left * np.sqrt(singular)

    def encode_users(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        matrix = binary_matrix(histories, len(self.item_vectors))
        lengths = np.maximum(np.asarray(matrix.sum(1)), 1)
        return (matrix @ self.item_vectors / lengths).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        save_arrays(folder, {"type": "ppmi", "dim": self.dim, "seed": self.seed}, {"items": self.item_vectors})

    @classmethod
    def load(cls, folder: str | Path) -> "PPMIFactorization":
        """What `save` wrote into the folder."""
        settings = read_settings(folder)
        encoder = cls(settings["dim"], settings["seed"])
        encoder.item_vectors = load_file(Path(folder, ITEM_VECTORS))["items"]
        return encoder


def positive_pmi(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Positive PMI of two items standing in the same user's history. Shape: `(users, items)` -> `(items, items)`."""
    together = (matrix.T @ matrix).tocoo()
    off = together.row != together.col
    row, column, count = together.row[off], together.col[off], together.data[off]
    margin = np.bincount(row, weights=count, minlength=matrix.shape[1])
    pmi = np.log(count * margin.sum() / (margin[row] * margin[column]))
    positive = pmi > 0
    return sp.csr_matrix((pmi[positive].astype(np.float32), (row[positive], column[positive])), shape=together.shape)


def save_arrays(folder: str | Path, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """A saved encoder: its settings as JSON, its arrays as safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    # Not `save_file`, whose files only their owner can read.
    (folder / ITEM_VECTORS).write_bytes(content)


def load_collaborative_encoder(folder: str | Path) -> CollaborativeEncoder:
    """The encoder that `save` wrote, for users who came later.

    Args:
        folder: such as `runs/yelp/embeddings/collaborative_encoder`.

    Raises:
        InputError: the folder holds no collaborative encoder, or its library is not installed.
    """
    kind = read_settings(folder)["type"]
    if kind == "ppmi":
        return PPMIFactorization.load(folder)
    if kind == "din":
        from align3gr.encoders.din_trainer import DINEncoder

        return DINEncoder.load(folder)
    if kind == "als":
        from align3gr.encoders.als import ALSEncoder

        return ALSEncoder.load(folder)
    if kind == "lightgcn":
        from align3gr.encoders.lightgcn import LightGCNEncoder

        return LightGCNEncoder.load(folder)
    raise InputError(f"{folder}: holds no collaborative encoder but '{kind}'")
