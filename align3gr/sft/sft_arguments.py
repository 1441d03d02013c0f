"""Options of the SFT recipe that are not those of the model, the adapter or the trainer."""

from dataclasses import dataclass, field

from align3gr.errors import InputError
from align3gr.evaluation.evaluator import JUDGED_K
from align3gr.sft.rows import OBJECTIVES
from align3gr.sft.user_codes import USER_CODES_FROM


@dataclass
class SFTArguments:
    """What is fine-tuned, on which tasks, and how it is judged on the way."""

    run_dir: str = field(metadata={"help": "Folder of the run; the model appears in its folder sft."})
    base_model: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a pretrained causal LM; a small Llama from scratch if left out."},
    )
    base_model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    base_vocab_size: int = field(
        default=1000,
        metadata={"help": "From scratch: size of the BPE vocabulary trained on the catalogue, before SCID tokens."},
    )
    embedding_init: str = field(
        default="mean",
        metadata={
            "help": "Start of the SCID tokens' rows: around the mean of the others, from the code vectors, or from "
            "the mean collaborative vector of the items that carry a code.",
            "choices": ["mean", "codebook", "collaborative"],
        },
    )
    embedding_scale: float = field(
        default=1.0, metadata={"help": "Length of rows that start from vectors, relative to that of the others."}
    )
    dropout: float = field(default=0.1, metadata={"help": "From scratch: dropout on embeddings and blocks."})
    tasks: list[str] = field(
        default_factory=lambda: ["sequential"],
        metadata={
            "help": "sequential, asymmetric, intention, preference, item_text, user_profile; each with =WEIGHT, the "
            "passes over it in an epoch."
        },
    )
    templates: str = field(default="compact", metadata={"help": "natural, compact, or a YAML file of your own."})
    objective: str = field(
        default="every_item",
        metadata={
            "help": "How sequences are learnt, see docs/sft.md; prefix_lm is for architecture t5.",
            "choices": list(OBJECTIVES),
        },
    )
    rephrased: float = field(
        default=0.0, metadata={"help": "Passes over one position a user with the other sequential templates."}
    )
    returns: float = field(
        default=0.0,
        metadata={
            "help": "Passes over the sequences with items put in that come again, from which a model from scratch "
            "learns to copy; for data in which users come back to items."
        },
    )
    shuffled: float = field(
        default=0.0,
        metadata={
            "help": "Passes over the sequences in another random order each: a small data set is learnt by heart less "
            "soon."
        },
    )
    normalizer: str = field(
        default="vocabulary",
        metadata={
            "help": "What the probability of an SCID is normalised over, in training and wherever the model "
            "recommends: the vocabulary (the paper), or what the catalogue can go on with.",
            "choices": ["vocabulary", "catalogue"],
        },
    )
    max_history: int = field(default=20, metadata={"help": "Latest items of a history that a prompt holds."})
    user_scid: bool = field(default=True, metadata={"help": "Whether prompts hold the user's SCID."})
    user_codes_from: str = field(
        default="all",
        metadata={
            "help": "What a user's SCID is made from in training: all train items (the paper), the half of them "
            "without the answer, or those before the answer.",
            "choices": list(USER_CODES_FROM),
        },
    )
    validation_users: int = field(
        default=0, metadata={"help": "With eval_strategy: fixed sample of users that is recommended to; 0 takes all."}
    )
    validation_beams: int = field(default=20, metadata={"help": "Beam of the validation."})
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Evaluations without a new best after which training stops; 0 never stops."}
    )

    def __post_init__(self) -> None:
        if self.validation_beams < JUDGED_K:
            raise InputError(
                f"validation_beams: got {self.validation_beams}, expected at least {JUDGED_K}, the length of the lists"
            )
        for name in ("validation_users", "early_stopping_patience"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.embedding_scale <= 0:
            raise InputError(f"embedding_scale: got {self.embedding_scale}, expected a number above 0")
        if self.embedding_scale != 1 and self.embedding_init == "mean":
            raise InputError(
                "embedding_scale: rows around the mean start from no vectors; choose another embedding_init"
            )
        if self.base_model_revision and self.base_model is None:
            raise InputError("base_model_revision: there is no base_model that it is of; name it, or leave both out")
