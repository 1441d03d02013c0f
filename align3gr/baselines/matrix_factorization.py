"""Matrix factorisation as a comparison system: implicit ALS, as the encoder of the same name learns it."""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from align3gr.encoders.als import ALSEncoder


class MatrixFactorization:
    """Implicit ALS (Hu, Koren and Volinsky 2008) of the library implicit; see [`ALSEncoder`].

    A user's vector is the least-squares solution for the history, items held still, so an item between the train split
    and the target counts without another training.

    Args:
        seed: of the first factors.
        dim: width of the vectors.
        alpha: confidence in a taken item against one that was not taken.
        regularization: weight of the squared norms.
        iterations: of both half steps.

    Raises:
        InputError: implicit is not installed.
    """

    def __init__(
        self, seed: int = 0, dim: int = 128, alpha: float = 10.0, regularization: float = 0.1, iterations: int = 15
    ) -> None:
        self._encoder = ALSEncoder(dim, seed, alpha, regularization, iterations)

    def fit(
        self, train_sequences: Sequence[np.ndarray], num_items: int, validate: Callable[[], float] | None = None
    ) -> Self:
        """See `VectorBaseline.fit`; the number of iterations is a setting, so nothing is asked on the way."""
        self._encoder.fit(train_sequences, num_items)
        return self

    def item_vectors(self) -> np.ndarray:
        """`(items, dim)` float32, zero for items without train interactions."""
        return self._encoder.item_vectors

    def user_vectors(self, histories: Sequence[np.ndarray], user_rows: np.ndarray) -> np.ndarray:
        """See `VectorBaseline.user_vectors`; the history says all about the user."""
        return self._encoder.encode_users(histories)
