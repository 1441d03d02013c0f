"""Settings of the residual-quantised autoencoder."""

from collections.abc import Sequence

from transformers import PretrainedConfig

from align3gr.errors import InputError


class RQVAEConfig(PretrainedConfig):
    """Settings of an [`RQVAEModel`]. The defaults are the paper's: 3 levels of 256 codes of 32 dimensions.

    Args:
        input_dim: width of the vectors that are quantised.
        output_dim: width of what the decoder reconstructs; `input_dim` if None.
        codebook_sizes: codes at each level.
        codebook_dim: width of a code vector.
        hidden_dims: widths between `input_dim` and `codebook_dim`; the decoder mirrors them. Empty means linear maps.
        commitment_weight: weight of the commitment term, "beta" of RQ-VAE (Lee et al. 2022).
        revive_after: a code that quantised nothing during this many consecutive training steps is put back on a
            residual of the present batch. 0 switches revival off.
    """

    model_type = "align3gr_rqvae"

    def __init__(
        self,
        input_dim: int = 128,
        output_dim: int | None = None,
        codebook_sizes: Sequence[int] = (256, 256, 256),
        codebook_dim: int = 32,
        hidden_dims: Sequence[int] = (),
        commitment_weight: float = 0.25,
        revive_after: int = 100,
        **kwargs,
    ) -> None:
        if not codebook_sizes or min(codebook_sizes) < 2:
            raise InputError(f"codebook_sizes must name at least one level of 2 codes or more, got {codebook_sizes}")
        self.input_dim = input_dim
        self.output_dim = input_dim if output_dim is None else output_dim
        self.codebook_sizes = list(codebook_sizes)
        self.codebook_dim = codebook_dim
        self.hidden_dims = list(hidden_dims)
        self.commitment_weight = commitment_weight
        self.revive_after = revive_after
        super().__init__(**kwargs)

    @property
    def levels(self) -> int:
        return len(self.codebook_sizes)
