"""Options of the recipe of RF-DPO that are not those of the trainer."""

from dataclasses import dataclass, field

from align3gr.dpo.feedback_settings import FeedbackSettings
from align3gr.dpo.stage_arguments import StageArguments


@dataclass(kw_only=True)
class RealFeedbackArguments(StageArguments, FeedbackSettings):
    """Where feedback comes from, what is learnt from it, and how its stages are judged.

    Raises:
        InputError: An option is out of range, or contradicts another.
    """

    run_dir: str = field(metadata={"help": "Folder of the run; the policies appear in its folder rf_dpo."})
    start_from: str = field(
        default="sp_dpo",
        metadata={"help": "Policy to start from: sp_dpo, sft, or a model folder, such as the served."},
    )
    stages: list[str] = field(
        default_factory=lambda: ["disliked", "neutral"],
        metadata={
            "help": "What is rejected, in the order of training: disliked, neutral, or mixed for both at once; each "
            "can have options of its own, as in 'neutral: {learning_rate: 1.0e-5}'."
        },
    )
    metric: str = field(
        default="auto",
        metadata={
            "help": "Decides on validation: Recall@10 of liked targets, or of all where none is rated (auto), or "
            "another metric, as in seen_allowed_liked/ndcg@10."
        },
    )

    def __post_init__(self) -> None:
        FeedbackSettings.__post_init__(self)
        StageArguments.__post_init__(self)
