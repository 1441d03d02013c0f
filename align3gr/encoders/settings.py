"""Which encoders a run has, with which settings: the options of the embed stage."""

from dataclasses import dataclass, field

from align3gr.encoders.als import ALSEncoder
from align3gr.encoders.collaborative import CollaborativeEncoder, PPMIFactorization
from align3gr.encoders.semantic import TextEncoder, TfidfSVDEncoder
from align3gr.encoders.sentence_transformer import SentenceTransformerEncoder
from align3gr.errors import InputError

COLUMN = "column"
SEMANTIC, COLLABORATIVE = ("semantic",), ("collaborative",)
# Options that belong to some encoders only, and these.
TEXT_MODEL = ("semantic_model", "semantic_prompt", "normalize", "batch_size", "num_processes", "cache")
DIN = ("attention", "max_history", "mini_batch_l2", "epochs", "learning_rate")
APPLIES_TO = {
    "semantic_dim": (SEMANTIC, ("tfidf",)),
    **dict.fromkeys(TEXT_MODEL, (SEMANTIC, ("sentence-transformers",))),
    "collaborative_dim": (COLLABORATIVE, ("ppmi", "din", "als", "lightgcn")),
    **dict.fromkeys(DIN, (COLLABORATIVE, ("din",))),
    **dict.fromkeys(("item_vectors", "user_vectors"), ((*SEMANTIC, *COLLABORATIVE), (COLUMN,))),
}


@dataclass
class EncoderSettings:
    """Options of the embed stage: which encoders, and theirs.

    Raises:
        InputError: an option belongs to an encoder that was not chosen, or there is nothing to encode.
    """

    semantic: str = field(
        default="tfidf",
        metadata={"help": "Encoder of texts.", "choices": ["tfidf", "sentence-transformers", COLUMN, "none"]},
    )
    semantic_model: str = field(
        default="sentence-transformers/sentence-t5-base",
        metadata={"help": "Hub id or path of the sentence-transformers model."},
    )
    semantic_prompt: str = field(default="", metadata={"help": "Text before every text, where the model wants one."})
    normalize: bool = field(default=False, metadata={"help": "Scale the model's vectors to length 1."})
    batch_size: int = field(default=64, metadata={"help": "Texts in a batch of the model."})
    num_processes: int = field(default=1, metadata={"help": "Processes that encode texts side by side."})
    cache: str = field(default="", metadata={"help": "Folder of encoded texts; $ALIGN3GR_CACHE where it is empty."})
    semantic_dim: int = field(default=128, metadata={"help": "Width of the TF-IDF + SVD vectors."})
    collaborative: str = field(
        default="ppmi",
        metadata={"help": "Encoder of behaviour.", "choices": ["ppmi", "din", "als", "lightgcn", COLUMN, "none"]},
    )
    collaborative_dim: int = field(default=64, metadata={"help": "Width of the collaborative vectors."})
    attention: str = field(
        default="target", metadata={"help": "Pooling of the DIN.", "choices": ["target", "recency", "mean"]}
    )
    max_history: int = field(default=20, metadata={"help": "Latest items of a user that the DIN reads."})
    epochs: int = field(default=20, metadata={"help": "Most epochs of the DIN; it stops where its AUC is flat."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Learning rate of the DIN."})
    mini_batch_l2: float = field(default=1e-3, metadata={"help": "Mini-batch-aware regularisation of the DIN."})
    item_vectors: str = field(default="", metadata={"help": "Parquet of item_id and vector, for 'column'."})
    user_vectors: str = field(default="", metadata={"help": "Parquet of user_id and vector, for 'column'."})
    seed: int = field(default=42, metadata={"help": "Seed of whatever is learnt or factorised."})

    def __post_init__(self) -> None:
        chosen = (self.semantic, self.collaborative)
        if chosen == ("none", "none"):
            raise InputError("collaborative: 'none' with semantic 'none' leaves no features; keep one of them")
        for name, (kinds, encoders) in APPLIES_TO.items():
            if getattr(self, name) != getattr(EncoderSettings, name) and not self.uses(name):
                got = " and ".join(f"{kind} '{getattr(self, kind)}'" for kind in kinds)
                raise InputError(f"{name}: applies to {' or '.join(kinds)} '{' or '.join(encoders)}' only, got {got}")
        if self.collaborative_dim < 1 or self.semantic_dim < 1:
            raise InputError("semantic_dim, collaborative_dim: expected 1 or more; to leave a kind out, choose 'none'")
        if COLUMN in chosen and not (self.item_vectors and self.user_vectors):
            raise InputError("item_vectors, user_vectors: 'column' needs both; give two Parquet files")

    def uses(self, option: str) -> bool:
        """Whether a chosen encoder reads this option."""
        kinds, encoders = APPLIES_TO.get(option, ((), ()))
        return not kinds or any(getattr(self, kind) in encoders for kind in kinds)


def text_encoder(settings: EncoderSettings) -> TextEncoder:
    """The chosen encoder of texts; vectors of a column have none.

    Args:
        settings: which encoder, and its options.
    """
    if settings.semantic == "tfidf":
        return TfidfSVDEncoder(settings.semantic_dim, seed=settings.seed)
    return SentenceTransformerEncoder(
        settings.semantic_model,
        settings.batch_size,
        settings.num_processes,
        settings.semantic_prompt,
        settings.normalize,
        settings.cache or None,
    )


def collaborative_encoder(settings: EncoderSettings) -> CollaborativeEncoder:
    """The chosen encoder of behaviour, not trained yet; vectors of a column have none.

    Args:
        settings: which encoder, and its options.
    """
    dim, seed = settings.collaborative_dim, settings.seed
    if settings.collaborative == "din":
        from align3gr.encoders.din_trainer import DINEncoder, DINTrainingConfig

        training = DINTrainingConfig(learning_rate=settings.learning_rate, epochs=settings.epochs, seed=seed)
        model = {name: getattr(settings, name) for name in ("attention", "max_history", "mini_batch_l2")}
        return DINEncoder(dim, training=training, **model)
    if settings.collaborative == "lightgcn":
        from align3gr.encoders.lightgcn import LightGCNEncoder

        return LightGCNEncoder(dim, seed)
    return ALSEncoder(dim, seed) if settings.collaborative == "als" else PPMIFactorization(dim, seed)
