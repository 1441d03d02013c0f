import numpy as np
import polars as pl
import pytest

from align3gr.encoders import Embeddings, PPMIFactorization, SentenceTransformerEncoder, TfidfSVDEncoder
from align3gr.encoders.collaborative import interaction_matrix, positive_pmi
from align3gr.errors import InputError


def test_positive_pmi_by_hand():
    # Items 0 and 1 stand together twice, 1 and 2 once; margins 2, 3, 1 of 6.
    matrix = interaction_matrix([np.array([0, 1]), np.array([0, 1]), np.array([1, 2]), np.array([3])], 4)
    ppmi = positive_pmi(matrix).toarray()
    assert ppmi[0, 1] == pytest.approx(np.log(2 * 6 / (2 * 3)))
    assert ppmi[1, 2] == pytest.approx(np.log(1 * 6 / (3 * 1)))
    assert ppmi[0, 2] == 0 and np.array_equal(ppmi, ppmi.T) and not ppmi[3].any()


def test_items_taken_together_get_near_vectors_and_lonely_ones_the_zero_vector():
    rng = np.random.default_rng(0)
    sequences = [rng.choice(np.arange(kind, 20, 2), 5, replace=False) for kind in (0, 1) for _ in range(40)]
    items, users = PPMIFactorization(dim=6).fit([*sequences, np.array([], dtype=np.int64)], 22)
    unit = items[:20] / np.linalg.norm(items[:20], axis=1, keepdims=True)
    similarity = unit @ unit.T
    same = similarity[0::2, 0::2].mean()
    assert same > similarity[0::2, 1::2].mean() + 0.3
    assert not items[20:].any() and not users[-1].any()
    assert np.allclose(users[0], items[sequences[0]].mean(0), atol=1e-6)


def test_factorization_is_the_same_on_every_run_and_narrow_catalogues_are_padded():
    sequences = [np.array([0, 1, 2]), np.array([1, 2])]
    first, second = (PPMIFactorization(dim=8).fit(sequences, 3)[0] for _ in range(2))
    assert first.shape == (3, 8) and np.array_equal(first, second)


def test_tfidf_puts_like_texts_together_and_unknown_words_at_zero():
    texts = ["red shoes for running", "red shoes for walking", "fried rice dish", "fried noodles dish"] * 3
    encoder = TfidfSVDEncoder(dim=4)
    encoder.fit(texts)
    vectors = encoder.encode([*texts[:4], "zzz"])
    assert vectors.dtype == np.float32 and vectors.shape == (5, 4)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    assert not vectors[4].any()


def test_embeddings_are_found_by_id_not_by_row(tmp_path):
    path = tmp_path / "items.parquet"
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    Embeddings(collaborative=values).save(path, "item_id", pl.Series(["a", "b", "c"]))
    loaded = Embeddings.load(path, "item_id", pl.Series(["c", "a"]))
    assert loaded.semantic is None and loaded.collaborative.tolist() == [[4, 5], [0, 1]]
    with pytest.raises(InputError, match="item_id 'd' has no vector"):
        Embeddings.load(path, "item_id", pl.Series(["a", "d"]))
    with pytest.raises(InputError, match="run the embed stage first"):
        Embeddings.load(tmp_path / "none.parquet", "item_id", pl.Series(["a"]))


def test_sentence_transformers_encodes_with_a_local_model(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the 'text' extra is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "red", "shoes", "rice"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0
    )
    BertModel(config).save_pretrained(tmp_path)
    encoder = SentenceTransformerEncoder(str(tmp_path), batch_size=2)
    encoder.fit([])
    vectors = encoder.encode(["red shoes", "rice", "red shoes", "shoes"])
    assert vectors.shape == (4, 8) and vectors.dtype == np.float32
    assert np.allclose(vectors[0], vectors[2], atol=1e-6) and not np.allclose(vectors[0], vectors[1], atol=1e-3)
