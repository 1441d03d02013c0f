import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from align3gr.encoders import TfidfSVDEncoder, load_text_encoder
from align3gr.errors import InputError

TEXTS = ["red shoes for running", "red shoes for walking", "fried rice dish", "fried noodles dish"] * 3


def test_tfidf_puts_like_texts_together_and_unknown_words_at_zero():
    encoder = TfidfSVDEncoder(dim=4)
    encoder.fit(TEXTS)
    vectors = encoder.encode([*TEXTS[:4], "zzz", "", "  "])
    assert vectors.dtype == np.float32 and vectors.shape == (7, 4)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    assert not vectors[4:].any()


def test_vectors_are_those_of_scikit_learn():
    weights = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform(TEXTS)
    expected = TruncatedSVD(4, random_state=5).fit(weights).transform(weights).astype(np.float32)
    encoder = TfidfSVDEncoder(dim=4, seed=5)
    encoder.fit(TEXTS)
    assert np.array_equal(encoder.encode(TEXTS), expected)


def test_a_saved_encoder_gives_the_same_vectors_without_pickle(tmp_path):
    encoder = TfidfSVDEncoder(dim=30)  # wider than the texts allow: padded
    encoder.fit(TEXTS)
    encoder.save(tmp_path / "encoder")
    later = ["red noodles", "", *TEXTS]
    assert np.array_equal(load_text_encoder(tmp_path / "encoder").encode(later), encoder.encode(later))
    assert {path.suffix for path in (tmp_path / "encoder").iterdir()} == {".json", ".safetensors"}
    before = {path.name: path.read_bytes() for path in (tmp_path / "encoder").iterdir()}
    encoder.save(tmp_path / "encoder")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "encoder").iterdir()}


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(InputError, match="no word that stands in two of them"):
        TfidfSVDEncoder().fit(["one", "two"])
    with pytest.raises(InputError, match=r"holds no encoder .* 'column' have none"):
        load_text_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text('{"type": "ppmi"}')
    with pytest.raises(InputError, match="holds no text encoder but 'ppmi'"):
        load_text_encoder(tmp_path)
