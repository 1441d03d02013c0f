"""Beam search over the SCIDs of a catalogue: exact scores, nothing outside the catalogue, each prompt computed once.

Decisions:

* The loop is our own and calls `model(...)`, so no `generation_config` (forced, suppressed or banned tokens,
  penalties) can loosen or distort it.
* A score is the sum of the model's exact log-probabilities, normalised over the whole vocabulary. Normalising over the
  tokens of the level alone gives another score and another order; it is an option, never a shortcut.
* Only children that exist are scored, so the cost of a step follows the catalogue, not beams x codebook.
* The last level is not cut to the beam: see [`LeafCandidates`].
* Beams are kept in code order, so equal scores are broken by code order on every device.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from align3gr.decoding.candidates import BeamOutput, LeafCandidates, stable_topk
from align3gr.decoding.item_filter import ItemFilter, ItemSets
from align3gr.decoding.rankings import Rankings, generate_rankings
from align3gr.decoding.tree_decoder import PromptTree, check_model
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

Normalizer = Literal["vocabulary", "level"]

__all__ = ["BeamOutput", "ConstrainedBeamSearch", "LeafCandidates", "Rankings", "generate_rankings"]

_SOFTMAX_BLOCK = 2**24  # logits turned to fp32 at a time: 64 MB, whatever vocabulary and batch


class ConstrainedBeamSearch:
    """Finds the most probable items of a catalogue for a batch of prompts.

    Args:
        model: any Hugging Face causal LM with sdpa or eager attention, plain or with a LoRA adapter, fp32 or bf16.
        trie: the catalogue; it is moved to the model's device.
        level_tokens: token id of each code of each level, -1 where a level is smaller.
            Shape: `(levels, codebook_size)`.
        num_beams: prefixes kept at each level, and the longest list that can be asked for (20 in Align3GR).
        widths: prefixes kept after each level, the last one `num_beams`, in place of `num_beams` everywhere. A wider
            level before the last, such as `[20, 48, 20]` or `[40, 20, 20]`, finds more of the true best items for
            little time; which level is the narrow one depends on catalogue and model.
        normalizer: `"vocabulary"` for exact log-probabilities, `"level"` to normalise over the tokens of the level.

    Raises:
        InputError: the model cannot run a tree of tokens ([`check_model`]), or the arguments do not fit each other.

    Example:

    ```python
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, (256, 256, 256)), vocabulary.item_tokens)
    candidates = search.search(input_ids, attention_mask)
    allowed, masked = candidates.top(10), candidates.top(10, deny=histories)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: SCIDTrie,
        level_tokens: np.ndarray | Tensor,
        num_beams: int = 20,
        widths: Sequence[int] | None = None,
        normalizer: Normalizer = "vocabulary",
    ):
        check_model(model)
        if num_beams < 1:
            raise InputError(f"num_beams: got {num_beams}, expected at least 1")
        widths = tuple(widths) if widths is not None else (num_beams,) * trie.levels
        if len(widths) != trie.levels or min(widths) < 1 or widths[-1] != num_beams:
            raise InputError(
                f"widths: got {list(widths)}, expected {trie.levels} positive numbers ending in num_beams={num_beams}"
            )
        if normalizer not in ("vocabulary", "level"):
            raise InputError(f'normalizer: got {normalizer!r}, expected "vocabulary" or "level"')
        self.model = model
        self.trie = trie.to(model.device)
        self.num_beams = num_beams
        self.widths = widths
        self.normalizer = normalizer
        self._tokens = [row.to(model.device) for row in _check_tokens(level_tokens, trie, model)]

    def search(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        allowed: ItemSets | None = None,
        denied: ItemSets | None = None,
    ) -> LeafCandidates:
        """Run the search; the model's mode (train or eval) is as before afterwards.

        With `allowed` or `denied` no beam follows a prefix under which no item is left, so as long as all `widths` are
        at least `k`, every list holds `k` items or all that the sets leave, however long they are.

        Args:
            input_ids: prompts, left-padded.
                Shape: `(batch, length)`.
            attention_mask: 1 for prompt tokens, 0 for padding; none means no padding.
                Shape: `(batch, length)`.
            allowed: item indices that alone may be shown, one set for all prompts or one each.
            denied: item indices that must not be shown, in the same form.

        Raises:
            InputError: the prompts are not left-padded or too long, the sets are for another number of prompts, or
                the model's logits are not numbers.
        """
        device = self.model.device
        input_ids = input_ids.to(device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
        item_filter = None
        if allowed is not None or denied is not None:
            item_filter = ItemFilter(self.trie, len(input_ids), allowed, denied)
        with _evaluating(self.model):
            return self._search(input_ids, mask, item_filter)

    def _search(self, input_ids: Tensor, attention_mask: Tensor, item_filter: ItemFilter | None) -> LeafCandidates:
        trie = self.trie
        tree = PromptTree(self.model, input_ids, attention_mask, max_new_tokens=trie.levels - 1)
        batch = input_ids.shape[0]
        nodes = torch.zeros(batch, 1, dtype=torch.long, device=input_ids.device)  # the root
        scores = torch.zeros(batch, 1, device=input_ids.device)
        for level in range(trie.levels):
            children = trie.children(level, nodes)  # (batch, beams, fan)
            if item_filter is not None:
                children = children.masked_fill(~item_filter.alive(level + 1, children), -1)
            fan = children.shape[-1]
            tokens = self._tokens[level][trie.codes(level + 1, children)]
            step = self._log_probs(level, tree.logits, tokens)
            step = (step + scores.unsqueeze(-1)).masked_fill(children < 0, float("-inf")).flatten(1)
            children, tokens = children.flatten(1), tokens.flatten(1)  # (batch, beams * fan), in code order
            if level == trie.levels - 1:
                break
            width = min(self.widths[level], trie.num_nodes[level], step.shape[1])
            places = stable_topk(step, width)[1].sort(dim=-1).values
            nodes, scores = children.gather(1, places), step.gather(1, places)
            tree.extend(tokens.gather(1, places), parents=places // fan)
        if step.isnan().any():
            raise InputError("model: its logits are NaN, so nothing can be ranked; check the checkpoint and its dtype")
        return LeafCandidates(trie, children, step, self.num_beams, item_filter)

    def _log_probs(self, level: int, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities of `tokens` `(batch, beams, fan)` under `logits` `(batch, beams, vocabulary)`, in fp32."""
        if self.normalizer == "level":
            normaliser = logits[..., self._tokens[level]].float().logsumexp(dim=-1, keepdim=True)
            return logits.gather(-1, tokens).float() - normaliser
        # By blocks: fp32 copies of batch x beams x vocabulary would be the peak of the memory.
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


def _check_tokens(level_tokens: np.ndarray | Tensor, trie: SCIDTrie, model: PreTrainedModel) -> list[Tensor]:
    """One row of token ids a level, as long as its codebook."""
    table = torch.as_tensor(level_tokens)
    if table.ndim != 2 or table.shape[0] != trie.levels or table.shape[1] < max(trie.codebook_sizes):
        raise InputError(
            f"level_tokens: got shape {tuple(table.shape)}, expected ({trie.levels}, {max(trie.codebook_sizes)}) "
            "or wider to fit the catalogue; the tokenizer was made for other codes"
        )
    rows = [row[:size].long() for row, size in zip(table, trie.codebook_sizes, strict=True)]
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    for level, row in enumerate(rows):
        if row.min() < 0 or row.max() >= vocabulary:
            raise InputError(
                f"level_tokens: level {level} has ids {int(row.min())} to {int(row.max())}, the model has "
                f"{vocabulary} tokens; resize its embeddings to the tokenizer"
            )
        if row.unique().numel() != row.numel():
            raise InputError(f"level_tokens: level {level} names a token twice; each code needs its own")
    return rows
