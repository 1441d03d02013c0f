"""Settings of the residual-quantised autoencoder, and sizes of code books that suit a catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from align3gr.errors import InputError


class RQVAEConfig(PretrainedConfig):
    """Settings of an [`RQVAEModel`]. The defaults are the paper's: 3 levels of 256 codes of 32 dimensions.

    Args:
        input_dim: width of the vectors that are quantised.
        output_dim: width of what the decoder reconstructs; `input_dim` if None.
        codebook_sizes: codes at each level.
        codebook_dim: width of a code vector.
        hidden_dims: widths between `input_dim` and `codebook_dim`; the decoder mirrors them. Empty means linear maps,
            None no maps at all: the vectors themselves are quantised, and all three widths must agree.
        commitment_weight: weight of the commitment term, "beta" of RQ-VAE (Lee et al. 2022).
        estimator: how the gradient passes the quantiser, "straight-through" (Bengio et al. 2013) or "rotation"
            (Fifty et al. 2024).
        codebook_update: "loss" learns code vectors with the codebook term, "ema" makes them running means of what they
            quantised (van den Oord et al. 2017).
        ema_decay: decay of these means.
        sinkhorn_epsilon: above 0, codes are chosen in training by an entropic transport plan that balances the use of
            a level's codes over the batch, as in LC-Rec's last level; 0.003 to 0.05 are common. 0 takes the nearest.
        revive_after: a code that quantised nothing during this many consecutive training steps is put back on a
            residual of the present batch. 0 switches revival off.
        health: what training found of the code books, for the model card.
    """

    model_type = "align3gr_rqvae"

    def __init__(
        self,
        input_dim: int = 128,
        output_dim: int | None = None,
        codebook_sizes: Sequence[int] = (256, 256, 256),
        codebook_dim: int = 32,
        hidden_dims: Sequence[int] | None = (),
        commitment_weight: float = 0.25,
        estimator: str = "straight-through",
        codebook_update: str = "loss",
        ema_decay: float = 0.99,
        sinkhorn_epsilon: float = 0.0,
        revive_after: int = 100,
        health: dict[str, Any] | None = None,
        **kwargs,
    ) -> None:
        if not codebook_sizes or min(codebook_sizes) < 2:
            raise InputError(f"codebook_sizes must name at least one level of 2 codes or more, got {codebook_sizes}")
        if estimator not in ("straight-through", "rotation"):
            raise InputError(f"estimator: got '{estimator}', choose straight-through or rotation")
        if codebook_update not in ("loss", "ema"):
            raise InputError(f"codebook_update: got '{codebook_update}', choose loss or ema")
        if not 0 < ema_decay < 1:
            raise InputError(f"ema_decay: got {ema_decay}, expected a number between 0 and 1")
        if sinkhorn_epsilon < 0:
            raise InputError(f"sinkhorn_epsilon: got {sinkhorn_epsilon}, expected 0 (off) or more")
        self.input_dim = input_dim
        self.output_dim = input_dim if output_dim is None else output_dim
        self.codebook_sizes = list(codebook_sizes)
        self.codebook_dim = codebook_dim
        self.hidden_dims = None if hidden_dims is None else list(hidden_dims)
        if self.hidden_dims is None and len({self.input_dim, self.output_dim, codebook_dim}) > 1:
            raise InputError(
                f"hidden_dims: None quantises the vectors themselves, so input_dim {input_dim}, output_dim "
                f"{self.output_dim} and codebook_dim {codebook_dim} must be one number"
            )
        self.commitment_weight = commitment_weight
        self.estimator = estimator
        self.codebook_update = codebook_update
        self.ema_decay = ema_decay
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.revive_after = revive_after
        self.health = health
        super().__init__(**kwargs)

    @property
    def levels(self) -> int:
        """Codes in an SCID."""
        return len(self.codebook_sizes)


@dataclass(frozen=True)
class CodebookProposal:
    """Code books for a catalogue.

    Attributes:
        sizes: codes at each level.
        neighbours: for 1, 2, ... levels but the last, the share of items that will share that many first codes with
            another item: what medium and hard negatives are made of.
    """

    sizes: list[int]
    neighbours: list[float]


def propose_codebook_sizes(num_items: int, levels: int = 3, min_neighbours: float = 0.7) -> CodebookProposal:
    """The largest equal code books in which most items still have a neighbour that shares all levels but the last.

    With `n` items spread evenly over `K^p` prefixes of `p` levels, an item has a neighbour with probability
    `1 - (1 - K^-p)^(n - 1)`. Real items cluster, so more of them have one: of MovieLens-100k's 1,682 items 90 % with
    3 x 32 (80 % by the formula), 25 % with 3 x 256 (3 %).

    Args:
        num_items: items of the catalogue.
        levels: levels of an SCID, 2 or more.
        min_neighbours: share of items that must have a neighbour.

    Raises:
        InputError: no power of two between 8 and 4,096 holds the catalogue; take more levels.
    """
    if num_items < 1 or levels < 2:
        raise InputError(f"num_items {num_items}, levels {levels}: expected 1 or more items and 2 or more levels")

    def shares(size: int) -> list[float]:
        return [1 - (1 - float(size) ** -p) ** (num_items - 1) for p in range(1, levels)]

    # Room for four times the items: the last level tells apart what the others leave together.
    roomy = [size for size in (2**power for power in range(3, 13)) if size**levels >= 4 * num_items]
    if not roomy:
        raise InputError(f"num_items: {num_items:,} items need more than {levels} levels of 4,096 codes; raise levels")
    close = [size for size in roomy if shares(size)[-1] >= min_neighbours]
    size = max(close) if close else min(roomy)
    return CodebookProposal([size] * levels, shares(size))
