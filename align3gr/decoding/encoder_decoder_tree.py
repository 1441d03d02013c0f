"""The same tree for encoder-decoder models of the T5 kind: the encoder sees a prompt once, the decoder holds the tree.

T5 takes no position ids; its decoder adds a bias by the distance of two tokens in the sequence. Where beams are
further tokens of one row, that is not their distance in the tree. The mask makes up for it: it may be a number for
each head, query and key, and here it is the bias of the tree's distance less that of the sequence's. Tokens that see
each other are one path, so the distance in the tree is the number of visible tokens behind the key up to the query.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from align3gr.decoding.tree_decoder import PromptTree
from align3gr.errors import InputError


def check_encoder_decoder(model: PreTrainedModel) -> None:
    """Refuse an encoder-decoder model whose decoder cannot run a tree of tokens.

    Raises:
        InputError: its decoder is not one with a single table of relative position biases, such as T5's, or it has no
            token to begin with.
    """
    name = type(model).__name__
    if len(_bias_modules(model)) != 1:
        raise InputError(
            f"model: {name} cannot decode a tree of tokens: its decoder has no relative position bias that all layers "
            "share; use T5 or mT5, or a decoder such as Llama"
        )
    if getattr(model.config, "decoder_start_token_id", None) is None:
        raise InputError(f"model: {name} has no decoder_start_token_id in its config; set it, as in training")


def _bias_modules(model: PreTrainedModel) -> list[Any]:
    modules: list[Any] = list(model.get_decoder().modules())
    return [
        module
        for module in modules
        if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias")
    ]


class EncoderDecoderTree(PromptTree):
    """A [`PromptTree`] whose prompts go through the encoder; the decoder begins with its start token.

    Args:
        model: a model that passed [`check_encoder_decoder`].
        input_ids: prompts, padded on either side.
            Shape: `(batch, length)`.
        attention_mask: 1 for prompt tokens, 0 for padding.
            Shape: `(batch, length)`.

    Raises:
        InputError: a prompt is empty, or the shapes differ.
    """

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor):
        shapes = tuple(input_ids.shape), tuple(attention_mask.shape)
        if input_ids.ndim != 2 or shapes[0] != shapes[1] or not bool((attention_mask > 0).any(1).all()):
            raise InputError(
                f"input_ids: got shape {shapes[0]} with a mask of {shapes[1]}, expected (batch, length) for both and "
                "a token in each prompt"
            )
        whole: Any = model
        self._model = model
        self._encoder_mask = attention_mask.long()
        hidden = whole.get_encoder()(input_ids=input_ids, attention_mask=self._encoder_mask).last_hidden_state
        self._encoded = BaseModelOutput(last_hidden_state=hidden)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())  # keys of the encoder are computed once
        self._bias = _bias_modules(model)[0]
        batch, device = len(input_ids), input_ids.device
        start = torch.full((batch, 1), whole.config.decoder_start_token_id, device=device)
        self._depth = torch.ones(batch, 1, dtype=torch.long, device=device)
        self._visible = torch.ones(batch, 1, 1, dtype=torch.bool, device=device)
        self.logits = self._run(start, self._visible, self._depth - 1, self._cache)

    def _run(self, tokens: Tensor, visible: Tensor, positions: Tensor, cache: Any) -> Tensor:
        model: Any = self._model
        return model(
            encoder_outputs=self._encoded,
            attention_mask=self._encoder_mask,
            decoder_input_ids=tokens,
            decoder_attention_mask=self._corrected_mask(visible),
            past_key_values=cache,
            use_cache=True,
        ).logits

    def _corrected_mask(self, visible: Tensor) -> Tensor:
        """What attention adds to its scores and to its own bias. Shape: `(batch, heads, tokens, all tokens)`."""
        queries, keys = visible.shape[1:]
        distance = visible.flip(-1).cumsum(-1).flip(-1) - 1  # of a visible key, in the tree
        longest = int(distance.max())
        last = self._bias.compute_bias(1, longest + 1, visible.device, past_seen_tokens=longest)  # (1, heads, 1, keys)
        by_distance = last[0, :, 0].flip(-1)  # (heads, longest + 1)
        added = self._bias.compute_bias(queries, keys, visible.device, past_seen_tokens=keys - queries)
        wanted = by_distance[:, distance.clamp_min(0)].transpose(0, 1)  # (batch, heads, queries, keys)
        lowest = torch.finfo(wanted.dtype).min
        return (wanted - added).masked_fill(~visible.unsqueeze(1), lowest)
