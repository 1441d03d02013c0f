"""Frozen text encoders: texts of items and users in, vectors out."""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from align3gr.errors import InputError

logger = logging.getLogger(__name__)


class TextEncoder(Protocol):
    """Anything that turns texts into vectors; `fit` sees the item texts once."""

    def fit(self, texts: Sequence[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> `(texts, dim)` float32."""
        ...


class TfidfSVDEncoder:
    """TF-IDF weights of words and word pairs, reduced by a truncated SVD. Needs no download.

    A text with no known word gets the zero vector.
    """

    def __init__(self, dim: int = 128, max_features: int = 50_000, seed: int = 0) -> None:
        self.dim = dim
        self.max_features = max_features
        self.seed = seed

    def fit(self, texts: Sequence[str]) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._tfidf = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=self.max_features, sublinear_tf=True)
        try:
            weights = self._tfidf.fit_transform(texts)
        except ValueError as error:
            raise InputError(f"items: the texts hold no word that stands in two of them ({error})") from error
        rank = min(self.dim, min(weights.shape) - 1)
        self._svd = TruncatedSVD(rank, random_state=self.seed).fit(weights)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self._svd.transform(self._tfidf.transform(texts)).astype(np.float32)
        return np.pad(vectors, ((0, 0), (0, self.dim - vectors.shape[1])))


class SentenceTransformerEncoder:
    """Any sentence-transformers model, by Hub id or local path."""

    def __init__(self, model: str = "sentence-transformers/sentence-t5-base", batch_size: int = 64) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InputError(
                "semantic: sentence-transformers is not installed; pip install 'align3gr[text]'"
            ) from error
        self._model = SentenceTransformer(model)
        self.batch_size = batch_size

    def fit(self, texts: Sequence[str]) -> None:
        """The model is frozen: there is nothing to learn from the catalogue."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode(
            list(texts), batch_size=self.batch_size, convert_to_numpy=True, show_progress_bar=len(texts) > 1000
        ).astype(np.float32)
