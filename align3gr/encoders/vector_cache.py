"""Vectors of texts on disk, so that no text is encoded twice.

A cache is a folder of shards: safetensors files with the hashes of some texts and their vectors. A shard is written
whole under another name, then renamed, so that a kill leaves no half of one, and is never changed afterwards, so that
several processes can use the folder at once.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from align3gr.errors import InputError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "ALIGN3GR_CACHE"
KEY_BYTES = 32


def default_cache() -> Path:
    """`$ALIGN3GR_CACHE`, or `align3gr` in the user's cache folder."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "align3gr"


def text_key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def write_atomically(path: Path, content: bytes) -> None:
    """The file is there whole or not at all, whatever happens meanwhile."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


class VectorCache:
    """Vectors by text, of one model.

    Args:
        folder: where the caches of all models stand.
        identity: everything beside the text that a vector depends on.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self.folder = Path(folder) / "texts" / hashlib.sha256(identity.encode()).hexdigest()[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cache: cannot write {folder}: {error.strerror}; choose another folder") from error

    def load(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors that are there, each `(dim,)` float32, by `text_key`."""
        wanted = set(keys)
        found: dict[bytes, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            if len(found) == len(wanted):
                break
            try:
                with safe_open(path, "np") as shard:
                    names = [bytes(key) for key in shard.get_tensor("keys")]
                    if not wanted.isdisjoint(names):
                        vectors = shard.get_tensor("vectors")
                        found |= {name: vectors[row] for row, name in enumerate(names) if name in wanted}
            except (SafetensorError, OSError) as error:
                logger.warning("%s cannot be read and is left out (%s)", path, error)
        return found

    def store(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Adds a shard. Shape: `vectors` `(keys, dim)`."""
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
        tensors: dict[str, np.ndarray] = {
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
            "vectors": np.ascontiguousarray(vectors, dtype=np.float32),
        }
        write_atomically(self.folder / f"{name}.safetensors", save(tensors))
