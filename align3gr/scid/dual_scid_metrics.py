"""What a training of a [`DualSCIDModel`] is judged by: how users rank their items, the health of the code books."""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from align3gr.errors import InputError
from align3gr.scid.features import FeatureTable, embed_all, quantize_all
from align3gr.scid.modeling_dual_scid import DualSCIDModel
from align3gr.scid.modeling_rqvae import RQVAEModel


class CollapsedCodebookError(InputError):
    """A level uses so few codes that its SCIDs would say next to nothing."""


@dataclass
class DualSCIDHistory:
    """What training showed.

    Attributes:
        auc: on held-out train pairs, epoch by epoch over both phases, with or without U2I; empty without users.
        raw_auc: the same of the concatenated features before training, which alignment must beat.
        log: losses, AUC and health of the code books by epoch.
    """

    auc: list[float] = field(default_factory=list)
    raw_auc: float | None = None
    log: list[dict] = field(default_factory=list)


def book_metrics(side: str, embed: Any, rqvae: RQVAEModel, table: FeatureTable) -> dict[str, float]:
    """Utilisation, perplexity, entropy by level, quantisation error and collisions of all rows of a side.

    Raises:
        CollapsedCodebookError: a level uses one code, or has a perplexity below a twentieth of what it could have.
    """
    _, _, health = quantize_all(embed, rqvae, table, keep_latents=False)
    metrics = {f"{side}_{name}": float(health[name]) for name in ("quantization_error", "collisions")}
    for level, size in enumerate(rqvae.config.codebook_sizes):
        for name in ("utilisation", "perplexity", "entropy"):
            metrics[f"{side}_{name}_{level}"] = health[name][level]
        perplexity = health["perplexity"][level]
        if perplexity < max(1.0 + 1e-6, 0.05 * min(size, len(table))):
            raise CollapsedCodebookError(
                f"{side}_codebook_sizes: level {level} of {size} codes collapsed to perplexity {perplexity:.1f}; "
                f"lower learning_rate, raise autoencoder_epochs, set sinkhorn_epsilon (0.01) or "
                f"codebook_update: ema, or take a smaller code book"
            )
    return metrics


def score_auc(users: torch.Tensor, items: torch.Tensor, pairs: np.ndarray, seed: int = 0) -> float:
    """Chance that a user scores an item of theirs above a random one, by inner product.

    Shapes: `(users, dim)`, `(items, dim)`, `pairs` `(pairs, 2)`.
    """
    negatives = torch.from_numpy(np.random.default_rng(seed).integers(len(items), size=len(pairs)))
    chosen = users[pairs[:, 0]]
    positive = (chosen * items[pairs[:, 1]]).sum(1)
    negative = (chosen * items[negatives]).sum(1)
    return ((positive > negative).float() + 0.5 * (positive == negative).float()).mean().item()


@torch.no_grad()
def pair_auc(model: DualSCIDModel, users: FeatureTable, items: FeatureTable, pairs: np.ndarray) -> float:
    """AUC of the unified embeddings on pairs. Shape: `pairs` `(pairs, 2)`."""
    user_vectors, item_vectors = embed_all(model, users, items)
    return score_auc(cast(torch.Tensor, user_vectors), item_vectors, pairs)


@torch.no_grad()
def raw_auc(model: DualSCIDModel, users: FeatureTable, items: FeatureTable, pairs: np.ndarray) -> float | None:
    """The same of the concatenated features, before any encoder; None where users and items have other widths."""
    if users.dims != items.dims:
        return None
    everything = slice(None)
    return score_auc(
        model.user_encoder.features(**users.rows(everything)),
        model.item_encoder.features(**items.rows(everything)),
        pairs,
    )
