import pytest

from align3gr.encoders import EncoderSettings, collaborative_encoder, text_encoder
from align3gr.errors import InputError


def test_the_defaults_are_tfidf_and_ppmi():
    settings = EncoderSettings()
    text, behaviour = text_encoder(settings), collaborative_encoder(settings)
    assert (type(text).__name__, text.dim, text.seed) == ("TfidfSVDEncoder", 128, 42)
    assert (type(behaviour).__name__, behaviour.dim, behaviour.seed) == ("PPMIFactorization", 64, 42)


def test_settings_reach_the_din():
    settings = EncoderSettings(
        collaborative="din",
        collaborative_dim=8,
        attention="mean",
        max_history=7,
        epochs=3,
        learning_rate=0.1,
        mini_batch_l2=0.5,
        seed=5,
    )
    encoder = collaborative_encoder(settings)
    assert (encoder.dim, encoder.training.epochs, encoder.training.learning_rate) == (8, 3, 0.1)
    assert encoder.training.seed == 5
    assert encoder.settings == {"attention": "mean", "max_history": 7, "mini_batch_l2": 0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"semantic": "none", "semantic_dim": 3},
            "semantic_dim: applies to semantic 'tfidf' only, got semantic 'none'",
        ),
        ({"num_processes": 2}, "num_processes: applies to semantic 'sentence-transformers' only"),
        ({"cache": "here"}, "cache: applies to semantic 'sentence-transformers' only"),
        ({"epochs": 3}, "epochs: applies to collaborative 'din' only, got collaborative 'ppmi'"),
        ({"collaborative": "column", "collaborative_dim": 3}, "collaborative_dim: applies to collaborative 'ppmi or"),
        (
            {"item_vectors": "a"},
            "item_vectors: applies to semantic or collaborative 'column' only, got semantic 'tfidf'",
        ),
        ({"semantic": "column", "item_vectors": "a"}, "item_vectors, user_vectors: 'column' needs both"),
        ({"semantic": "none", "collaborative": "none"}, "leaves no features"),
        ({"collaborative_dim": 0}, "to leave a kind out, choose 'none'"),
    ],
)
def test_options_of_encoders_that_were_not_chosen_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        EncoderSettings(**options)


def test_an_option_is_used_where_its_encoder_is_chosen():
    settings = EncoderSettings(semantic="column", item_vectors="a", user_vectors="b")
    assert settings.uses("item_vectors") and settings.uses("collaborative_dim") and settings.uses("seed")
    assert not settings.uses("semantic_dim") and not settings.uses("epochs")
