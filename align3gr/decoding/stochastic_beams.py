"""Items drawn from the model's distribution over the catalogue, without replacement.

Stochastic beam search (Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them", ICML 2019): every SCID
gets its log-probability plus Gumbel noise, and the `k` largest sums are `k` draws without replacement, in the order of
drawing. The noise is made from the top down: the noise of a prefix is the maximum over all that begin with it, so
a search that follows the largest prefixes finds the largest SCIDs.

Decisions:

* What a model can say beside the catalogue (and beside the allowed items) takes part in each maximum as one more
  child. Without it the draws would come from another distribution, scaled up at each level by what is left there.
* A prefix whose maximum belongs to no item is followed in vain, so a beam of `k` may miss a draw. The largest value
  that was dropped is a bound on what could have been missed; the search is repeated with four times the width until
  the bound lies below the last draw. The noise is a hash of seed, prompt and prefix: a wider search sees the same one.
* So the draws of a prompt depend on seed, prompt and sets alone, not on batch, place, width or device.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from align3gr.decoding.candidates import LeafCandidates
from align3gr.decoding.item_filter import ItemFilter
from align3gr.decoding.search import ConstrainedSearch
from align3gr.decoding.tree_decoder import PromptTree
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError


class StochasticBeamSearch(ConstrainedSearch):
    """Draws distinct items, more probable ones more often; for self-play and exploration.

    The first draw is an item with probability proportional to that of its SCID, each further one so among the items
    that are left. `search(...).top(k)` gives the items in the order of drawing, with their exact log-probabilities.
    Draws are SCIDs: items that share one come together, in the order of item indices.

    Args:
        model, trie, level_tokens: as for [`ConstrainedBeamSearch`].
        num_beams: draws, and the longest list that can be asked for.
        temperature: logits are divided by it at each level; above 1 the draws are more even. The scores are those of
            the model at temperature 1.
        seed: another seed gives other draws; the same one the same draws for the same prompt.
        widths: prefixes kept after each level, at least `num_beams` in the end. They are then kept as they are, and
            the draws only come close to the distribution; None widens them as far as exact draws need, which is
            little for a trained model and up to every prefix for one that says other things than items.

    Raises:
        InputError: as for [`ConstrainedBeamSearch`], or the temperature is not positive.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: SCIDTrie,
        level_tokens: np.ndarray | Tensor,
        num_beams: int = 20,
        temperature: float = 1.0,
        seed: int = 0,
        widths: Sequence[int] | None = None,
    ):
        chosen = tuple(widths) if widths is not None else (num_beams,) * trie.levels
        super().__init__(model, trie, level_tokens, num_beams, chosen)
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature: got {temperature}, expected a positive number")
        self.temperature = temperature
        self.seed = seed
        self._exact = widths is None

    def _search(
        self, tree: PromptTree, input_ids: Tensor, attention_mask: Tensor, item_filter: ItemFilter | None
    ) -> LeafCandidates:
        keys = self._keys(input_ids, attention_mask)
        widths = self.widths
        while True:
            candidates, values, missed = self._draw(tree.twin(), item_filter, keys, widths)
            last = values.topk(min(self.num_beams, values.shape[1])).values[:, -1]
            every = all(width >= nodes for width, nodes in zip(widths, self.trie.num_nodes[:-1], strict=False))
            if not self._exact or every or bool((last >= missed).all()):
                return candidates
            widths = tuple(4 * width for width in widths)

    def _draw(
        self, tree: PromptTree, item_filter: ItemFilter | None, keys: Tensor, widths: tuple[int, ...]
    ) -> tuple[LeafCandidates, Tensor, Tensor]:
        """One search, the value of each leaf `(batch, n)`, and the largest value that was dropped `(batch,)`."""
        trie, batch, device = self.trie, len(keys), keys.device
        nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
        zero = torch.zeros(batch, 1, dtype=torch.float64, device=device)
        scores, heats, values = zero, zero, zero  # log-probability, the same at the temperature, its perturbed maximum
        missed = torch.full((batch,), float("-inf"), dtype=torch.float64, device=device)
        for level in range(trie.levels):
            children = trie.children(level, nodes)  # (batch, beams, fan)
            if item_filter is not None:
                children = children.masked_fill(~item_filter.alive(level + 1, children), -1)
            fan = children.shape[-1]
            tokens = self._tokens[level][trie.codes(level + 1, children)]
            step = self._log_probs(level, tree.logits, tokens, nodes).double()
            heat = step
            if self.temperature != 1.0:
                heat = self._log_probs(level, tree.logits / self.temperature, tokens, nodes).double()
            values = self._perturb(keys, level, nodes, children, heat, heats, values).flatten(1)
            gone = children < 0
            scores, heats = (
                (above.unsqueeze(-1) + below).masked_fill(gone, float("-inf")).flatten(1)
                for above, below in ((scores, step), (heats, heat))
            )
            children, tokens = children.flatten(1), tokens.flatten(1)
            if level == trie.levels - 1:
                break
            width = min(widths[level], trie.num_nodes[level], values.shape[1])
            best, order = values.sort(dim=-1, descending=True, stable=True)
            if width < best.shape[1]:
                missed = torch.maximum(missed, best[:, width])
            places = order[:, :width].sort(dim=-1).values
            nodes, scores, heats, values = (each.gather(1, places) for each in (children, scores, heats, values))
            tree.extend(tokens.gather(1, places), parents=places // fan)
        candidates = LeafCandidates(trie, children, scores.float(), self.num_beams, item_filter, values.float())
        return candidates, values, missed

    def _perturb(
        self, keys: Tensor, level: int, nodes: Tensor, children: Tensor, heat: Tensor, heats: Tensor, values: Tensor
    ) -> Tensor:
        """Perturbed maxima of `children` given that the maximum of all below each parent is in `values`.

        Shape: children and `heat` `(batch, beams, fan)`, the others of the parents `(batch, beams)` -> like children.
        """
        there = children >= 0
        inside = heat.exp().masked_fill(~there, 0.0).sum(-1)
        beside = torch.log((1.0 - inside).clamp_min(0.0))  # log of the mass of what is no child
        drawn = heats.unsqueeze(-1) + heat + _gumbel(keys, 2 * level, children)
        drawn = drawn.masked_fill(~there, float("-inf"))
        other = heats + beside + _gumbel(keys, 2 * level + 1, nodes)
        largest = torch.maximum(drawn.amax(-1), other).unsqueeze(-1)
        # Appendix B.3 of the paper: moves the maximum to the parent's value without losing digits.
        parent = values.unsqueeze(-1)
        gap = parent - drawn + torch.log1p(-torch.exp((drawn - largest).clamp_max(0.0)))
        moved = parent - gap.clamp_min(0.0) - torch.log1p(torch.exp(-gap.abs()))
        return moved.masked_fill(~there, float("-inf"))

    def _keys(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """One integer a prompt, from the seed and its tokens. Shape: `(batch, 1)`."""
        keys = []
        for tokens, mask in zip(input_ids.cpu().numpy(), attention_mask.cpu().numpy(), strict=True):
            prompt = np.append(np.int64(self.seed), tokens[mask.astype(bool)].astype(np.int64))
            digest = hashlib.blake2b(prompt.tobytes(), digest_size=8).digest()
            keys.append(int.from_bytes(digest, "little", signed=True))
        return torch.tensor(keys, device=input_ids.device).unsqueeze(-1)


def _gumbel(keys: Tensor, stream: int, nodes: Tensor) -> Tensor:
    """Gumbel noise that depends on key, stream and node alone. Shape: like `nodes`, float64.

    A hash in place of a generator: splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA 2014).
    """
    keys = _mix(keys + stream)
    bits = _mix(keys.view(-1, *[1] * (nodes.ndim - 1)) + (nodes + 1) * _GOLDEN)
    uniform = (((bits >> 11) & (2**53 - 1)).double() + 0.5) / 2**53
    return -torch.log(-torch.log(uniform))


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed 64-bit integers, whose products wrap around


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return bits ^ ((bits >> 31) & (2**33 - 1))
