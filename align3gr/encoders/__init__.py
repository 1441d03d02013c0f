"""Frozen encoders: vectors of items and users from texts and from the train split."""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.encoders.als import ALSEncoder
    from align3gr.encoders.collaborative import (
        CollaborativeEncoder,
        PPMIFactorization,
        interaction_matrix,
        load_collaborative_encoder,
    )
    from align3gr.encoders.column import load_vectors
    from align3gr.encoders.configuration_din import DINConfig
    from align3gr.encoders.din_trainer import DINEncoder, DINTrainingConfig
    from align3gr.encoders.embeddings import Embeddings
    from align3gr.encoders.lift import cluster_lift
    from align3gr.encoders.lightgcn import LightGCNEncoder
    from align3gr.encoders.modeling_din import DINModel
    from align3gr.encoders.semantic import TextEncoder, TfidfSVDEncoder, load_text_encoder
    from align3gr.encoders.sentence_transformer import SentenceTransformerEncoder
    from align3gr.encoders.sentiment import (
        ClassifierScorer,
        LanguageModelScorer,
        SentimentScorer,
        VaderScorer,
        load_scorer,
        score_texts,
    )
    from align3gr.encoders.settings import EncoderSettings, collaborative_encoder, text_encoder

__getattr__, __all__ = attach(
    __name__,
    {
        "als": ("ALSEncoder",),
        "collaborative": (
            "CollaborativeEncoder",
            "PPMIFactorization",
            "interaction_matrix",
            "load_collaborative_encoder",
        ),
        "column": ("load_vectors",),
        "configuration_din": ("DINConfig",),
        "din_trainer": ("DINEncoder", "DINTrainingConfig"),
        "embeddings": ("Embeddings",),
        "lightgcn": ("LightGCNEncoder",),
        "lift": ("cluster_lift",),
        "modeling_din": ("DINModel",),
        "semantic": ("TextEncoder", "TfidfSVDEncoder", "load_text_encoder"),
        "sentence_transformer": ("SentenceTransformerEncoder",),
        "sentiment": (
            "ClassifierScorer",
            "LanguageModelScorer",
            "SentimentScorer",
            "VaderScorer",
            "load_scorer",
            "score_texts",
        ),
        "settings": ("EncoderSettings", "collaborative_encoder", "text_encoder"),
    },
)
