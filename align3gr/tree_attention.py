"""Attention masks that make a tree of one row: which models can follow them, and the form that each takes.

A token of a tree sees its own ancestors alone. A 4D mask says so, explicit position ids put branches side by side, and
every hidden state is the one that the branch would have given as a sequence of its own.
"""

from typing import Any

import torch
from torch import Tensor

from align3gr.errors import InputError

# Eager adds its mask to the scores, SDPA takes a boolean one. FlashAttention cannot express a tree, and flex attention
# wants a BlockMask in place of a tensor.
TREE_ATTENTION = ("eager", "sdpa")


def tree_attention(model: Any, length: int, otherwise: str) -> str:
    """Name of the model's attention, once it is known that it can follow a tree mask over `length` tokens.

    Args:
        model: A causal LM, plain, with adapters or wrapped by a launcher.
        length: Tokens of the longest row, 0 where it is not known yet.
        otherwise: What a person can do who has to keep this model; the last words of every message.

    Raises:
        InputError: It cannot; the message names the settings that can.
    """
    while hasattr(model, "module"):  # DDP, FSDP and DeepSpeed keep the model there
        model = model.module
    config = model.config.get_text_config()
    attention = config._attn_implementation
    if attention not in TREE_ATTENTION:
        raise InputError(
            f"attn_implementation={attention!r} cannot follow the tree mask of a shared prompt; load the model with "
            f"attn_implementation='sdpa', or {otherwise}"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    # A 4D mask replaces the sliding one, and layers that are no attention (linear, convolution) see no mask at all.
    if kinds - {"full_attention", "sliding_attention"}:
        raise InputError(
            f"{config.model_type} has layers {sorted(kinds)}, which ignore the tree mask of a shared prompt; "
            f"{otherwise}"
        )
    slides = "sliding_attention" in kinds or getattr(config, "layer_types", None) is None
    if slides and window and getattr(config, "use_sliding_window", True) and length > window:
        raise InputError(
            f"rows of {length} tokens exceed the model's sliding window of {window}, which a tree mask would switch "
            f"off; shorten the prompts or {otherwise}"
        )
    return attention


def tree_mask(visible: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """The mask in the form that the attention takes.

    Args:
        visible: True where a token sees another. Every token must see something, at least itself: a row without
            anything to see is NaN in SDPA.
            Shape: `(batch, 1, length, length)`.
        attention: What [`tree_attention`] named. Eager with a boolean mask would be silently wrong.
        dtype: Of the model's weights.
    """
    if attention == "sdpa":
        return visible
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )
