"""Beam search over the SCIDs of a catalogue: exact scores, nothing outside the catalogue, each prompt computed once.

Decisions:

* The loop is our own and calls `model(...)`, so no `generation_config` (forced, suppressed or banned tokens,
  penalties) can loosen or distort it.
* A score is the sum of the model's exact log-probabilities, normalised over the whole vocabulary, unless the model was
  trained otherwise. Normalising over the tokens of the level alone, or over those that the catalogue has at a prefix,
  gives another score and another order; it is an option, never a shortcut.
* Only children that exist are scored, so the cost of a step follows the catalogue, not beams x codebook.
* The last level is not cut to the beam: see [`LeafCandidates`].
* Beams are kept in code order, so equal scores are broken by code order on every device.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from align3gr.decoding.candidates import BeamOutput, LeafCandidates, stable_topk
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.decoding.item_filter import ItemFilter
from align3gr.decoding.rankings import Rankings, generate_rankings
from align3gr.decoding.search import ConstrainedSearch, Normalizer
from align3gr.decoding.tree_decoder import PromptTree
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

__all__ = [
    "BeamOutput",
    "ConstrainedBeamSearch",
    "LeafCandidates",
    "Rankings",
    "catalogue_search",
    "generate_rankings",
]


class ConstrainedBeamSearch(ConstrainedSearch):
    """Finds the most probable items of a catalogue for a batch of prompts.

    Args:
        model: any Hugging Face causal LM, or T5, with sdpa or eager attention, plain or with a LoRA adapter, fp32 or
            bf16.
        trie: the catalogue; it is moved to the model's device.
        level_tokens: token id of each code of each level, -1 where a level is smaller.
            Shape: `(levels, codebook_size)`.
        num_beams: prefixes kept at each level, and the longest list that can be asked for (20 in Align3GR).
        widths: prefixes kept after each level, the last one `num_beams`, in place of `num_beams` everywhere. A wider
            level before the last, such as `[20, 48, 20]` or `[40, 20, 20]`, finds more of the true best items for
            little time; which level is the narrow one depends on catalogue and model.
        normalizer: `"vocabulary"` for exact log-probabilities, `"level"` to normalise over the tokens of the level,
            `"catalogue"` over the tokens by which some item goes on, so that the probabilities of all items sum to
            one. None takes what the model was trained with ([`CatalogueLikelihood`]), the vocabulary as a rule.

    Raises:
        InputError: the model cannot run a tree of tokens ([`check_model`]), or the arguments do not fit each other.

    Example:

    ```python
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, (256, 256, 256)), vocabulary.item_tokens)
    candidates = search.search(input_ids, attention_mask)
    allowed, masked = candidates.top(10), candidates.top(10, denied=histories)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: SCIDTrie,
        level_tokens: np.ndarray | Tensor,
        num_beams: int = 20,
        widths: Sequence[int] | None = None,
        normalizer: Normalizer | None = None,
    ):
        widths = tuple(widths) if widths is not None else (num_beams,) * trie.levels
        super().__init__(model, trie, level_tokens, num_beams, widths, normalizer)

    def _search(
        self, tree: PromptTree, input_ids: Tensor, attention_mask: Tensor, item_filter: ItemFilter | None
    ) -> LeafCandidates:
        trie = self.trie
        batch = input_ids.shape[0]
        nodes = torch.zeros(batch, 1, dtype=torch.long, device=input_ids.device)  # the root
        scores = torch.zeros(batch, 1, device=input_ids.device)
        for level in range(trie.levels):
            children = trie.children(level, nodes)  # (batch, beams, fan)
            if item_filter is not None:
                children = children.masked_fill(~item_filter.alive(level + 1, children), -1)
            fan = children.shape[-1]
            tokens = self._tokens[level][trie.codes(level + 1, children)]
            step = self._log_probs(level, tree.logits, tokens, nodes)
            step = (step + scores.unsqueeze(-1)).masked_fill(children < 0, float("-inf")).flatten(1)
            children, tokens = children.flatten(1), tokens.flatten(1)  # (batch, beams * fan), in code order
            if level == trie.levels - 1:
                break
            width = min(self.widths[level], trie.num_nodes[level], step.shape[1])
            places = stable_topk(step, width)[1].sort(dim=-1).values
            nodes, scores = children.gather(1, places), step.gather(1, places)
            self._kept(level + 1, nodes, scores)
            tree.extend(tokens.gather(1, places), parents=places // fan)
        return LeafCandidates(trie, children, step, self.num_beams, item_filter)

    def _kept(self, depth: int, nodes: Tensor, scores: Tensor) -> None:
        """For subclasses that watch the beam narrow: the prefixes kept at each depth before the last.

        Shape: `nodes` and `scores` `(batch, beams)`; -1 and -inf where a row has fewer.
        """


def catalogue_search(
    model: PreTrainedModel,
    trie: SCIDTrie,
    level_tokens: np.ndarray | Tensor,
    num_beams: int | Literal["all"] = 20,
    widths: Sequence[int] | None = None,
) -> ConstrainedSearch:
    """A beam search, or for `num_beams="all"` one that scores every item.

    Args:
        model: as for [`ConstrainedBeamSearch`], and so are the others.
        trie: the catalogue.
        level_tokens: token id of each code of each level. Shape: `(levels, codebook_size)`.
        num_beams: beams, or `"all"`.
        widths: beams after each level.

    Raises:
        InputError: as for [`ConstrainedBeamSearch`], or there are `widths` for a search without beams.
    """
    if num_beams != "all":
        return ConstrainedBeamSearch(model, trie, level_tokens, num_beams, widths)
    if widths is not None:
        raise InputError('widths: there are no beams where num_beams="all"; leave one of them out')
    return ExhaustiveSearch(model, trie, level_tokens)
