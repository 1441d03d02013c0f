"""Preference level: Softmax-DPO, self-play data, and the curriculum from easy to hard.

Names are loaded when they are first used: preference data does not need what training needs.
"""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.dpo.candidates import generate_candidates, sample_train_positions
    from align3gr.dpo.curriculum import ProgressiveCurriculum, run_curriculum, stage_seed
    from align3gr.dpo.curriculum_stage import CurriculumStage, read_stages
    from align3gr.dpo.difficulty import buckets_of, item_vectors, prefix_lengths
    from align3gr.dpo.feedback_arguments import RealFeedbackArguments
    from align3gr.dpo.feedback_rows import build_feedback_rows, rejected_levels
    from align3gr.dpo.feedback_run import RealFeedback, deciding_metric
    from align3gr.dpo.feedback_settings import FeedbackSettings
    from align3gr.dpo.preference_rows import SoftmaxDPOCollator
    from align3gr.dpo.self_play import PreferenceRows, build_preference_rows, self_play_rows
    from align3gr.dpo.self_play_arguments import SelfPlayArguments
    from align3gr.dpo.self_play_run import SelfPlay, policy_validation
    from align3gr.dpo.shared_prefix import naive_logps, sequence_batch, shared_prefix_logps, tree_batch
    from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
    from align3gr.dpo.softmax_dpo_trainer import SoftmaxDPOTrainer

__getattr__, __all__ = attach(
    __name__,
    {
        "candidates": ("generate_candidates", "sample_train_positions"),
        "curriculum": ("ProgressiveCurriculum", "run_curriculum", "stage_seed"),
        "curriculum_stage": ("CurriculumStage", "read_stages"),
        "difficulty": ("buckets_of", "item_vectors", "prefix_lengths"),
        "feedback_arguments": ("RealFeedbackArguments",),
        "feedback_rows": ("build_feedback_rows", "rejected_levels"),
        "feedback_run": ("RealFeedback", "deciding_metric"),
        "feedback_settings": ("FeedbackSettings",),
        "preference_rows": ("SoftmaxDPOCollator",),
        "self_play": ("PreferenceRows", "build_preference_rows", "self_play_rows"),
        "self_play_arguments": ("SelfPlayArguments",),
        "self_play_run": ("SelfPlay", "policy_validation"),
        "shared_prefix": ("naive_logps", "sequence_batch", "shared_prefix_logps", "tree_batch"),
        "softmax_dpo_config": ("SoftmaxDPOConfig",),
        # Not `softmax_dpo_loss`: a function of the same name as its module would hide or be hidden by it.
        "softmax_dpo_trainer": ("SoftmaxDPOTrainer",),
    },
)
