"""What is trained, and how; the numbers of parameters that follow."""

from dataclasses import dataclass

from align3gr.errors import InputError
from align3gr.estimate.shape import MODULES, ModelShape

PRECISIONS = ("fp32", "bf16")
OPTIMIZERS = {"adamw_torch": 2, "sgd": 0}  # numbers kept for each that trains
LOSSES = ("tiled", "full")
NEW_TOKENS = ("trainable_token_indices", "modules_to_save")


@dataclass(frozen=True)
class LoRA:
    """An adapter in place of all weights, as `align3gr.sft.lora.LoRAArguments` has it.

    Args:
        rank: of each adapted module.
        targets: modules of a block, or `all-linear`.
        new_tokens: how the rows of SCID tokens train.
        dropout: whether there is dropout in front of the adapter.

    Raises:
        InputError: a value that does not exist.
    """

    rank: int = 8
    targets: tuple[str, ...] = ("all-linear",)
    new_tokens: str = "trainable_token_indices"
    dropout: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora_r: got {self.rank}, expected 1 or more")
        if self.targets != ("all-linear",) and not (self.targets and set(self.targets) <= set(MODULES)):
            raise InputError(
                f"lora_target_modules: got {' '.join(self.targets)}, expected all-linear or some of "
                f"{', '.join(MODULES)}"
            )
        if self.new_tokens not in NEW_TOKENS:
            raise InputError(f"new_tokens: got {self.new_tokens!r}, choose from {', '.join(NEW_TOKENS)}")

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the matrices that get an adapter."""
        return MODULES if self.targets == ("all-linear",) else self.targets


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    Args:
        lora: the adapter; None where all weights train.
        new_tokens: rows of SCID tokens, which the shape's vocabulary holds already.
        precision: `bf16` is that of the Trainer's `bf16: true`. Without DeepSpeed weights that train are fp32 and
            matrix products bf16 (autocast), frozen weights under an adapter bf16. DeepSpeed makes all weights bf16 and
            keeps an fp32 copy of those that train.
        optimizer: `adamw_torch` with two states, `sgd` without any.
        batch_size: sequences on a device at once.
        length: tokens of a sequence, padding included.
        accumulation: batches a step.
        checkpointing: whether a block's activations are computed again in the backward pass.
        zero_stage: 0 for one process or DDP, 1 to 3 for DeepSpeed.
        processes: devices that train together.
        loss: `full` logits, as a model from scratch is trained here, or TRL's, `tiled`, as pretrained ones are.
        padded: whether a batch holds sequences of several lengths, so that attention takes a mask.

    Raises:
        InputError: a value that does not exist, or one that does not go with another.
    """

    lora: LoRA | None = None
    new_tokens: int = 0
    precision: str = "bf16"
    optimizer: str = "adamw_torch"
    batch_size: int = 1
    length: int = 512
    accumulation: int = 1
    checkpointing: bool = False
    zero_stage: int = 0
    processes: int = 1
    loss: str = "tiled"
    padded: bool = True

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: got {getattr(self, name)!r}, choose from {', '.join(known)}")
        for name in ("batch_size", "length", "accumulation", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.zero_stage not in (0, 1, 2, 3):
            raise InputError(f"zero_stage: got {self.zero_stage}, expected 0 (none), 1, 2 or 3")
        if self.zero_stage == 3 and self.lora and self.new_tokens and self.lora.new_tokens == NEW_TOKENS[0]:
            raise InputError(
                "new_tokens: trainable_token_indices does not train under ZeRO-3; use modules_to_save, or ZeRO-2"
            )

    @property
    def tokens(self) -> int:
        """Tokens on a device at once."""
        return self.batch_size * self.length

    @property
    def autocast(self) -> bool:
        """Whether matrix products are bf16 and weights that train are not."""
        return self.precision == "bf16" and not self.zero_stage

    @property
    def itemsize(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.precision == "bf16" else 4

    @property
    def stream_itemsize(self) -> int:
        """Bytes of a number between the blocks: fp32 where embeddings are, whatever products are made in."""
        return 4 if self.autocast and self.lora is None else self.itemsize


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Args:
        frozen: those of the model under an adapter.
        adapter: of the low-rank matrices.
        rows: of the new tokens alone (`trainable_token_indices`).
        matrices: of whole embedding matrices that train beside the frozen ones (`modules_to_save`).
        all_weights: where all train.
    """

    frozen: int = 0
    adapter: int = 0
    rows: int = 0
    matrices: int = 0
    all_weights: int = 0

    @property
    def trainable(self) -> int:
        """All parameters that train."""
        return self.adapter + self.rows + self.matrices + self.all_weights


def count(shape: ModelShape, setting: Setting) -> Parameters:
    """Parameters, frozen and trainable. A module of n inputs and m outputs has rank x (n + m) (Hu et al. 2021).

    Args:
        shape: of the model.
        setting: of the training.
    """
    if setting.lora is None:
        return Parameters(all_weights=shape.parameters)
    sides = sum(sum(shape.modules[name]) for name in setting.lora.modules)
    whole = setting.lora.new_tokens == "modules_to_save"
    rows = setting.new_tokens * shape.hidden_size * shape.embeddings
    return Parameters(
        frozen=shape.parameters,
        adapter=shape.num_layers * setting.lora.rank * sides,
        rows=0 if whole else rows,
        matrices=shape.embeddings * shape.embedding if whole and setting.new_tokens else 0,
    )
