"""Dual SCID: user and item encoders that agree with behaviour, each followed by its own RQ-VAE (Figure 2b).

The RQ-VAE of a side quantises the unified embedding, and its decoder reconstructs the frozen features that the
embedding was made from. Reconstructing the embedding itself would keep only what the U2I loss needs, which is whom an
item suits, and lose what it is; and the encoder could please the quantiser by shrinking its own output.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from align3gr.errors import InputError
from align3gr.scid.configuration_rqvae import RQVAEConfig
from align3gr.scid.modeling_rqvae import RQVAEModel, mlp


class DualSCIDConfig(PretrainedConfig):
    """Settings of a [`DualSCIDModel`].

    Args:
        item_semantic_dim, item_collaborative_dim: widths of the item features; 0 leaves a kind out.
        user_semantic_dim, user_collaborative_dim: the same for users.
        semantic_weight: scale of the semantic part against the collaborative part (scale 1). The rows of both are
            brought to unit length before.
        hidden_dim: width of the hidden layer of each SC encoder.
        sc_dim: width of the unified embeddings SC_u and SC_i.
        item_rqvae, user_rqvae: settings of the two quantisers, as [`RQVAEConfig`] or dict; `input_dim` is `sc_dim`.
    """

    model_type = "align3gr_dual_scid"

    def __init__(
        self,
        item_semantic_dim: int = 128,
        item_collaborative_dim: int = 64,
        user_semantic_dim: int = 128,
        user_collaborative_dim: int = 64,
        semantic_weight: float = 1.0,
        hidden_dim: int = 256,
        sc_dim: int = 64,
        item_rqvae: RQVAEConfig | dict[str, Any] | None = None,
        user_rqvae: RQVAEConfig | dict[str, Any] | None = None,
        **kwargs,
    ) -> None:
        self.item_semantic_dim = item_semantic_dim
        self.item_collaborative_dim = item_collaborative_dim
        self.user_semantic_dim = user_semantic_dim
        self.user_collaborative_dim = user_collaborative_dim
        self.semantic_weight = semantic_weight
        self.hidden_dim = hidden_dim
        self.sc_dim = sc_dim
        self.item_rqvae = _rqvae_dict(item_rqvae, sc_dim, item_semantic_dim + item_collaborative_dim)
        self.user_rqvae = _rqvae_dict(user_rqvae, sc_dim, user_semantic_dim + user_collaborative_dim)
        super().__init__(**kwargs)


def _rqvae_dict(config: RQVAEConfig | dict[str, Any] | None, sc_dim: int, output_dim: int) -> dict[str, Any]:
    if isinstance(config, RQVAEConfig):
        config = config.to_diff_dict()
    return {**(config or {}), "input_dim": sc_dim, "output_dim": output_dim}


@dataclass
class DualSCIDOutput(ModelOutput):
    """
    Args:
        u2i_loss: Eq. (1), a scalar.
        user_rq_loss, item_rq_loss: the quantisation terms of Eq. (2), scalars; None where not asked for.
    """

    u2i_loss: torch.Tensor | None = None
    user_rq_loss: torch.Tensor | None = None
    item_rq_loss: torch.Tensor | None = None


def u2i_loss(users: torch.Tensor, items: torch.Tensor, false_negatives: torch.Tensor | None = None) -> torch.Tensor:
    """Sampled softmax over the items of the batch, Eq. (1) of Align3GR.

    Args:
        users: `(batch, dim)` SC embeddings of the users.
        items: `(batch, dim)` SC embeddings of each user's positive item; the others of the batch are its negatives.
        false_negatives: `(batch, batch)` bool, true at (b, j) where user b did interact with item j: such an item is
            no negative. The diagonal, where the positives stand, is never masked.
    """
    scores = (users @ items.T).float()
    if false_negatives is not None:
        diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(false_negatives & ~diagonal, float("-inf"))
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


class SCEncoder(nn.Module):
    """Concatenated semantic and collaborative features -> unified embedding.

    An orthogonal projection of the features plus an MLP that starts at zero: training for behaviour begins from what
    the frozen encoders know and bends it. An MLP alone keeps only what tells users apart, and codes made from it have
    lost what items are.
    """

    def __init__(self, semantic_dim: int, collaborative_dim: int, config: DualSCIDConfig) -> None:
        super().__init__()
        if semantic_dim + collaborative_dim == 0:
            raise InputError("an SC encoder needs semantic or collaborative features, both widths are 0")
        self.semantic_weight = config.semantic_weight
        self.projection = nn.Linear(semantic_dim + collaborative_dim, config.sc_dim, bias=False)
        self.mlp = mlp([semantic_dim + collaborative_dim, config.hidden_dim, config.sc_dim])

    @property
    def last(self) -> nn.Linear:
        """The last layer of the MLP."""
        return cast(nn.Linear, self.mlp[-1])

    def features(
        self, semantic: torch.Tensor | None = None, collaborative: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What goes in, and what the decoder reconstructs.

        Shapes: `(batch, semantic_dim)`, `(batch, collaborative_dim)` -> `(batch, semantic_dim + collaborative_dim)`.
        """
        parts = []
        if semantic is not None:
            parts.append(F.normalize(semantic, dim=1) * self.semantic_weight)
        if collaborative is not None:
            parts.append(F.normalize(collaborative, dim=1))
        return torch.cat(parts, 1)

    def forward(self, semantic: torch.Tensor | None = None, collaborative: torch.Tensor | None = None) -> torch.Tensor:
        """Shapes: as `features` -> `(batch, sc_dim)`."""
        features = self.features(semantic, collaborative)
        return self.projection(features) + self.mlp(features)


class DualSCIDModel(PreTrainedModel):
    """SC encoders and RQ-VAEs of users and items, trained together and used apart."""

    config_class = DualSCIDConfig
    base_model_prefix = "dual_scid"

    def __init__(self, config: DualSCIDConfig) -> None:
        super().__init__(config)
        self.item_encoder = SCEncoder(config.item_semantic_dim, config.item_collaborative_dim, config)
        self.user_encoder = SCEncoder(config.user_semantic_dim, config.user_collaborative_dim, config)
        self.item_rqvae = RQVAEModel(RQVAEConfig(**config.item_rqvae))
        self.user_rqvae = RQVAEModel(RQVAEConfig(**config.user_rqvae))
        # False while the autoencoders learn without their quantisers, before the code books start.
        self.quantize = True
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        self.item_rqvae._init_weights(module)
        for encoder in (self.item_encoder, self.user_encoder):
            if module is encoder.projection:
                init.orthogonal_(module.weight)
            elif module is encoder.last:
                init.zeros_(encoder.last.weight)

    def forward(
        self,
        users: dict[str, torch.Tensor],
        items: dict[str, torch.Tensor],
        false_negatives: torch.Tensor | None = None,
        quantize_users: dict[str, torch.Tensor] | None = None,
        quantize_items: dict[str, torch.Tensor] | None = None,
    ) -> DualSCIDOutput:
        """The terms of Eq. (2).

        Args:
            users, items: features of the interacting pairs, each `{"semantic": (batch, dim), "collaborative": ...}`.
            false_negatives: see [`u2i_loss`].
            quantize_users, quantize_items: features of the rows whose quantisation is trained; None leaves the
                quantisation terms out.
        """
        output = DualSCIDOutput(u2i_loss=u2i_loss(self.embed_users(users), self.embed_items(items), false_negatives))
        if quantize_users is not None:
            output.user_rq_loss = self.user_rqvae(
                self.embed_users(quantize_users), self.user_encoder.features(**quantize_users), self.quantize
            ).loss
        if quantize_items is not None:
            output.item_rq_loss = self.item_rqvae(
                self.embed_items(quantize_items), self.item_encoder.features(**quantize_items), self.quantize
            ).loss
        return output

    def embed_users(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """SC_u. Shape: features -> `(batch, sc_dim)`."""
        return self.user_encoder(features.get("semantic"), features.get("collaborative"))

    def embed_items(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """SC_i. Shape: features -> `(batch, sc_dim)`."""
        return self.item_encoder(features.get("semantic"), features.get("collaborative"))

    @torch.no_grad()
    def encode_users(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """User codes, the user side alone. Shape: features -> `(batch, levels)` int64."""
        return self.user_rqvae.encode(self.embed_users(features))

    @torch.no_grad()
    def encode_items(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Item codes, the item side alone and before collisions are resolved. Shape: `(batch, levels)` int64."""
        return self.item_rqvae.encode(self.embed_items(features))


AutoConfig.register(DualSCIDConfig.model_type, DualSCIDConfig, exist_ok=True)
AutoModel.register(DualSCIDConfig, DualSCIDModel, exist_ok=True)
