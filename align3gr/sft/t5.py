"""A small T5 that is trained from scratch: the backbone of TIGER (Rajput et al. 2023), LETTER-TIGER and P5."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration, TrainingArguments
from trl import SFTConfig

from align3gr.errors import InputError
from align3gr.sft.lora import LoRAArguments
from align3gr.sft.sft_arguments import SFTArguments

ENCODER_OBJECTIVES = ("prefix", "prefix_lm")
# Options of `SFTConfig` beyond those of the Trainer that count here too.
_SHARED_OPTIONS = {"max_length", "pad_to_multiple_of"}


@dataclass
class T5Arguments:
    """Whether the backbone is an encoder-decoder, and what its shape and loss have beside those of a Llama."""

    architecture: str = field(
        default="llama",
        metadata={
            "help": "llama: a causal LM. t5: an encoder-decoder, from scratch or from base_model; its embeddings are "
            "always tied.",
            "choices": ["llama", "t5"],
        },
    )
    decoder_layers: int = field(
        default=0, metadata={"help": "T5 from scratch: layers of the decoder; 0 takes num_layers."}
    )
    head_size: int = field(
        default=0, metadata={"help": "T5 from scratch: width of an attention head; 0 takes hidden_size / num_heads."}
    )
    initializer_factor: float = field(
        default=1.0,
        metadata={
            "help": "T5 from scratch: scale of the first weights; 1 is T5's, whose embeddings of deviation 1 Adam "
            "takes long to move."
        },
    )
    loss_temperature: float = field(
        default=1.0,
        metadata={"help": "T5: divides the logits in training (LETTER's ranking-guided loss); 1 is plain likelihood."},
    )

    @property
    def encoder_decoder(self) -> bool:
        """Whether the model is a T5."""
        return self.architecture == "t5"

    def recorded(self) -> dict[str, Any]:
        """What a manifest holds of these options: nothing for a causal LM, which they do not change."""
        return asdict(self) if self.encoder_decoder else {}

    def check(self, arguments: SFTArguments, lora: LoRAArguments, training: SFTConfig) -> None:
        """Makes sure that no option is set that the chosen architecture does not look at.

        Raises:
            InputError: one is.
        """
        if not self.encoder_decoder:
            if arguments.objective == ENCODER_OBJECTIVES[1]:
                raise InputError(
                    "objective: prefix_lm is for architecture t5; a causal LM learns all items with every_item or tree"
                )
            for option in fields(self):
                if getattr(self, option.name) != option.default:
                    raise InputError(f"{option.name}: applies to architecture t5 only; leave it out")
            return
        if min(self.decoder_layers, self.head_size) < 0:
            raise InputError(
                f"decoder_layers, head_size: got {self.decoder_layers} and {self.head_size}, expected 0 or more"
            )
        if self.loss_temperature <= 0:
            raise InputError(f"loss_temperature: got {self.loss_temperature}, expected more than 0")
        if self.initializer_factor <= 0:
            raise InputError(f"initializer_factor: got {self.initializer_factor}, expected more than 0")
        if arguments.base_model is not None:
            for name in ("decoder_layers", "head_size", "initializer_factor"):
                if getattr(self, name) != getattr(T5Arguments, name):
                    raise InputError(f"{name}: base_model has a shape and weights of its own; leave it out")
        if arguments.objective not in ENCODER_OBJECTIVES:
            raise InputError(
                f"objective: got '{arguments.objective}', but an encoder reads each history as a whole; with "
                f"architecture t5 set objective: {' or '.join(ENCODER_OBJECTIVES)}"
            )
        if lora.use_lora:
            raise InputError("use_lora: adapters are for causal LMs; with architecture t5 set use_lora: false")
        trainers = {option.name for option in fields(TrainingArguments)}
        for option in fields(training):
            value = getattr(training, option.name)
            if option.name not in trainers | _SHARED_OPTIONS and value not in (None, option.default):
                raise InputError(f"{option.name}: got {value!r}, it applies to causal LMs only; leave it out")


def small_t5(
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    tokenizer: PreTrainedTokenizerBase,
    t5: T5Arguments,
    seed: int,
) -> T5ForConditionalGeneration:
    """A T5 with random weights for this tokenizer, without dropout; see `add_dropout`.

    Args:
        hidden_size, intermediate_size, num_layers, num_heads: width, feed-forward width, layers and heads.
        tokenizer: its pad token begins every answer, as in T5.
        t5: `decoder_layers`, `head_size` and `initializer_factor` count.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=hidden_size,
            d_ff=intermediate_size,
            d_kv=t5.head_size or hidden_size // num_heads,
            num_layers=num_layers,
            num_decoder_layers=t5.decoder_layers or num_layers,
            num_heads=num_heads,
            dropout_rate=0.0,
            initializer_factor=t5.initializer_factor,
            **special,
        )
    )
