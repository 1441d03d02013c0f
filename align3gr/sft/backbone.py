"""The language model that learns to recommend: a small Llama from a config."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from align3gr.errors import InputError


@dataclass
class SmallLlamaConfig:
    """Shape of a Llama that is trained from scratch.

    Args:
        hidden_size, intermediate_size, num_layers, num_heads: as in Llama.
        tie_embeddings: whether input and output embeddings are one matrix.
        max_positions: longest sequence.
    """

    hidden_size: int = 128
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 4
    tie_embeddings: bool = False
    max_positions: int = 512

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")


def small_llama(config: SmallLlamaConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights for this tokenizer."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def add_dropout(model: PreTrainedModel, probability: float) -> None:
    """Dropout on the embeddings and on what each block adds to the residual stream, in training mode only.

    Llama has none but in the attention. Hooks leave the model's class and its saved form as they are.
    """
    if not 0 <= probability < 1:
        raise InputError(f"dropout must lie in [0, 1), got {probability}")
    if probability == 0:
        return

    def drop(module: nn.Module, inputs: tuple, output):
        if isinstance(output, tuple):
            return (F.dropout(output[0], probability, module.training), *output[1:])
        return F.dropout(output, probability, module.training)

    model.get_input_embeddings().register_forward_hook(drop)
    for layer in model.get_decoder().layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
