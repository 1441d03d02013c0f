"""Frozen text encoders: texts of items and users in, vectors out."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file, save

from align3gr.encoders.sentence_transformer import SentenceTransformerEncoder
from align3gr.errors import InputError

logger = logging.getLogger(__name__)

SETTINGS = "encoder.json"


class TextEncoder(Protocol):
    """Anything that turns texts into vectors; `fit` sees the item texts once.

    A text without a character gets the zero vector: nothing is known about who or what it belongs to.
    """

    def fit(self, texts: Sequence[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> `(texts, dim)` float32."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes all that `load_text_encoder` needs."""
        ...


class TfidfSVDEncoder:
    """TF-IDF weights of words and word pairs, reduced by a truncated SVD. Needs no download.

    A text with no known word gets the zero vector.

    Args:
        dim: width of the vectors.
        max_features: most words and word pairs, by their frequency.
        seed: of the truncated SVD.
    """

    def __init__(self, dim: int = 128, max_features: int = 50_000, seed: int = 0) -> None:
        self.dim = dim
        self.max_features = max_features
        self.seed = seed

    def _vectorizer(self, vocabulary: dict[str, int] | None = None) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(
            ngram_range=(1, 2), min_df=2, max_features=self.max_features, sublinear_tf=True, vocabulary=vocabulary
        )

    def fit(self, texts: Sequence[str]) -> None:
        from sklearn.decomposition import TruncatedSVD

        self._tfidf = self._vectorizer()
        try:
            weights = self._tfidf.fit_transform(texts)
        except ValueError as error:
            raise InputError(f"items: the texts hold no word that stands in two of them ({error})") from error
        rank = min(self.dim, min(weights.shape) - 1)
        # (rank, words)
        self._components = TruncatedSVD(rank, random_state=self.seed).fit(weights).components_

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = (self._tfidf.transform(texts) @ self._components.T).astype(np.float32)
        return np.pad(vectors, ((0, 0), (0, self.dim - vectors.shape[1])))

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"type": "tfidf", "dim": self.dim, "max_features": self.max_features, "seed": self.seed}
        words = self._tfidf.get_feature_names_out().tolist()
        arrays = {"idf": self._tfidf.idf_, "components": np.ascontiguousarray(self._components)}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (folder / "vocabulary.json").write_text(json.dumps(words), encoding="utf-8")
        (folder / "weights.safetensors").write_bytes(save(arrays))

    @classmethod
    def load(cls, folder: str | Path) -> "TfidfSVDEncoder":
        """What `save` wrote into the folder."""
        settings = read_settings(folder)
        encoder = cls(settings["dim"], settings["max_features"], settings["seed"])
        words = json.loads(Path(folder, "vocabulary.json").read_text(encoding="utf-8"))
        arrays = load_file(Path(folder, "weights.safetensors"))
        encoder._tfidf = encoder._vectorizer({word: index for index, word in enumerate(words)})
        encoder._tfidf.idf_ = arrays["idf"]
        encoder._components = arrays["components"]
        return encoder


def load_text_encoder(folder: str | Path, **options: Any) -> TextEncoder:
    """The encoder that `save` wrote, for texts that came later.

    Args:
        folder: such as `runs/yelp/embeddings/semantic_encoder`.
        options: settings of a [`SentenceTransformerEncoder`] that leave its vectors as they are: `batch_size`,
            `num_processes`, `cache`.

    Raises:
        InputError: the folder holds no text encoder.
    """
    settings = read_settings(folder)
    if settings["type"] == "tfidf":
        return TfidfSVDEncoder.load(folder)
    if settings["type"] == "sentence-transformers":
        del settings["type"]
        return SentenceTransformerEncoder(**(settings | options))
    raise InputError(f"{folder}: holds no text encoder but '{settings['type']}'")


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The type and the settings of a saved encoder.

    Raises:
        InputError: there is none. The vectors of a ready column have no encoder either.
    """
    path = Path(folder, SETTINGS)
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no encoder (no {SETTINGS}); run the embed stage with one, vectors of 'column' have none"
        )
    return json.loads(path.read_text(encoding="utf-8"))
