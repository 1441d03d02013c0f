"""Options that self-play and real feedback have in common: how stages generate, and how they are judged."""

from dataclasses import dataclass, field

from align3gr.dpo.candidates import PART_PROMPTS
from align3gr.errors import InputError
from align3gr.evaluation.evaluator import JUDGED_K


@dataclass(kw_only=True)
class StageArguments:
    """How the stages of a curriculum generate and are judged.

    Raises:
        InputError: An option is out of range, or has no effect beside the others.
    """

    num_prompts: int = field(default=4000, metadata={"help": "Train positions that each stage learns from."})
    candidates: int = field(default=100, metadata={"help": "Items that the policy generates at each position."})
    part_prompts: int = field(default=PART_PROMPTS, metadata={"help": "Prompts after which generation is saved."})
    decode_batch_size: int = field(default=64, metadata={"help": "Prompts in one search."})
    min_rows: int = field(default=100, metadata={"help": "A stage with fewer rows is skipped."})
    validation_users: int = field(default=0, metadata={"help": "Fixed sample that judges a stage; 0 takes all users."})
    validate_steps: int = field(
        default=0, metadata={"help": "Validate inside a stage, too, each time after so many steps; 0 does not."}
    )
    stop_tolerance: float = field(
        default=0.0, metadata={"help": "With validate_steps: a stage is stopped this far below its start."}
    )
    num_beams: int = field(default=20, metadata={"help": "Beam of the validation."})

    def __post_init__(self) -> None:
        least = dict.fromkeys(("num_prompts", "candidates", "part_prompts", "decode_batch_size"), 1)
        for name, value in (least | {"num_beams": JUDGED_K}).items():
            if getattr(self, name) < value:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {value}")
        for name in ("validation_users", "validate_steps", "stop_tolerance", "min_rows"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.stop_tolerance and not self.validate_steps:
            raise InputError("stop_tolerance: needs evaluations inside a stage; set validate_steps, or leave it out")
