"""Align3GR for Hugging Face: from interaction logs and item texts to a language model that recommends.

Importing align3gr's models registers them with transformers' `AutoConfig`, `AutoModel` and `AutoTokenizer`.
"""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.decoding.logits_processor import SCIDLogitsProcessor
    from align3gr.decoding.recommender import Recommendation, Recommender
    from align3gr.dpo.curriculum import CurriculumStage, ProgressiveCurriculum, run_curriculum
    from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
    from align3gr.dpo.softmax_dpo_trainer import SoftmaxDPOTrainer
    from align3gr.encoders.configuration_din import DINConfig
    from align3gr.encoders.modeling_din import DINModel
    from align3gr.errors import InputError
    from align3gr.scid.assigner import SCIDAssigner
    from align3gr.scid.configuration_dual_scid import DualSCIDConfig
    from align3gr.scid.configuration_rqvae import RQVAEConfig
    from align3gr.scid.modeling_dual_scid import DualSCIDModel
    from align3gr.scid.modeling_rqvae import RQVAEModel
    from align3gr.scid.tokenization_scid import SCIDTokenizer

__version__ = "0.1.0"

__getattr__, __all__ = attach(
    __name__,
    {
        "decoding.logits_processor": ("SCIDLogitsProcessor",),
        "decoding.recommender": ("Recommendation", "Recommender"),
        "dpo.curriculum": ("CurriculumStage", "ProgressiveCurriculum", "run_curriculum"),
        "dpo.softmax_dpo_config": ("SoftmaxDPOConfig",),
        "dpo.softmax_dpo_trainer": ("SoftmaxDPOTrainer",),
        "encoders.configuration_din": ("DINConfig",),
        "encoders.modeling_din": ("DINModel",),
        "errors": ("InputError",),
        "scid.assigner": ("SCIDAssigner",),
        "scid.configuration_rqvae": ("RQVAEConfig",),
        "scid.configuration_dual_scid": ("DualSCIDConfig",),
        "scid.modeling_dual_scid": ("DualSCIDModel",),
        "scid.modeling_rqvae": ("RQVAEModel",),
        "scid.tokenization_scid": ("SCIDTokenizer",),
    },
)
