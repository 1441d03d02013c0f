"""Every item of the catalogue scored: the true top-k, not what a beam finds of it.

The prompt is computed once; the distinct prefixes of all SCIDs are tokens of a tree over it, computed block by block.
A block holds neighbouring prefixes and their ancestors, sees the prompt and itself, and is forgotten. Time goes with
the number of prefixes, so it is for small catalogues, short lists of allowed items, and as the truth beside a beam.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from align3gr.decoding.candidates import LeafCandidates
from align3gr.decoding.item_filter import ItemFilter
from align3gr.decoding.search import ConstrainedSearch, Normalizer
from align3gr.decoding.tree_decoder import PromptTree
from align3gr.decoding.trie import SCIDTrie

_BLOCK_TOKENS = 4096  # of one forward: more is slower on a CPU, less does not fill a GPU
_BLOCK_LOGITS = 2**27  # of one forward: 512 MB in fp32


class ExhaustiveSearch(ConstrainedSearch):
    """Scores all items, or all allowed ones, for a batch of prompts; lists may be as long as the catalogue.

    Scores take 4 bytes an item and prompt. With `allowed` or `denied` only prefixes that lead to an item that some
    prompt of the batch may show are computed.

    Args:
        model, trie, level_tokens, normalizer: as for [`ConstrainedBeamSearch`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: SCIDTrie,
        level_tokens: np.ndarray | Tensor,
        normalizer: Normalizer | None = None,
    ):
        widths = (*trie.num_nodes[:-1], trie.num_items)
        super().__init__(model, trie, level_tokens, trie.num_items, widths, normalizer)

    def _search(
        self, tree: PromptTree, input_ids: Tensor, attention_mask: Tensor, item_filter: ItemFilter | None
    ) -> LeafCandidates:
        trie, batch = self.trie, len(input_ids)
        last = trie.levels - 1
        nodes = torch.arange(trie.num_nodes[last - 1] if last else 1, device=input_ids.device)
        if item_filter is not None:
            nodes = nodes[item_filter.alive(last, nodes.expand(batch, -1)).any(dim=0)]
        size = max(1, min(_BLOCK_TOKENS, _BLOCK_LOGITS // tree.logits.shape[-1]) // batch)
        blocks = [self._block(tree, block) for block in nodes.split(size) if len(block)]
        if not blocks:  # nothing may be shown to anyone
            blocks = [(nodes, tree.logits.new_empty(batch, 0, dtype=torch.float32))]
        leaves = torch.cat([leaves for leaves, _ in blocks]).expand(batch, -1)  # (batch, n), in code order
        scores = torch.cat([scores for _, scores in blocks], dim=1)
        if item_filter is not None:
            dead = ~item_filter.alive(trie.levels, leaves)
            leaves, scores = leaves.masked_fill(dead, -1), scores.masked_fill(dead, float("-inf"))
        return LeafCandidates(trie, leaves, scores, self.num_beams, item_filter)

    def _block(self, tree: PromptTree, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The leaves `(n,)` under `nodes` of depth `levels - 1`, ascending, and their scores `(batch, n)`."""
        trie, batch = self.trie, tree.logits.shape[0]
        depths = range(1, trie.levels)
        at = {trie.levels - 1: nodes}  # the block's nodes of each depth, ascending
        for depth in reversed(depths[1:]):
            at[depth - 1] = trie.parents(depth, at[depth]).unique_consecutive()
        at[0] = nodes.new_zeros(1)
        # Place of each node's parent among the block's nodes of the depth above.
        above = {depth: torch.searchsorted(at[depth - 1], trie.parents(depth, at[depth])) for depth in depths}
        logits = {0: tree.logits}
        if depths:
            logits |= self._branch(tree, at, above)
        scores = tree.logits.new_zeros(batch, 1, dtype=torch.float32)
        for depth in depths:
            every = self._tokens[depth - 1].expand(batch, len(at[depth - 1]), -1)
            step = self._log_probs(
                depth - 1, logits[depth - 1], every, at[depth - 1].expand(batch, -1)
            )  # (batch, nodes above, codebook)
            scores = scores[:, above[depth]] + step[:, above[depth], trie.codes(depth, at[depth])]
        children = trie.children(trie.levels - 1, nodes[None])  # (1, nodes, fan)
        tokens = self._tokens[-1][trie.codes(trie.levels, children)].expand(batch, -1, -1)
        last = self._log_probs(trie.levels - 1, logits[trie.levels - 1], tokens, nodes.expand(batch, -1))
        step = scores.unsqueeze(-1) + last
        there = children[0] >= 0
        return children[0][there], step[:, there]

    def _branch(self, tree: PromptTree, at: dict[int, Tensor], above: dict[int, Tensor]) -> dict[int, Tensor]:
        """Logits of the block's nodes by depth, from one forward."""
        sizes = [len(at[depth]) for depth in above]
        device = at[0].device
        visible = torch.eye(sum(sizes), dtype=torch.bool, device=device)
        start = 0
        for depth, size in zip(above, sizes, strict=True):
            if depth > 1:
                visible[start : start + size] |= visible[start - len(at[depth - 1]) : start][above[depth]]
            start += size
        tokens = torch.cat([self._tokens[depth - 1][self.trie.codes(depth, at[depth])] for depth in above])
        depths = torch.repeat_interleave(torch.tensor(list(above)), torch.tensor(sizes)).to(device)
        parts = tree.branch(tokens, visible, depths).split(sizes, dim=1)
        return dict(zip(above, parts, strict=True))
