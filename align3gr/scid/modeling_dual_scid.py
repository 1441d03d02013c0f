"""Dual SCID: user and item encoders that agree with behaviour, each followed by its own RQ-VAE (Figure 2b).

The RQ-VAE of a side quantises the unified embedding, and its decoder reconstructs the frozen features that the
embedding was made from. Reconstructing the embedding itself would keep only what the U2I loss needs, which is whom an
item suits, and lose what it is; and the encoder could please the quantiser by shrinking its own output.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from align3gr.errors import InputError
from align3gr.scid.card import CardMixin, model_card
from align3gr.scid.configuration_dual_scid import DualSCIDConfig
from align3gr.scid.configuration_rqvae import RQVAEConfig
from align3gr.scid.losses import CodebookDiversity, collaborative_contrast, u2i_loss
from align3gr.scid.modeling_rqvae import RQVAEModel
from align3gr.scid.quantizer import mlp

Features = dict[str, torch.Tensor]


@dataclass
class DualSCIDOutput(ModelOutput):
    """
    Args:
        u2i_loss: Eq. (1), a scalar; None where not asked for.
        user_rq_loss, item_rq_loss: the quantisation terms of Eq. (2), scalars; None where not asked for.
        regularization: LETTER's regularisers with their weights, a scalar; None where both weights are 0.
    """

    u2i_loss: torch.Tensor | None = None
    user_rq_loss: torch.Tensor | None = None
    item_rq_loss: torch.Tensor | None = None
    regularization: torch.Tensor | None = None


class SCEncoder(nn.Module):
    """Concatenated semantic and collaborative features -> unified embedding.

    An orthogonal projection of the features plus an MLP that starts at zero: training for behaviour begins from what
    the frozen encoders know and bends it. An MLP alone keeps only what tells users apart, and codes made from it have
    lost what items are.
    """

    def __init__(self, semantic_dim: int, collaborative_dim: int, config: DualSCIDConfig) -> None:
        super().__init__()
        self.semantic_weight = config.semantic_weight
        self.takes_collaborative = collaborative_dim > 0
        self.trained = config.sc_encoder == "mlp"
        if self.trained:
            self.projection = nn.Linear(semantic_dim + collaborative_dim, config.sc_dim, bias=False)
            self.mlp = mlp([semantic_dim + collaborative_dim, config.hidden_dim, config.sc_dim])

    @property
    def last(self) -> nn.Linear:
        """The last layer of the MLP."""
        return cast(nn.Linear, self.mlp[-1])

    def features(
        self, semantic: torch.Tensor | None = None, collaborative: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What goes in, and what the decoder reconstructs; collaborative features only where the config has them here.

        Shapes: `(batch, semantic_dim)`, `(batch, collaborative_dim)` -> `(batch, semantic_dim + collaborative_dim)`.
        """
        parts = []
        if semantic is not None:
            parts.append(F.normalize(semantic, dim=1) * self.semantic_weight)
        if collaborative is not None and self.takes_collaborative:
            parts.append(F.normalize(collaborative, dim=1))
        return torch.cat(parts, 1)

    def forward(self, semantic: torch.Tensor | None = None, collaborative: torch.Tensor | None = None) -> torch.Tensor:
        """Shapes: as `features` -> `(batch, sc_dim)`."""
        features = self.features(semantic, collaborative)
        return self.projection(features) + self.mlp(features) if self.trained else features


class DualSCIDModel(CardMixin, PreTrainedModel):
    """SC encoders and RQ-VAEs of users and items, trained together and used apart.

    Args:
        config: the sizes of both sides.
    """

    config_class = DualSCIDConfig
    base_model_prefix = "dual_scid"

    def __init__(self, config: DualSCIDConfig) -> None:
        super().__init__(config)
        self.item_encoder = SCEncoder(*config.encoder_dims("item"), config)
        self.item_rqvae = RQVAEModel(RQVAEConfig(**config.item_rqvae))
        if config.has_users:
            self.user_encoder = SCEncoder(*config.encoder_dims("user"), config)
            self.user_rqvae = RQVAEModel(RQVAEConfig(**config.user_rqvae))
        if config.contrastive_weight:
            width = self.item_rqvae.config.codebook_dim
            self.collaborative_head = nn.Linear(config.item_collaborative_dim, width, bias=False)
        if config.diversity_weight:
            self.diversity = CodebookDiversity()
        # False while the autoencoders learn without their quantisers, before the code books start.
        self.quantize = True
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        self.item_rqvae._init_weights(module)
        sides = [self.item_encoder] + ([self.user_encoder] if self.config.has_users else [])
        for encoder in sides if self.config.sc_encoder == "mlp" else []:
            if module is encoder.projection:
                init.orthogonal_(module.weight)
            elif module is encoder.last:
                init.zeros_(encoder.last.weight)

    def forward(
        self,
        users: Features | None = None,
        items: Features | None = None,
        false_negatives: torch.Tensor | None = None,
        log_q: torch.Tensor | None = None,
        quantize_users: Features | None = None,
        quantize_items: Features | None = None,
        item_rows: torch.Tensor | None = None,
    ) -> DualSCIDOutput:
        """The terms of Eq. (2).

        Args:
            users, items: features of the interacting pairs, each `{"semantic": (batch, dim), "collaborative": ...}`;
                None leaves Eq. (1) out.
            false_negatives, log_q: see [`u2i_loss`].
            quantize_users, quantize_items: features of the rows whose quantisation is trained; None leaves the
                quantisation terms out.
            item_rows: `(batch,)` which items `quantize_items` are, for LETTER's regulariser; None if no item is there
                twice.
        """
        output = DualSCIDOutput()
        if users is not None and items is not None:
            output.u2i_loss = u2i_loss(
                self.embed_users(users), self.embed_items(items), false_negatives, self.config.u2i_temperature, log_q
            )
        if quantize_users is not None:
            embedded = self.embed_users(quantize_users)  # first: it says so where there is no user side
            target = self.user_encoder.features(**quantize_users)
            output.user_rq_loss = self.user_rqvae(embedded, target, self.quantize).loss
        if quantize_items is not None:
            quantization = self.item_rqvae(
                self.embed_items(quantize_items), self.item_encoder.features(**quantize_items), self.quantize
            )
            output.item_rq_loss = quantization.loss
            if self.quantize:
                output.regularization = self._regularization(quantization, quantize_items, item_rows)
        return output

    def _regularization(self, quantization, items: Features, rows: torch.Tensor | None) -> torch.Tensor | None:
        total = None
        if self.config.contrastive_weight:
            rows = torch.arange(len(quantization.quantized), device=self.device) if rows is None else rows
            vectors = self.collaborative_head(F.normalize(items["collaborative"], dim=1))
            total = self.config.contrastive_weight * collaborative_contrast(quantization.quantized, vectors, rows)
        if self.config.diversity_weight:
            diversity = self.diversity(self.item_rqvae.quantizer.codebooks, quantization.codes)
            total = self.config.diversity_weight * diversity + (0 if total is None else total)
        return total

    def embed_users(self, features: Features) -> torch.Tensor:
        """SC_u. Shape: features -> `(batch, sc_dim)`.

        Args:
            features: semantic and collaborative vectors of the rows.
        """
        if not self.config.has_users:
            raise InputError("users: the model has an item side only; train it with user features")
        return self.user_encoder(features.get("semantic"), features.get("collaborative"))

    def embed_items(self, features: Features) -> torch.Tensor:
        """SC_i. Shape: features -> `(batch, sc_dim)`.

        Args:
            features: semantic and collaborative vectors of the rows.
        """
        return self.item_encoder(features.get("semantic"), features.get("collaborative"))

    @torch.no_grad()
    def encode_users(self, features: Features) -> torch.Tensor:
        """User codes, the user side alone. Shape: features -> `(batch, levels)` int64.

        Args:
            features: semantic and collaborative vectors of the rows.
        """
        with torch.autocast(self.device.type, enabled=False):
            embedded = self.embed_users(features)  # first: it says so where there is no user side
            return self.user_rqvae.encode(embedded)

    @torch.no_grad()
    def encode_items(self, features: Features) -> torch.Tensor:
        """Item codes, the item side alone and before collisions are resolved. Shape: `(batch, levels)` int64.

        Args:
            features: semantic and collaborative vectors of the rows.
        """
        with torch.autocast(self.device.type, enabled=False):
            return self.item_rqvae.encode(self.embed_items(features))

    def card(self) -> ModelCard:
        """A model card with the settings, and the health of the code books at the end of training."""
        sides = {"items": self.config.item_rqvae.get("health")}
        if self.config.has_users:
            sides["users"] = self.config.user_rqvae.get("health")
        return model_card(type(self).__name__, self.config, sides)


AutoConfig.register(DualSCIDConfig.model_type, DualSCIDConfig, exist_ok=True)
AutoModel.register(DualSCIDConfig, DualSCIDModel, exist_ok=True)
