"""How near a vector is to the item that comes next, against all other items or a sample of them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from align3gr.encoders.collaborative import interaction_counts
from align3gr.errors import InputError

LOSSES = ("softmax", "sampled_softmax", "bce", "bpr")


class NextItemLoss:
    """The loss of a network whose score of an item is a dot product.

    Args:
        kind: "softmax" is cross-entropy over all items; "sampled_softmax" estimates it with `negatives` items a batch,
            half of them uniform, half by their number of train interactions, where that is less than half of the
            catalogue; "bce" says yes or no for the next item and for `negatives` uniform ones a position; "bpr" is
            -log sigmoid of the difference of these scores (Rendle et al. 2009), the mean over `negatives`.
        negatives: for the last three; 0 takes 1,024 for "sampled_softmax" and 1 for the others.

    Raises:
        InputError: there is no such kind, or the number is negative.
    """

    def __init__(self, kind: str, negatives: int = 0) -> None:
        if kind not in LOSSES:
            raise InputError(f"loss: got '{kind}', choose from {', '.join(LOSSES)}")
        if negatives < 0:
            raise InputError(f"negatives: got {negatives}, expected 0 (the usual number) or more")
        self.kind = kind
        self.negatives = negatives or (1024 if kind == "sampled_softmax" else 1)

    def count(self, train_sequences: Sequence[np.ndarray], num_items: int) -> None:
        """Takes the chance of each item to be drawn from the train split."""
        counts = torch.from_numpy(interaction_counts(train_sequences, num_items))
        self._chance = 0.5 / num_items + 0.5 * counts / counts.sum()

    def __call__(self, hidden: torch.Tensor, targets: torch.Tensor, catalogue: torch.Tensor) -> torch.Tensor:
        """Mean over the positions. Shape: `(positions, dim)`, `(positions,)` items, `(items, dim)` -> a scalar."""
        # So many draws would save nothing over the exact sum.
        exact = self.kind == "sampled_softmax" and 2 * self.negatives >= len(catalogue)
        if self.kind == "softmax" or exact:
            return F.cross_entropy(hidden @ catalogue.T, targets)
        if self.kind == "sampled_softmax":
            chance = self._chance.to(hidden.device)
            drawn = torch.multinomial(chance, self.negatives, replacement=True)
            return sampled_softmax(hidden, targets, catalogue, drawn, chance[drawn])
        true = (hidden * catalogue[targets]).sum(-1, keepdim=True)
        drawn = torch.randint(len(catalogue), (len(targets), self.negatives), device=targets.device)
        false = torch.einsum("pd,pnd->pn", hidden, catalogue[drawn])
        # A negative that happens to be the next item is left out.
        other = (drawn != targets[:, None]).to(false.dtype)
        if self.kind == "bpr":
            return (F.softplus(false - true) * other).sum() / (len(targets) * self.negatives)
        return (F.softplus(-true).sum() + (F.softplus(false) * other).sum()) / len(targets)


def sampled_softmax(
    hidden: torch.Tensor, targets: torch.Tensor, catalogue: torch.Tensor, drawn: torch.Tensor, chance: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy over all items, its sum over the others estimated from items drawn for the whole batch.

    A drawn item counts for as many as its chance says (Bengio and Senecal 2008), so that the estimated sum is right in
    the mean.

    Shape: `(positions, dim)`, `(positions,)`, `(items, dim)`, `(drawn,)`, `(drawn,)` chance of each -> a scalar.
    """
    others = hidden @ catalogue[drawn].T - (chance * len(drawn)).log()
    others = others.masked_fill(drawn == targets[:, None], -torch.inf)
    true = (hidden * catalogue[targets]).sum(-1, keepdim=True)
    return (torch.logsumexp(torch.cat([true, others], dim=1), dim=1) - true[:, 0]).mean()
