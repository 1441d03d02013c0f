"""Dropout of models from scratch: on embeddings and on what each block adds, quick on a CPU."""

from typing import Any

from torch import Tensor, empty, int16, int64, nn
from torch.nn import functional
from transformers import PreTrainedModel

from align3gr.errors import InputError

# A probability is rounded to a multiple of 1 / 65,536, so that one draw of the generator serves four numbers.
_STEPS = 2**16


def dropout(values: Tensor, probability: float) -> Tensor:
    """Sets numbers to 0 with this probability and scales the others, so that the mean stays.

    `torch.nn.functional.dropout` asks the generator once a number, which on a CPU takes a quarter of a small T5's
    training. Here 64 random bits decide on four numbers; other devices take torch's own.

    Args:
        values: any shape.
        probability: in [0, 1).
    """
    if values.device.type != "cpu":
        return functional.dropout(values, probability)
    words = empty((values.numel() + 3) // 4, dtype=int64).random_(-(2**63), None)
    draws = words.view(int16)[: values.numel()].view(values.shape)  # uniform in [-32,768, 32,767]
    dropped = round(probability * _STEPS)
    kept = draws >= dropped - _STEPS // 2
    return values * (kept.to(values.dtype) * (_STEPS / (_STEPS - dropped)))


def add_dropout(model: PreTrainedModel, probability: float) -> None:
    """Dropout on the embeddings and on what each block adds to the residual stream, in training mode only.

    Llama has none but in the attention, T5 much of it elsewhere. Hooks leave the model's class and its saved form as
    they are.

    Args:
        model: a Llama or its kin, or a T5 without dropout of its own.
        probability: of a number to be dropped.

    Raises:
        InputError: it is no probability.
    """
    if not 0 <= probability < 1:
        raise InputError(f"dropout must lie in [0, 1), got {probability}")
    if probability == 0:
        return

    def drop(module: nn.Module, inputs: tuple, output):
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (dropout(output[0], probability), *output[1:])
        return dropout(output, probability)

    for module in _dropped(model):
        module.register_forward_hook(drop)


def _dropped(model: Any) -> set[nn.Module]:
    """Embeddings, attentions and feed-forward nets."""
    if not model.config.is_encoder_decoder:
        blocks = [part for layer in model.get_decoder().layers for part in (layer.self_attn, layer.mlp)]
        return {model.get_input_embeddings(), *blocks}
    stacks = (model.encoder, model.decoder)
    names = ("SelfAttention", "EncDecAttention", "DenseReluDense")  # each of T5's sublayers has one of them
    sublayers = [sublayer for stack in stacks for block in stack.block for sublayer in block.layer]
    blocks = [getattr(sublayer, name) for sublayer in sublayers for name in names if hasattr(sublayer, name)]
    return {*(stack.embed_tokens for stack in stacks), *blocks}
