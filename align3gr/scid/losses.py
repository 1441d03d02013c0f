"""Losses of the token level: U2I alignment, Eq. (1), and the two regularisers of LETTER (Wang et al. 2024)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def u2i_loss(
    users: torch.Tensor,
    items: torch.Tensor,
    false_negatives: torch.Tensor | None = None,
    temperature: float = 1.0,
    log_q: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sampled softmax over the items of the batch, Eq. (1) of Align3GR.

    Args:
        users: `(batch, dim)` SC embeddings of the users.
        items: `(batch, dim)` SC embeddings of each user's positive item; the others of the batch are its negatives.
        false_negatives: `(batch, batch)` bool, true at (b, j) where user b did interact with item j: such an item is
            no negative. The diagonal, where the positives stand, is never masked.
        temperature: divides the scores; 1 is Eq. (1).
        log_q: `(batch,)` log-probability with which each item comes into a batch. It is taken off the item's score,
            which makes popular items, that are negatives more often, no less likely (Yi et al. 2019); None is Eq. (1).
    """
    scores = (users @ items.T).float() / temperature
    if log_q is not None:
        scores = scores - log_q
    if false_negatives is not None:
        diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(false_negatives & ~diagonal, float("-inf"))
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def collaborative_contrast(quantized: torch.Tensor, collaborative: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """LETTER's collaborative regularisation: a quantised item finds its own collaborative vector among the batch's.

    Args:
        quantized: `(batch, dim)` sums of code vectors.
        collaborative: `(batch, dim)` collaborative vectors in the same space.
        rows: `(batch,)` which item each row is: another row of the same item is no negative.
    """
    return u2i_loss(quantized, collaborative, rows[:, None] == rows[None, :])


class CodebookDiversity(nn.Module):
    """LETTER's diversity regularisation: code vectors of one cluster draw together and apart from the others.

    Each level's code vectors are grouped by k-means, anew every `refresh` steps; a code that quantised a row of the
    batch is pulled towards another code of its group, against all codes of the book. It spreads the use of the codes.
    """

    def __init__(self, clusters: int = 10, refresh: int = 100, seed: int = 0) -> None:
        super().__init__()
        self.clusters, self.refresh, self.seed = clusters, refresh, seed
        self._groups: list[torch.Tensor] = []
        self._step = 0

    def forward(self, codebooks: nn.ParameterList, codes: torch.Tensor) -> torch.Tensor:
        """Mean over rows and levels. Shape: `codes` `(batch, levels)` -> scalar."""
        if self._step % self.refresh == 0 or not self._groups:
            self._groups = [self._group(codebook) for codebook in codebooks]
        self._step += 1
        losses = []
        for level, codebook in enumerate(codebooks):
            chosen, group = codes[:, level], self._groups[level].to(codes.device)
            mates = (group[chosen][:, None] == group[None, :]).float()
            mates[torch.arange(len(chosen)), chosen] = 0
            paired = mates.any(1)  # a code alone in its group has nothing to draw to
            if not paired.any():
                continue
            chosen, positive = chosen[paired], torch.multinomial(mates[paired], 1)[:, 0]
            scores = codebook[chosen] @ codebook.T
            itself = F.one_hot(chosen, len(codebook)).bool()
            losses.append(F.cross_entropy(scores.masked_fill(itself, float("-inf")), positive))
        return torch.stack(losses).mean() if losses else codebooks[0].sum() * 0

    def _group(self, codebook: torch.Tensor) -> torch.Tensor:
        from sklearn.cluster import KMeans

        vectors = codebook.detach().float().cpu().numpy()
        # Two codes to a group at least, on average: in a small book each would be alone otherwise.
        clusters = min(self.clusters, max(len(vectors) // 2, 1), len(np.unique(vectors, axis=0)))
        labels = KMeans(clusters, n_init=1, random_state=self.seed).fit_predict(vectors)
        return torch.from_numpy(labels.astype(np.int64))
