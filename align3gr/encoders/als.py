"""Matrix factorisation of implicit feedback by alternating least squares, through the library implicit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from align3gr.encoders.collaborative import ITEM_VECTORS, binary_matrix, save_arrays
from align3gr.encoders.semantic import read_settings
from align3gr.errors import InputError
from align3gr.progress import is_watched


class ALSEncoder:
    """Collaborative filtering for implicit feedback (Hu, Koren and Volinsky 2008).

    Item vectors are the item factors. A user's vector is the least-squares solution for the history, items held still,
    which is the last half step of the training. An item without interactions and a user without history get the zero
    vector.

    Args:
        dim: width of the vectors.
        seed: of the first factors.
        alpha: confidence in a taken item against one that was not taken.
        regularization: weight of the squared norms.
        iterations: of both half steps.

    Raises:
        InputError: implicit is not installed.
    """

    def __init__(
        self, dim: int = 64, seed: int = 0, alpha: float = 10.0, regularization: float = 0.1, iterations: int = 15
    ) -> None:
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ImportError as error:
            raise InputError("collaborative: 'als' needs the library implicit; pip install implicit") from error
        from threadpoolctl import threadpool_limits

        self.dim, self.seed = dim, seed
        self.alpha, self.regularization, self.iterations = alpha, regularization, iterations
        # implicit warns where BLAS has threads of its own: its threads and those of BLAS get in each other's way.
        with threadpool_limits(1, "blas"):
            self._model: Any = AlternatingLeastSquares(
                dim, regularization=regularization, alpha=alpha, iterations=iterations, random_state=seed
            )

    def fit(self, sequences: Sequence[np.ndarray], num_items: int) -> None:
        from threadpoolctl import threadpool_limits

        matrix = binary_matrix(sequences, num_items)
        with threadpool_limits(1, "blas"):
            self._model.fit(matrix, show_progress=is_watched())
        # Their exact solution; the conjugate gradient steps leave a rest of the random start.
        self._model.item_factors[np.asarray(matrix.sum(0)).ravel() == 0] = 0
        self._model._YtY = None  # computed from the item factors when it is first asked for

    @property
    def item_vectors(self) -> np.ndarray:
        return self._model.item_factors

    def encode_users(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        matrix = binary_matrix(histories, len(self.item_vectors))
        if not len(histories):
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = self._model.recalculate_user(np.arange(len(histories)), matrix)
        vectors[np.diff(matrix.indptr) == 0] = 0
        return vectors

    def save(self, folder: str | Path) -> None:
        settings = {
            "type": "als",
            "dim": self.dim,
            "seed": self.seed,
            "alpha": self.alpha,
            "regularization": self.regularization,
            "iterations": self.iterations,
        }
        save_arrays(folder, settings, {"items": self.item_vectors})

    @classmethod
    def load(cls, folder: str | Path) -> "ALSEncoder":
        """What `save` wrote into the folder."""
        settings = read_settings(folder)
        del settings["type"]
        encoder = cls(**settings)
        encoder._model.item_factors = load_file(Path(folder, ITEM_VECTORS))["items"]
        return encoder
