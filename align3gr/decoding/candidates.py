"""What a search leaves behind: scored SCIDs, from which any number of ranked item lists can be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from align3gr.decoding.item_filter import ItemFilter, ItemSets
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError


class BeamOutput(NamedTuple):
    """Ranked items of a batch, best first.

    Attributes:
        items: item indices, -1 where there is no further item.
            Shape: `(batch, k)`, int64.
        scores: log-probability of the item's SCID given the prompt, -inf where there is no item.
            Shape: `(batch, k)`, float32.
    """

    items: Tensor
    scores: Tensor


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of the last dimension, best first; among equal scores the earlier place wins, on every device.

    `torch.topk` leaves the order of ties open. Score and place are packed into one integer, so that there are none.

    Shape: `(batch, n)` float32 without NaN -> values `(batch, k)`, places `(batch, k)`.
    """
    bits = (scores + 0.0).view(torch.int32)  # adding 0.0 makes -0.0 equal to 0.0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # integers in the order of the floats
    place = torch.arange(scores.shape[-1], device=scores.device)
    places = ((ordered << 32) - place).topk(k, dim=-1).indices
    return scores.gather(-1, places), places


@dataclass(frozen=True)
class LeafCandidates:
    """Every leaf under the prefixes that survived a beam search, not only the best `num_beams`.

    The last step of a beam search scores all of them anyway. Kept, they give the list with a user's seen items and the
    list without them from one search, and the second is not shortened by the first.

    Attributes:
        trie: the catalogue.
        leaves: leaf ids, -1 for none.
            Shape: `(batch, n)`, int64.
        scores: log-probabilities, -inf for none.
            Shape: `(batch, n)`, float32.
        num_beams: the longest list that can be asked for.
        item_filter: what the search was restricted to; leaves without an item that it allows stand there as -1.
        ranks: what the leaves are ordered by, largest first, where that is not the score.
            Shape: `(batch, n)`, float32, or None.
    """

    trie: SCIDTrie
    leaves: Tensor
    scores: Tensor
    num_beams: int
    item_filter: ItemFilter | None = None
    ranks: Tensor | None = None

    def top(
        self,
        k: int,
        denied: Sequence[Sequence[int] | np.ndarray] | None = None,
        allowed: ItemSets | None = None,
    ) -> BeamOutput:
        """The `k` best items of each row. Equal scores stand in code order, items with one SCID by item index.

        `denied` and `allowed` choose among the leaves that the search reached, so a long `denied` or a narrow
        `allowed` may leave fewer than `k`; given to [`ConstrainedBeamSearch.search`] they steer the search itself,
        and do not.

        Args:
            k: length of the lists, at most `num_beams`.
            denied: for each row the item indices that must not be shown.
            allowed: item indices that alone may be shown, one set for all rows or one a row.

        Raises:
            InputError: `k` is below 1 or above `num_beams`, or a set a row was given for another number of rows.
        """
        batch, num_leaves = self.leaves.shape
        if not 1 <= k <= self.num_beams:
            raise InputError(f"k: got {k}, expected 1 to num_beams={self.num_beams}; search with more beams")
        if denied is not None and len(denied) != batch:
            raise InputError(f"denied: got {len(denied)} rows for a batch of {batch}; give one list of items a row")
        longest = max((len(row) for row in denied), default=0) if denied is not None else 0
        # A leaf among the best that gives no item costs at least one denied item, so these are enough leaves.
        wanted = num_leaves if allowed is not None else min(k + longest, num_leaves)
        places = stable_topk(self.scores if self.ranks is None else self.ranks, wanted)[1]
        scores = self.scores.gather(1, places)
        items = self.trie.items(self.leaves.gather(1, places))  # (batch, wanted, items a leaf)
        scores = scores.unsqueeze(-1).expand(items.shape).flatten(1)
        items = items.flatten(1)
        valid = items >= 0
        if self.item_filter is not None:
            valid &= self.item_filter.allows(items)
        if longest or allowed is not None:
            valid &= ItemFilter(self.trie, batch, allowed, denied if longest else None).allows(items)
        return _first_valid(items, scores, valid, k)


def _first_valid(items: Tensor, scores: Tensor, valid: Tensor, k: int) -> BeamOutput:
    """Close the gaps: the first `k` valid entries of each row, padded."""
    slots = items.shape[1]
    place = torch.arange(slots, device=items.device).expand(items.shape)
    picks = torch.where(valid, place, slots).topk(min(k, slots), dim=-1, largest=False).values
    missing = picks == slots
    picks = picks.clamp_max(slots - 1)
    items = items.gather(1, picks).masked_fill(missing, -1)
    scores = scores.gather(1, picks).masked_fill(missing, float("-inf"))
    if slots < k:
        items = torch.nn.functional.pad(items, (0, k - slots), value=-1)
        scores = torch.nn.functional.pad(scores, (0, k - slots), value=float("-inf"))
    return BeamOutput(items, scores)
