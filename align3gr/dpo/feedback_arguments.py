"""Options of the recipe of RF-DPO that are not those of the trainer."""

from dataclasses import dataclass, field

from align3gr.dpo.candidates import PART_PROMPTS
from align3gr.dpo.feedback_settings import FeedbackSettings
from align3gr.errors import InputError


@dataclass(kw_only=True)
class RealFeedbackArguments(FeedbackSettings):
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
    num_prompts: int = field(default=4000, metadata={"help": "Liked items that each stage learns from."})
    candidates: int = field(
        default=100, metadata={"help": "Beam of the policy, in which items with feedback are looked for."}
    )
    part_prompts: int = field(default=PART_PROMPTS, metadata={"help": "Prompts after which generation is saved."})
    min_rows: int = field(default=100, metadata={"help": "A stage with fewer rows is skipped."})
    metric: str = field(
        default="auto",
        metadata={
            "help": "Decides on validation: Recall@10 of liked targets, or of all where none is rated (auto), or "
            "another metric, as in seen_allowed_liked/ndcg@10."
        },
    )
    validation_users: int = field(default=0, metadata={"help": "Fixed sample that judges a stage; 0 takes all users."})
    validate_steps: int = field(
        default=0, metadata={"help": "Validate inside a stage, too, each time after so many steps; 0 does not."}
    )
    stop_tolerance: float = field(
        default=0.0, metadata={"help": "With validate_steps: a stage is stopped this far below its start."}
    )
    num_beams: int = field(default=20, metadata={"help": "Beam of the validation."})
    decode_batch_size: int = field(default=64, metadata={"help": "Prompts in one search."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_prompts", "candidates", "part_prompts", "num_beams", "decode_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("validation_users", "validate_steps", "stop_tolerance", "min_rows"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.stop_tolerance and not self.validate_steps:
            raise InputError("stop_tolerance: needs evaluations inside a stage; set validate_steps, or leave it out")
