"""RQ-VAE: an autoencoder whose latent is a sum of code vectors, one from each level's codebook (Lee et al. 2022)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from align3gr.scid.card import CardMixin
from align3gr.scid.configuration_rqvae import RQVAEConfig
from align3gr.scid.quantizer import ResidualQuantizer, mlp


@dataclass
class RQVAEOutput(ModelOutput):
    """
    Args:
        loss: reconstruction plus quantisation loss, a scalar: L_RQ of Eq. (2).
        reconstruction_loss: mean squared distance of a row to its reconstruction, a scalar.
        quantization_loss: codebook plus weighted commitment loss over all levels, a scalar.
        reconstruction: `(batch, output_dim)`.
        quantized: `(batch, codebook_dim)` sum of the code vectors, through which the gradient reaches the encoder.
        codes: `(batch, levels)` int64; None where the quantiser was passed by.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    quantization_loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    codes: torch.Tensor | None = None


class RQVAEModel(CardMixin, PreTrainedModel):
    """Residual-quantised variational autoencoder over vectors. A stock `Trainer` trains it on rows of `features`.

    Args:
        config: its sizes.

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
        if config.hidden_dims is None:
            self.encoder: nn.Module = nn.Identity()
            self.decoder: nn.Module = nn.Identity()
        else:
            dims = [config.input_dim, *config.hidden_dims, config.codebook_dim]
            self.encoder, self.decoder = mlp(dims), mlp([*dims[:0:-1], config.output_dim])
        self.quantizer = ResidualQuantizer(config)
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
            quantized=quantized,
            codes=codes,
        )

    @torch.no_grad()
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes in fp32, whatever autocast says. Shape: `(batch, input_dim)` -> `(batch, levels)` int64.

        Args:
            features: vectors. Shape: `(batch, input_dim)`.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self.quantizer.codes(self.latent(features))[0]

    @torch.no_grad()
    def latent(self, features: torch.Tensor) -> torch.Tensor:
        """What is quantised, in fp32. Shape: `(batch, input_dim)` -> `(batch, codebook_dim)`.

        Args:
            features: vectors. Shape: `(batch, input_dim)`.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self.encoder(features.float())

    @torch.no_grad()
    def initialize_codebooks(
        self, features: torch.Tensor, seed: int = 0, pinned: np.ndarray | torch.Tensor | None = None
    ) -> None:
        """Start of the code books: k-means centres, or the means of the rows whose codes are pinned.

        Args:
            features: `(rows, input_dim)`.
            seed: of k-means.
            pinned: `(rows, levels)` codes that rows have already, -1 where a row has none.
        """
        latent = self.latent(features)
        if pinned is None:
            self.quantizer.initialize(latent, seed)
        else:
            self.quantizer.initialize_from_codes(latent, torch.as_tensor(pinned, device=latent.device), seed)


AutoConfig.register(RQVAEConfig.model_type, RQVAEConfig, exist_ok=True)
AutoModel.register(RQVAEConfig, RQVAEModel, exist_ok=True)
