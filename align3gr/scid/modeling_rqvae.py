"""RQ-VAE: an autoencoder whose latent is a sum of code vectors, one from each level's codebook (Lee et al. 2022)."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from align3gr.scid.configuration_rqvae import RQVAEConfig


@dataclass
class RQVAEOutput(ModelOutput):
    """
    Args:
        loss: reconstruction plus quantisation loss, a scalar: L_RQ of Eq. (2).
        reconstruction_loss: mean squared distance of a row to its reconstruction, a scalar.
        quantization_loss: codebook plus weighted commitment loss over all levels, a scalar.
        reconstruction: `(batch, output_dim)`.
        codes: `(batch, levels)` int64; None where the quantiser was passed by.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    quantization_loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    codes: torch.Tensor | None = None


def mlp(dims: list[int]) -> nn.Sequential:
    """Linear layers of the given widths with GELU between them."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(dims)):
        layers += ([nn.GELU()] if i else []) + [nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*layers)


def nearest_codes(residual: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest code vector. Shapes: `(batch, dim)`, `(codes, dim)` -> `(batch,)` int64."""
    # |r - c|^2 without |r|^2, which is the same for all codes: one matrix product and no (batch, codes, dim) tensor.
    return torch.addmm(codebook.square().sum(1), residual, codebook.T, alpha=-2).argmin(1)


class ResidualQuantizer(nn.Module):
    """Quantises a vector level by level: each level quantises what the levels before it left over."""

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.empty(size, config.codebook_dim)) for size in config.codebook_sizes
        )
        # Training steps since a code last quantised anything; no part of a checkpoint.
        self._idle = [torch.zeros(size, dtype=torch.long) for size in config.codebook_sizes]

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Shape: `(batch, dim)` -> quantised `(batch, dim)`, codes `(batch, levels)`, loss (scalar).

        The gradient passes straight through the quantiser. Code books stay in fp32 under autocast.
        """
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            residual, total = latent, torch.zeros_like(latent)
            codes, loss = [], latent.new_zeros(())
            for level, codebook in enumerate(self.codebooks):
                chosen = nearest_codes(residual.detach(), codebook.detach())
                if self.training:
                    self._revive(level, residual.detach(), chosen)
                quantized = codebook[chosen]
                loss = loss + F.mse_loss(quantized, residual.detach())
                loss = loss + self.config.commitment_weight * F.mse_loss(residual, quantized.detach())
                total = total + quantized
                residual = residual - quantized.detach()
                codes.append(chosen)
            return latent + (total - latent).detach(), torch.stack(codes, 1), loss

    @torch.no_grad()
    def codes(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape: `(batch, dim)` -> codes `(batch, levels)`, and what the last level quantised `(batch, dim)`."""
        residual, codes = latent, []
        for level, codebook in enumerate(self.codebooks):
            codes.append(nearest_codes(residual, codebook))
            if level + 1 < len(self.codebooks):
                residual = residual - codebook[codes[-1]]
        return torch.stack(codes, 1), residual

    @torch.no_grad()
    def initialize(self, latent: torch.Tensor, seed: int) -> None:
        """Puts each level's code vectors on the k-means centres of its residuals. Shape: `(rows, dim)`."""
        from sklearn.cluster import KMeans

        residual = latent.float().cpu().numpy()
        for codebook in self.codebooks:
            size = min(len(codebook), len(np.unique(residual, axis=0)))
            kmeans = KMeans(size, n_init=1, max_iter=50, random_state=seed).fit(residual)
            centres = torch.from_numpy(kmeans.cluster_centers_).to(codebook)
            # Fewer distinct rows than codes: the rest stay where no row is nearest.
            codebook.copy_(torch.cat([centres, centres.new_full((len(codebook) - size, centres.shape[1]), 1e3)]))
            residual = residual - kmeans.cluster_centers_[kmeans.labels_]

    @torch.no_grad()
    def _revive(self, level: int, residual: torch.Tensor, chosen: torch.Tensor) -> None:
        """Counts idle steps, and puts codes that idle too long on residuals of this batch."""
        if not self.config.revive_after:
            return
        idle = self._idle[level].to(residual.device)
        idle += 1
        idle[chosen] = 0
        self._idle[level] = idle
        dead = (idle > self.config.revive_after).nonzero()[:, 0]
        if len(dead):
            rows = torch.randint(len(residual), (len(dead),), device=residual.device)
            self.codebooks[level][dead] = residual[rows].to(self.codebooks[level].dtype)
            idle[dead] = 0


class RQVAEModel(PreTrainedModel):
    """Residual-quantised variational autoencoder over vectors.

    ```python
    >>> import torch
    >>> from align3gr.scid.configuration_rqvae import RQVAEConfig
    >>> from align3gr.scid.modeling_rqvae import RQVAEModel
    >>> model = RQVAEModel(RQVAEConfig(input_dim=16, codebook_sizes=(8, 8)))
    >>> model.encode(torch.randn(5, 16)).shape
    torch.Size([5, 2])

    ```
    """

    config_class = RQVAEConfig
    base_model_prefix = "rqvae"
    main_input_name = "features"

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__(config)
        dims = [config.input_dim, *config.hidden_dims, config.codebook_dim]
        self.encoder = mlp(dims)
        self.quantizer = ResidualQuantizer(config)
        self.decoder = mlp([*dims[:0:-1], config.output_dim])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.ParameterList):
            # Not the quantiser: for classes outside transformers, modules without parameters of their own are skipped.
            for codebook in module:
                init.normal_(codebook, std=0.1)

    def forward(
        self, features: torch.Tensor, target: torch.Tensor | None = None, quantize: bool = True
    ) -> RQVAEOutput:
        """What training needs.

        Args:
            features: `(batch, input_dim)`.
            target: `(batch, output_dim)` what the decoder reconstructs; the features where it is None.
            quantize: false passes the latent by the quantiser, which gives the code books something to start from.
        """
        if quantize:
            quantized, codes, quantization_loss = self.quantizer(self.encoder(features))
        else:
            quantized, codes, quantization_loss = self.encoder(features), None, features.new_zeros(())
        reconstruction = self.decoder(quantized)
        # The target is held still: an encoder in front could otherwise shrink its own output to please us.
        target = features.detach() if target is None else target
        reconstruction_loss = (reconstruction.float() - target.float()).square().sum(1).mean()
        return RQVAEOutput(
            loss=reconstruction_loss + quantization_loss,
            reconstruction_loss=reconstruction_loss,
            quantization_loss=quantization_loss,
            reconstruction=reconstruction,
            codes=codes,
        )

    @torch.no_grad()
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes in fp32, whatever autocast says. Shape: `(batch, input_dim)` -> `(batch, levels)` int64."""
        return self.encode_with_residual(features)[0]

    @torch.no_grad()
    def encode_with_residual(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes, and what the last level quantised: `(batch, levels)` int64 and `(batch, codebook_dim)`."""
        with torch.autocast(features.device.type, enabled=False):
            return self.quantizer.codes(self.encoder(features.float()))

    @torch.no_grad()
    def initialize_codebooks(self, features: torch.Tensor, seed: int = 0) -> None:
        """k-means start of the code books. Shape: `(rows, input_dim)`."""
        with torch.autocast(features.device.type, enabled=False):
            self.quantizer.initialize(self.encoder(features.float()), seed)


AutoConfig.register(RQVAEConfig.model_type, RQVAEConfig, exist_ok=True)
AutoModel.register(RQVAEConfig, RQVAEModel, exist_ok=True)
