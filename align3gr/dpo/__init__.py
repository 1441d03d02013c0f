"""Preference level: Softmax-DPO, self-play data, and the curriculum from easy to hard.

Names are loaded when they are first used: preference data does not need what training needs.
"""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.dpo.curriculum import CurriculumStage, ProgressiveCurriculum, run_curriculum
    from align3gr.dpo.preference_rows import SoftmaxDPOCollator
    from align3gr.dpo.self_play import (
        PreferenceRows,
        build_preference_rows,
        prefix_lengths,
        sample_train_positions,
        self_play_rows,
    )
    from align3gr.dpo.shared_prefix import naive_logps, sequence_batch, shared_prefix_logps, tree_batch
    from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
    from align3gr.dpo.softmax_dpo_trainer import SoftmaxDPOTrainer

__getattr__, __all__ = attach(
    __name__,
    {
        "curriculum": ("CurriculumStage", "ProgressiveCurriculum", "run_curriculum"),
        "preference_rows": ("SoftmaxDPOCollator",),
        "self_play": (
            "PreferenceRows",
            "build_preference_rows",
            "prefix_lengths",
            "sample_train_positions",
            "self_play_rows",
        ),
        "shared_prefix": ("naive_logps", "sequence_batch", "shared_prefix_logps", "tree_batch"),
        "softmax_dpo_config": ("SoftmaxDPOConfig",),
        # Not `softmax_dpo_loss`: a function of the same name as its module would hide or be hidden by it.
        "softmax_dpo_trainer": ("SoftmaxDPOTrainer",),
    },
)
