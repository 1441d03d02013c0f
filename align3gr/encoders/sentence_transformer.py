"""Vectors of texts from a sentence-transformers model, kept on disk."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from align3gr.encoders.vector_cache import VectorCache, default_cache, text_key
from align3gr.errors import InputError
from align3gr.progress import ProgressBar

logger = logging.getLogger(__name__)

# Texts that an interrupted run may lose, for each process; more where they are encoded in no time.
SHARD_TEXTS, SHARD_TEXTS_MAX, SHARD_SECONDS = 512, 65_536, 20


class SentenceTransformerEncoder:
    """Any sentence-transformers model, by Hub id or local path.

    Texts that were encoded once are read from the cache, by this and any other run with the same model and settings.
    A text without a character gets the zero vector, not what the model makes of nothing.

    Args:
        model: Hub id or folder.
        batch_size: texts in a batch of one process.
        num_processes: processes that encode side by side, each on a GPU of its own where there are several. They are
            started anew, so the calling script needs its `if __name__ == "__main__":`.
        prompt: text put before every text, as some models want it.
        normalize: scale vectors to length 1.
        cache: folder of the cache, `default_cache()` if None; False does without.
        revision: branch, tag or commit of a model on the Hub. The commit that was found is kept in the attribute of
            this name and saved: an encoder stays what it was when the model moves on.

    Raises:
        InputError: sentence-transformers is not installed, the model cannot be loaded, the cache cannot be written, or
            a folder was given a revision.
    """

    def __init__(
        self,
        model: str = "sentence-transformers/sentence-t5-base",
        batch_size: int = 64,
        num_processes: int = 1,
        prompt: str = "",
        normalize: bool = False,
        cache: str | Path | bool | None = None,
        revision: str | None = None,
    ) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InputError(
                "semantic: sentence-transformers is not installed; pip install 'align3gr[text]'"
            ) from error
        for name, value in (("batch_size", batch_size), ("num_processes", num_processes)):
            if value < 1:
                raise InputError(f"{name}: got {value}, expected 1 or more")
        # A folder is named in full: the saved settings are read from elsewhere.
        self.model = str(Path(model).resolve()) if Path(model).is_dir() else model
        if revision and Path(self.model).is_dir():
            raise InputError(f"revision: got '{revision}', a folder ({self.model}) has none; leave it out")
        try:
            self._model = SentenceTransformer(self.model, revision=revision)
        except (OSError, ValueError) as error:
            raise InputError(f"semantic_model: '{model}' cannot be loaded: {' '.join(str(error).split())}") from error
        self.batch_size, self.num_processes, self.prompt, self.normalize = batch_size, num_processes, prompt, normalize
        self.revision = hub_commit(self.model, revision) or revision
        self._cache: VectorCache | None = None
        if cache is not False:
            folder = default_cache() if cache is None or cache is True else Path(cache)
            self._cache = VectorCache(folder, self.identity())

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return cast(int, self._model.get_embedding_dimension())

    def identity(self) -> str:
        """All that a vector depends on beside its text: weights, prompt, normalisation, longest text."""
        settings = [model_revision(self.model, self.revision), self.prompt, self.normalize, self._model.max_seq_length]
        return json.dumps(settings)

    def fit(self, texts: Sequence[str]) -> None:
        """The model is frozen: there is nothing to learn from the catalogue."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        keys = [text_key(text) if text.strip() else b"" for text in texts]
        distinct = {key: text for key, text in zip(keys, texts, strict=True) if key}
        vectors = self._cache.load(list(distinct)) if self._cache else {}
        missing = [key for key in distinct if key not in vectors]
        if missing:
            logger.info("%d texts, %d of them new to the cache", len(distinct), len(missing))
            # Texts of like length in a batch need little padding; the longest first show at once what memory needs.
            missing.sort(key=lambda key: len(distinct[key]), reverse=True)
            vectors |= self._encode_new(missing, distinct)
        result = np.zeros((len(keys), self.dim), dtype=np.float32)
        for row, key in enumerate(keys):
            if key:
                result[row] = vectors[key]
        return result

    def _encode_new(self, keys: list[bytes], texts: dict[bytes, str]) -> dict[bytes, np.ndarray]:
        """Encodes shard by shard: what is done is in the cache when the run is interrupted."""
        vectors: dict[bytes, np.ndarray] = {}
        size, start = SHARD_TEXTS * self.num_processes, 0
        with self._pool(len(keys)) as pool, ProgressBar(len(keys), "encoding", "text") as progress:
            while start < len(keys):
                began, shard = time.perf_counter(), keys[start : start + size]
                part = self._model.encode(
                    [texts[key] for key in shard],
                    prompt=self.prompt or None,
                    batch_size=self.batch_size,
                    normalize_embeddings=self.normalize,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                    pool=pool,
                ).astype(np.float32)
                if self._cache:
                    self._cache.store(shard, part)
                vectors |= dict(zip(shard, part, strict=True))
                start += len(shard)
                progress.update(len(shard))
                if time.perf_counter() - began < SHARD_SECONDS:
                    size = min(2 * size, SHARD_TEXTS_MAX * self.num_processes)
        return vectors

    @contextmanager
    def _pool(self, texts: int) -> Iterator[Any]:
        """Worker processes for `encode`; None where one process does."""
        import torch

        if self.num_processes == 1 or texts < 2 * self.num_processes:
            yield None
            return
        gpus = torch.cuda.device_count()
        devices = [f"cuda:{i % gpus}" if gpus else "cpu" for i in range(self.num_processes)]
        pool = self._model.start_multi_process_pool(devices)
        try:
            yield pool
        finally:
            self._model.stop_multi_process_pool(pool)

    def save(self, folder: str | Path) -> None:
        """Id and commit, or path, of the model and the settings; not the weights."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        names = ("model", "revision", "batch_size", "prompt", "normalize")
        settings = {"type": "sentence-transformers", **{name: getattr(self, name) for name in names}}
        Path(folder, "encoder.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def model_revision(model: str, revision: str | None = None) -> str:
    """What tells two versions of a model apart: the hash of a folder's files, or id and commit of a Hub model."""
    if Path(model).is_dir():
        digest = hashlib.sha256()
        for file in sorted(path for path in Path(model).rglob("*") if path.is_file()):
            with file.open("rb") as content:
                inner = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"{file.relative_to(model)}\0{inner}\n".encode())
        return digest.hexdigest()
    commit = hub_commit(model, revision) or revision
    return f"{model}@{commit}" if commit else model


def hub_commit(model: str, revision: str | None = None) -> str | None:
    """The commit of a Hub model that was loaded before; None for a folder."""
    if Path(model).is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    # The model was loaded before, so its files are there; the folder above them is named after the commit.
    config = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None
