"""Settings of the dual model: SC encoders of users and items, and their two quantisers."""

from typing import Any, Literal

from transformers import PretrainedConfig

from align3gr.errors import InputError
from align3gr.scid.configuration_rqvae import RQVAEConfig


class DualSCIDConfig(PretrainedConfig):
    """Settings of a [`DualSCIDModel`].

    Args:
        item_semantic_dim, item_collaborative_dim: widths of the item features; 0 leaves a kind out.
        user_semantic_dim, user_collaborative_dim: the same for users; both 0 leaves users without a side.
        semantic_weight: scale of the semantic part against the collaborative part (scale 1). The rows of both are
            brought to unit length before.
        sc_encoder: "mlp" is the paper's; "none" quantises the concatenated features themselves, which without training
            is residual k-means.
        hidden_dim: width of the hidden layer of each SC encoder.
        sc_dim: width of the unified embeddings SC_u and SC_i; with sc_encoder "none" the width of the features.
        u2i_temperature: divides the scores of Eq. (1); 1 is the paper's.
        collaborative_input: whether collaborative features go into the encoders. Where they do not, as in LETTER, they
            serve the contrastive regulariser alone.
        contrastive_weight, diversity_weight: LETTER's two regularisers on the item side; 0 leaves them out.
        item_rqvae, user_rqvae: settings of the two quantisers, as [`RQVAEConfig`] or dict; their widths follow.
    """

    model_type = "align3gr_dual_scid"

    def __init__(
        self,
        item_semantic_dim: int = 128,
        item_collaborative_dim: int = 64,
        user_semantic_dim: int = 128,
        user_collaborative_dim: int = 64,
        semantic_weight: float = 1.0,
        sc_encoder: str = "mlp",
        hidden_dim: int = 256,
        sc_dim: int = 64,
        u2i_temperature: float = 1.0,
        collaborative_input: bool = True,
        contrastive_weight: float = 0.0,
        diversity_weight: float = 0.0,
        item_rqvae: RQVAEConfig | dict[str, Any] | None = None,
        user_rqvae: RQVAEConfig | dict[str, Any] | None = None,
        **kwargs,
    ) -> None:
        if sc_encoder not in ("mlp", "none"):
            raise InputError(f"sc_encoder: got '{sc_encoder}', choose mlp or none")
        if u2i_temperature <= 0:
            raise InputError(f"u2i_temperature: got {u2i_temperature}, expected more than 0")
        if contrastive_weight and not item_collaborative_dim:
            raise InputError("contrastive_weight: needs collaborative features of items, there are none")
        if item_semantic_dim + item_collaborative_dim == 0:
            raise InputError("items need semantic or collaborative features, both widths are 0")
        for side, dims in (
            ("items", (item_semantic_dim, item_collaborative_dim)),
            ("users", (user_semantic_dim, user_collaborative_dim)),
        ):
            if not collaborative_input and any(dims) and not dims[0]:
                raise InputError(f"collaborative_input: without it {side} need semantic features, there are none")
        self.item_semantic_dim = item_semantic_dim
        self.item_collaborative_dim = item_collaborative_dim
        self.user_semantic_dim = user_semantic_dim
        self.user_collaborative_dim = user_collaborative_dim
        self.semantic_weight = semantic_weight
        self.sc_encoder = sc_encoder
        self.hidden_dim = hidden_dim
        self.sc_dim = sc_dim
        self.u2i_temperature = u2i_temperature
        self.collaborative_input = collaborative_input
        self.contrastive_weight = contrastive_weight
        self.diversity_weight = diversity_weight
        self.item_rqvae = self._rqvae(item_rqvae, sum(self.encoder_dims("item")))
        self.user_rqvae = self._rqvae(user_rqvae, sum(self.encoder_dims("user")))
        by_means = self.item_rqvae.get("codebook_update") == "ema"
        if diversity_weight and by_means:
            raise InputError("diversity_weight: code vectors that are running means do not follow it; leave it out")
        if sc_encoder == "none" and (by_means or self.user_rqvae.get("codebook_update") == "ema"):
            raise InputError("codebook_update: 'ema' with sc_encoder 'none' leaves nothing to learn; take loss")
        super().__init__(**kwargs)

    @property
    def has_users(self) -> bool:
        """Whether users have features, and so codes."""
        return self.user_semantic_dim + self.user_collaborative_dim > 0

    def encoder_dims(self, side: Literal["item", "user"]) -> tuple[int, int]:
        """Widths of the semantic and the collaborative features that a side's encoder takes.

        Args:
            side: "item" or "user".
        """
        if side == "item":
            semantic, collaborative = self.item_semantic_dim, self.item_collaborative_dim
        else:
            semantic, collaborative = self.user_semantic_dim, self.user_collaborative_dim
        return semantic, collaborative if self.collaborative_input else 0

    def _rqvae(self, config: RQVAEConfig | dict[str, Any] | None, features: int) -> dict[str, Any]:
        if isinstance(config, RQVAEConfig):
            config = config.to_diff_dict()
        config = {**(config or {}), "output_dim": features}
        if self.sc_encoder == "none":
            return config | {"input_dim": features, "codebook_dim": features, "hidden_dims": None}
        return config | {"input_dim": self.sc_dim}
