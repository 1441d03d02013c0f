"""Running a causal LM over a prompt and a growing tree of continuations, each prompt computed once.

`generate` copies a prompt for every beam. Here the beams of a prompt are further tokens of the *same row*: a 4D
attention mask lets each see the prompt, its own ancestors and itself, and explicit position ids put every token of one
level at one position. The KV cache only grows; it is never copied or reordered. An unmodified Hugging Face decoder
computes exactly what it would compute for each continuation alone.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from align3gr.errors import InputError

_ATTENTION = ("sdpa", "eager")
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_ARGUMENTS = ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that cannot run a tree of tokens, and say why.

    An encoder-decoder model has to pass [`check_encoder_decoder`] as well.

    Raises:
        InputError: the attention implementation cannot take a 4D mask (FlashAttention, FlexAttention), the
            architecture has no explicit positions (ALiBi) or is not made of attention layers alone, or the adapter
            adds prompt tokens.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise InputError(f"model: got {type(model).__name__}, expected a transformers causal LM; unwrap it first")
    name = type(model).__name__
    text = config.get_text_config(decoder=True)
    attention = getattr(text, "_attn_implementation", None)
    if attention not in _ATTENTION:
        raise InputError(
            f"model: {name} runs {attention!r} attention, which cannot take the 4D mask of constrained beam search; "
            'load it with attn_implementation="sdpa"'
        )
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise InputError(f"model: {name} has a prompt-learning adapter, which takes no 4D mask; use LoRA")
    if config.is_encoder_decoder:
        return
    plain: Any = model
    if hasattr(plain, "get_base_model"):  # a PEFT model takes any argument and passes it on
        plain = plain.get_base_model()
    accepted = inspect.signature(plain.forward).parameters
    missing = [argument for argument in _ARGUMENTS if argument not in accepted]
    if missing or getattr(text, "alibi", False):
        lacks = f"its forward takes no {', '.join(missing)}" if missing else "it has no explicit position ids"
        raise InputError(f"model: {name} cannot decode a tree of tokens: {lacks}; use a decoder such as Llama or Qwen")
    others = set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        raise InputError(f"model: {name} has layers of type {sorted(others)}; only attention layers can decode a tree")


@dataclass(frozen=True)
class PromptPrefix:
    """Tokens that prompts have in common at the beginning, computed once; make it with [`PromptPrefix.of`].

    It holds what the model makes of the tokens now, so it is not for use after a further training step.

    Attributes:
        tokens: token ids.
            Shape: `(length,)`, on the model's device.
        states: keys and values of each layer.
            Shape: `(1, heads, length, head_dim)` each.
    """

    tokens: Tensor
    states: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: Sequence[int]) -> "PromptPrefix":
        """Run the model, in eval mode, over at least one token."""
        ids = torch.tensor([list(tokens)], device=model.device)
        cache: Any = DynamicCache()
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cls(ids[0], [(layer.keys, layer.values) for layer in cache.layers])

    def __len__(self) -> int:
        return len(self.tokens)


class PromptTree:
    """A batch of prompts and the tokens appended to them so far.

    Args:
        model: a causal LM that passed [`check_model`].
        input_ids: prompts, left-padded.
            Shape: `(batch, length)`.
        attention_mask: 1 for prompt tokens, 0 for padding.
            Shape: `(batch, length)`.
        max_new_tokens: depth that the tree may reach.
        prefix: what all prompts begin with, so that only the rest of each is computed.

    Attributes:
        logits: next-token logits of the latest tokens, `(batch, tokens, vocabulary)`: of the last prompt token after
            the constructor (`tokens` is 1), of the tokens just appended after [`PromptTree.extend`].

    Raises:
        InputError: the prompts are not left-padded, empty, or too long for the model's positions or sliding window, or
            one of them is not `prefix` and at least one more token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        prefix: PromptPrefix | None = None,
    ):
        present = attention_mask.bool()
        self._check_prompts(model, input_ids, present, max_new_tokens)
        self._model = model
        self._cache: Any = DynamicCache()
        # A single depth of the tree has one position: the number of tokens above it.
        self._depth = present.sum(dim=1, keepdim=True)  # (batch, 1)
        positions = (present.cumsum(dim=1) - 1).clamp_min(0)
        if prefix is not None:
            _check_prefix(prefix, input_ids, present)
            self._cache = DynamicCache([tuple(x.expand(len(present), -1, -1, -1) for x in kv) for kv in prefix.states])
            # Column by column the prompts go on behind the prefix: the rest of each row, still left-padded.
            cut = len(prefix)
            rest = present & (positions >= cut)
            present = torch.cat([present.new_ones(len(present), cut), rest[:, cut:]], dim=1)
            input_ids, positions = input_ids[:, cut:], positions[:, cut:]
        self._visible = present.unsqueeze(1)  # (batch, latest tokens, all tokens so far): what each latest token sees
        self.logits = self._forward(input_ids, present.long(), positions, self._cache, logits_to_keep=1)

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append one level of the tree and return its next-token logits.

        Args:
            tokens: token ids of the new level.
                Shape: `(batch, beams)`.
            parents: place of each token's parent among the latest tokens.
                Shape: `(batch, beams)`.

        Returns:
            Shape: `(batch, beams, vocabulary)`.
        """
        batch, beams = tokens.shape
        ancestors = self._visible.gather(1, parents.unsqueeze(-1).expand(-1, -1, self._visible.shape[-1]))
        itself = torch.eye(beams, dtype=torch.bool, device=tokens.device).expand(batch, -1, -1)
        self._visible = torch.cat([ancestors, itself], dim=-1)
        positions = self._depth.expand(-1, beams)
        self._depth = self._depth + 1
        self.logits = self._run(tokens, self._visible, positions, self._cache)
        return self.logits

    def branch(self, tokens: Tensor, visible: Tensor, depths: Tensor) -> Tensor:
        """Next-token logits of the same tree of tokens under each prompt; the tree itself stays as it is.

        The new tokens see the prompt and each other alone, so it is for trees that were not extended.

        Args:
            tokens: token ids.
                Shape: `(nodes,)`.
            visible: which of the new tokens each of them sees: its ancestors and itself.
                Shape: `(nodes, nodes)`, bool.
            depths: depth of each, 1 for those right below the prompt.
                Shape: `(nodes,)`.

        Returns:
            Shape: `(batch, nodes, vocabulary)`.
        """
        batch, nodes = self._depth.shape[0], tokens.shape[0]
        above = self._visible.expand(-1, nodes, -1)
        together = torch.cat([above, visible.expand(batch, -1, -1)], dim=-1)
        return self._run(tokens.expand(batch, -1), together, self._depth + depths - 1, _twin(self._cache))

    def twin(self) -> "PromptTree":
        """The same tree, to be extended otherwise, without another run of the model."""
        twin = copy.copy(self)
        twin._cache = _twin(self._cache)
        return twin

    def _run(self, tokens: Tensor, visible: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits of tokens that see what `visible` `(batch, tokens, cached and new tokens)` says."""
        mask = visible.unsqueeze(1)
        if self._model.config.get_text_config(decoder=True)._attn_implementation == "eager":
            # Eager attention adds the mask to its scores; a boolean one would be silently wrong.
            dtype = self._model.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        return self._forward(tokens, mask, positions, cache, logits_to_keep=0)

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any, logits_to_keep: int) -> Tensor:
        return self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        ).logits

    @staticmethod
    def _check_prompts(model: PreTrainedModel, input_ids: Tensor, present: Tensor, max_new_tokens: int) -> None:
        if input_ids.ndim != 2 or input_ids.shape != present.shape or input_ids.shape[1] == 0:
            raise InputError(
                f"input_ids: got shape {tuple(input_ids.shape)} with a mask of {tuple(present.shape)}, "
                "expected (batch, length) for both, length at least 1"
            )
        if not bool(present[:, -1:].all() & (present[:, 1:] >= present[:, :-1]).all()):
            raise InputError("attention_mask: prompts must be left-padded and have a token each; pad on the left")
        text = model.config.get_text_config(decoder=True)
        longest = input_ids.shape[1] + max_new_tokens
        positions = getattr(text, "max_position_embeddings", None)
        if positions is not None and longest > positions:
            raise InputError(
                f"input_ids: prompt and SCID need {longest} positions, the model has {positions}; shorten the prompt"
            )
        window = getattr(text, "sliding_window", None)
        types = getattr(text, "layer_types", None)
        slides = getattr(text, "use_sliding_window", True) and (types is None or "sliding_attention" in types)
        if window is not None and longest > window and slides:
            raise InputError(
                f"input_ids: prompt and SCID need {longest} tokens, the model's sliding window holds {window}; "
                "shorten the prompt"
            )


def _check_prefix(prefix: PromptPrefix, input_ids: Tensor, present: Tensor) -> None:
    cut = len(prefix)
    first = (~present).sum(dim=1, keepdim=True) + torch.arange(cut, device=input_ids.device)
    fits = present.sum(dim=1) > cut
    if bool(fits.all()):
        fits = (input_ids.gather(1, first) == prefix.tokens).all(dim=1)
    if not bool(fits.all()):
        row = int((~fits).nonzero()[0])
        raise InputError(f"prefix: prompt {row} is not its {cut} tokens and at least one more; leave prefix out")


def _twin(cache: Any) -> Any:
    """A cache that begins with the same tensors and grows by itself: layers replace their tensors when they grow."""
    if isinstance(cache, EncoderDecoderCache):
        return EncoderDecoderCache(_twin(cache.self_attention_cache), cache.cross_attention_cache)
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
