"""Collaborative vectors from the train split alone: who took what together with what."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp


def interaction_matrix(sequences: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """Counts of (user, item). Shape: one array of item indices a user -> `(users, items)` float32."""
    lengths = [len(sequence) for sequence in sequences]
    rows = np.repeat(np.arange(len(sequences)), lengths)
    columns = (
        np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences]) if sequences else np.zeros(0, np.int64)
    )
    ones = np.ones(len(columns), dtype=np.float32)
    return sp.csr_matrix((ones, (rows, columns)), shape=(len(sequences), num_items))


class PPMIFactorization:
    """Matrix factorisation of the positive pointwise mutual information of co-consumption (Levy and Goldberg 2014).

    Item vectors are the left singular vectors of the item-by-item PPMI matrix, scaled by the square root of the
    singular values. A user's vector is the mean of the vectors of the user's training items. An item without
    interactions and a user without history get the zero vector.
    """

    def __init__(self, dim: int = 64, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed

    def fit(self, sequences: Sequence[np.ndarray], num_items: int) -> tuple[np.ndarray, np.ndarray]:
        """Item vectors `(items, dim)` and user vectors `(users, dim)`, both float32."""
        from sklearn.utils.extmath import randomized_svd

        matrix = interaction_matrix(sequences, num_items)
        matrix.data[:] = 1
        ppmi = positive_pmi(matrix)
        rank = min(self.dim, num_items - 1)
        left, singular, _ = randomized_svd(ppmi, rank, random_state=self.seed)
        items = np.zeros((num_items, self.dim), dtype=np.float32)
        items[:, :rank] = left * np.sqrt(singular)
        lengths = np.maximum(np.asarray(matrix.sum(1)), 1)
        return items, (matrix @ items / lengths).astype(np.float32)


def positive_pmi(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Positive PMI of two items standing in the same user's history. Shape: `(users, items)` -> `(items, items)`."""
    together = (matrix.T @ matrix).tocoo()
    off = together.row != together.col
    row, column, count = together.row[off], together.col[off], together.data[off]
    margin = np.bincount(row, weights=count, minlength=matrix.shape[1])
    pmi = np.log(count * margin.sum() / (margin[row] * margin[column]))
    positive = pmi > 0
    return sp.csr_matrix((pmi[positive].astype(np.float32), (row[positive], column[positive])), shape=together.shape)
