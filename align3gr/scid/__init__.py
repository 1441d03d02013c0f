"""Token level: users and items become Semantic-Collaborative IDs.

Names are loaded when they are first used: prompts and codes do not need what training needs.
"""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.scid.assigner import ENCODERS, SCIDAssigner, keep_encoders
    from align3gr.scid.categories import category_codes, item_categories
    from align3gr.scid.clusters import cluster_codes, cooccurrence_graph, spectral_clusters
    from align3gr.scid.code_table import (
        CodeTable,
        codes_column,
        load_codebook_sizes,
        load_codes,
        read_code_table,
        save_codebook_sizes,
        save_codes,
        save_index,
    )
    from align3gr.scid.collisions import CollisionReport, resolve_collisions
    from align3gr.scid.configuration_dual_scid import DualSCIDConfig
    from align3gr.scid.configuration_rqvae import CodebookProposal, RQVAEConfig, propose_codebook_sizes
    from align3gr.scid.dual_scid_metrics import CollapsedCodebookError
    from align3gr.scid.dual_scid_trainer import DualSCIDTrainer, DualSCIDTrainingConfig, train_dual_scid
    from align3gr.scid.embedding_init import resize_scid_embeddings
    from align3gr.scid.features import Codes, FeatureTable, PinnedCodes, assign_codes, embed_all
    from align3gr.scid.losses import u2i_loss
    from align3gr.scid.modeling_dual_scid import DualSCIDModel
    from align3gr.scid.modeling_rqvae import RQVAEModel
    from align3gr.scid.prompts import PromptBuilder
    from align3gr.scid.quality import CodeQuality, measure_quality
    from align3gr.scid.settings import SCIDSettings
    from align3gr.scid.tokenization_scid import SCIDTokenizer, train_base_tokenizer
    from align3gr.scid.untrained import hashed_user_codes, ready_codes
    from align3gr.scid.vocabulary import SCIDCatalogue, SCIDVocabulary

__getattr__, __all__ = attach(
    __name__,
    {
        "assigner": ("ENCODERS", "SCIDAssigner", "keep_encoders"),
        "categories": ("category_codes", "item_categories"),
        "clusters": ("cluster_codes", "cooccurrence_graph", "spectral_clusters"),
        "code_table": (
            "CodeTable",
            "codes_column",
            "load_codebook_sizes",
            "load_codes",
            "read_code_table",
            "save_codebook_sizes",
            "save_codes",
            "save_index",
        ),
        "collisions": ("CollisionReport", "resolve_collisions"),
        "configuration_dual_scid": ("DualSCIDConfig",),
        "configuration_rqvae": ("CodebookProposal", "RQVAEConfig", "propose_codebook_sizes"),
        "dual_scid_metrics": ("CollapsedCodebookError",),
        "dual_scid_trainer": ("DualSCIDTrainer", "DualSCIDTrainingConfig", "train_dual_scid"),
        "embedding_init": ("resize_scid_embeddings",),
        "features": ("Codes", "FeatureTable", "PinnedCodes", "assign_codes", "embed_all"),
        "losses": ("u2i_loss",),
        "modeling_dual_scid": ("DualSCIDModel",),
        "modeling_rqvae": ("RQVAEModel",),
        "prompts": ("PromptBuilder",),
        "quality": ("CodeQuality", "measure_quality"),
        "settings": ("SCIDSettings",),
        "tokenization_scid": ("SCIDTokenizer", "train_base_tokenizer"),
        "untrained": ("hashed_user_codes", "ready_codes"),
        "vocabulary": ("SCIDCatalogue", "SCIDVocabulary"),
    },
)
