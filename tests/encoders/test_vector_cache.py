import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from align3gr.encoders.vector_cache import VectorCache, default_cache, text_key, write_atomically
from align3gr.errors import InputError

KEYS = [text_key(text) for text in ("a", "b", "c")]


def test_vectors_come_back_by_text_and_models_do_not_meet(tmp_path):
    cache = VectorCache(tmp_path, "model 1")
    cache.store(KEYS[:2], np.array([[1, 2], [3, 4]], dtype=np.float32))
    cache.store(KEYS[2:], np.array([[5, 6]], dtype=np.float32))
    found = VectorCache(tmp_path, "model 1").load([KEYS[2], KEYS[0], text_key("d")])
    assert {key: vector.tolist() for key, vector in found.items()} == {KEYS[2]: [5, 6], KEYS[0]: [1, 2]}
    assert VectorCache(tmp_path, "model 2").load(KEYS) == {}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache: cannot write .*file: .*; choose another folder"):
        VectorCache(tmp_path / "file", "model")


def test_an_unreadable_shard_is_left_out_with_a_warning(tmp_path, caplog):
    cache = VectorCache(tmp_path, "model")
    cache.store(KEYS[:1], np.ones((1, 2)))
    (cache.folder / "0.safetensors").write_bytes(b"half of a shard")
    with caplog.at_level(logging.WARNING):
        assert list(cache.load(KEYS)) == KEYS[:1]
    assert "0.safetensors cannot be read" in caplog.text


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"before")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("align3gr.encoders.vector_cache.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"


def test_two_killed_writers_leave_whole_shards_only(tmp_path):
    # Both write the same large shards again and again until they are killed.
    code = """
import sys, numpy as np
from align3gr.encoders.vector_cache import VectorCache, text_key
cache = VectorCache(sys.argv[1], "model")
while True:
    for number in range(3):
        keys = [text_key(f"{number} {i}") for i in range(2000)]
        cache.store(keys, np.full((2000, 256), number, dtype=np.float32))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    cache = VectorCache(tmp_path, "model")
    deadline = time.monotonic() + 60
    while len(list(cache.folder.glob("*.safetensors"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    for writer in writers:
        writer.kill()
        writer.wait()
    shards = len(list(cache.folder.glob("*.safetensors")))
    keys = {text_key(f"{number} {i}"): number for number in range(3) for i in range(2000)}
    found = cache.load(list(keys))
    assert 2 <= shards <= 3 and len(found) == 2000 * shards
    assert all((vector == keys[key]).all() for key, vector in found.items())


def test_the_cache_stands_where_the_variables_say(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN3GR_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.delenv("ALIGN3GR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "align3gr"
