"""What every constrained search has in common: model, catalogue, tokens, one call, and exact log-probabilities."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from align3gr.decoding.candidates import LeafCandidates
from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.decoding.encoder_decoder_tree import EncoderDecoderTree, check_encoder_decoder
from align3gr.decoding.item_filter import ItemFilter, ItemSets
from align3gr.decoding.tree_decoder import PromptPrefix, PromptTree, check_model
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError
from align3gr.scid.vocabulary import NORMALIZER_FIELD

Normalizer = Literal["vocabulary", "level", "catalogue"]
NORMALIZERS: tuple[Normalizer, ...] = ("vocabulary", "level", "catalogue")

_SOFTMAX_BLOCK = 2**24  # logits turned to fp32 at a time: 64 MB, whatever vocabulary and batch


class ConstrainedSearch(ABC):
    """A way from prompts to scored items of a catalogue; [`ConstrainedBeamSearch`] is the usual one.

    Args:
        level_tokens: token id of each code of each level, -1 where a level is smaller. Shape: `(levels,
            codebook_size)`.

    Attributes:
        model: the model that is searched.
        trie: the catalogue, on the model's device.
        num_beams: the longest list that can be asked for.
        widths: prefixes kept after each level.
        normalizer: what log-probabilities are normalised over; see [`ConstrainedBeamSearch`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: SCIDTrie,
        level_tokens: np.ndarray | Tensor,
        num_beams: int,
        widths: tuple[int, ...],
        normalizer: Normalizer | None = None,
    ):
        _check_model(model)
        if num_beams < 1:
            raise InputError(f"num_beams: got {num_beams}, expected at least 1")
        if len(widths) != trie.levels or min(widths) < 1 or widths[-1] != num_beams:
            raise InputError(
                f"widths: got {list(widths)}, expected {trie.levels} positive numbers ending in num_beams={num_beams}"
            )
        self._normalizer_given = normalizer is not None
        normalizer = normalizer or _normalizer_of(model)
        if normalizer not in NORMALIZERS:
            raise InputError(f"normalizer: got {normalizer!r}, expected one of {', '.join(NORMALIZERS)}")
        self.model = model
        self.trie = trie.to(model.device)
        self.num_beams = num_beams
        self.widths = widths
        self.normalizer = normalizer
        self._level_tokens = level_tokens
        self._tokens = [row.to(model.device) for row in token_rows(level_tokens, trie)]
        _check_tokens(self._tokens, model)

    def search(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        allowed: ItemSets | None = None,
        denied: ItemSets | None = None,
        prefix: PromptPrefix | None = None,
    ) -> LeafCandidates:
        """Run the search; the model's mode (train or eval) is as before afterwards.

        With `allowed` or `denied` no prefix is followed under which no item is left, so as long as all `widths` are
        at least `k`, every list holds `k` items or all that the sets leave, however long they are.

        Args:
            input_ids: prompts, left-padded.
                Shape: `(batch, length)`.
            attention_mask: 1 for prompt tokens, 0 for padding; none means no padding.
                Shape: `(batch, length)`.
            allowed: item indices that alone may be shown, one set for all prompts or one each.
            denied: item indices that must not be shown, in the same form.
            prefix: what all prompts begin with, from [`ConstrainedSearch.prefix`]; it changes the time alone.

        Raises:
            InputError: the prompts are not left-padded or too long or begin otherwise than `prefix`, the sets are for
                another number of prompts, or the model's logits are not numbers.
        """
        device = self.model.device
        input_ids = input_ids.to(device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
        item_filter = None
        if allowed is not None or denied is not None:
            item_filter = ItemFilter(self.trie, len(input_ids), allowed, denied)
        with _evaluating(self.model):
            tree = self._tree(input_ids, mask, prefix)
            candidates = self._search(tree, input_ids, mask, item_filter)
        if candidates.scores.isnan().any():
            raise InputError("model: its logits are NaN, so nothing can be ranked; check the checkpoint and its dtype")
        return candidates

    def with_model(self, model: PreTrainedModel) -> Self:
        """The same search with another model over the same vocabulary, such as a later policy.

        Unless the search was made for a normaliser, it is the one that the new model was trained with.

        Raises:
            InputError: the model cannot run a tree of tokens, or has too few of them.
        """
        _check_model(model)
        twin = copy.copy(self)
        twin.model, twin.trie = model, self.trie.to(model.device)
        if not self._normalizer_given:
            twin.normalizer = _normalizer_of(model)
        twin._tokens = [row.to(model.device) for row in self._tokens]
        _check_tokens(twin._tokens, model)
        return twin

    @property
    def likelihood(self) -> CatalogueLikelihood | None:
        """For training by the probabilities of this search, where they are normalised over the catalogue."""
        return CatalogueLikelihood(self.trie, self._level_tokens) if self.normalizer == "catalogue" else None

    def prefix(self, tokens: Sequence[int]) -> PromptPrefix:
        """Compute what prompts have in common at the beginning; for `search`, until the model is trained further."""
        with _evaluating(self.model):
            return PromptPrefix.of(self.model, tokens)

    def _tree(self, input_ids: Tensor, attention_mask: Tensor, prefix: PromptPrefix | None) -> PromptTree:
        if not self.model.config.is_encoder_decoder:
            return PromptTree(self.model, input_ids, attention_mask, self.trie.levels - 1, prefix)
        if prefix is not None:
            raise InputError("prefix: the encoder reads a prompt as a whole; leave prefix out")
        return EncoderDecoderTree(self.model, input_ids, attention_mask)

    @abstractmethod
    def _search(
        self, tree: PromptTree, input_ids: Tensor, attention_mask: Tensor, item_filter: ItemFilter | None
    ) -> LeafCandidates:
        """The search itself, from the tree of the prompts, model in eval mode, all tensors on its device."""

    def _log_probs(self, level: int, logits: Tensor, tokens: Tensor, nodes: Tensor) -> Tensor:
        """Log-probabilities in fp32 of `tokens` `(batch, nodes, n)` behind `nodes` `(batch, nodes)` of depth `level`.

        `logits` are `(batch, nodes, vocabulary)`.
        """
        if self.normalizer == "catalogue":
            children = self.trie.children(level, nodes)  # all of the catalogue, whatever may be shown
            possible = logits.gather(-1, self._tokens[level][self.trie.codes(level + 1, children)]).float()
            normaliser = possible.masked_fill(children < 0, float("-inf")).logsumexp(dim=-1, keepdim=True)
            return logits.gather(-1, tokens).float() - normaliser.masked_fill(nodes.unsqueeze(-1) < 0, 0.0)
        if self.normalizer == "level":
            normaliser = logits[..., self._tokens[level]].float().logsumexp(dim=-1, keepdim=True)
            return logits.gather(-1, tokens).float() - normaliser
        # By blocks: fp32 copies of batch x nodes x vocabulary would be the peak of the memory.
        rows = max(1, _SOFTMAX_BLOCK // logits.shape[-1])
        pairs = zip(logits.flatten(0, 1).split(rows), tokens.flatten(0, 1).split(rows), strict=True)
        parts = [block.float().log_softmax(dim=-1).gather(-1, wanted) for block, wanted in pairs]
        return torch.cat(parts).view_as(tokens)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    # Module by module: frozen parts (an adapter's base, say) may be in another mode than the model.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _normalizer_of(model: PreTrainedModel) -> Normalizer:
    """What the model was trained with."""
    return getattr(model.config, NORMALIZER_FIELD, NORMALIZERS[0])


def _check_model(model: PreTrainedModel) -> None:
    check_model(model)
    if model.config.is_encoder_decoder:
        check_encoder_decoder(model)


def token_rows(level_tokens: np.ndarray | Tensor, trie: SCIDTrie) -> list[Tensor]:
    """One row of token ids a level, as long as its codebook.

    Raises:
        InputError: the table is not of this trie's levels and sizes.
    """
    table = torch.as_tensor(level_tokens)
    if table.ndim != 2 or table.shape[0] != trie.levels or table.shape[1] < max(trie.codebook_sizes):
        raise InputError(
            f"level_tokens: got shape {tuple(table.shape)}, expected ({trie.levels}, {max(trie.codebook_sizes)}) "
            "or wider to fit the catalogue; the tokenizer was made for other codes"
        )
    return [row[:size].long() for row, size in zip(table, trie.codebook_sizes, strict=True)]


def _check_tokens(rows: list[Tensor], model: PreTrainedModel) -> None:
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    for level, row in enumerate(rows):
        if row.min() < 0 or row.max() >= vocabulary:
            raise InputError(
                f"level_tokens: level {level} has ids {int(row.min())} to {int(row.max())}, the model has "
                f"{vocabulary} tokens; resize its embeddings to the tokenizer"
            )
        if row.unique().numel() != row.numel():
            raise InputError(f"level_tokens: level {level} names a token twice; each code needs its own")
