"""What kind of SCIDs: the options of the token level, and the model that they describe.

| variant | options |
|---|---|
| the paper: dual, collaborative features, U2I | the defaults |
| item side only | `sides: item` |
| without U2I | `alignment_epochs: 0`, `alpha: 0` |
| without collaborative features | `collaborative: none` in the embed stage |
| plain RQ-VAE on texts (LC-Rec) | `sides: item`, `collaborative_input: false` |
| TIGER | the same, with `collisions: extra-level`, `user_buckets: 2000` |
| LETTER | `sides: item`, `collaborative_input: false`, `contrastive_weight: 0.02`, `diversity_weight: 0.0001` |
| P5-SemID | `sides: item`, `codes: categories`, `collisions: extra-level` |
| P5-CID | `sides: item`, `codes: clusters`, `collisions: extra-level` |
| residual k-means | `sc_encoder: none`, `quantization_epochs: 0` |
| imported codes | `sides: item`, `item_codes: X.index.json`, `collisions: none` or `extra-level` |

Some options have no effect on some variants; [`SCIDSettings.without_effect`] names those that were set all the same.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from align3gr.errors import InputError
from align3gr.scid.collisions import ADDED_LEVEL, STRATEGIES
from align3gr.scid.configuration_dual_scid import DualSCIDConfig
from align3gr.scid.configuration_rqvae import RQVAEConfig, propose_codebook_sizes
from align3gr.scid.dual_scid_trainer import DualSCIDTrainingConfig

# Options that came later: at their defaults they are no part of a manifest, so that finished stages stay finished.
_LATER = (
    "collaborative_input",
    "codes",
    "category_levels",
    "clusters",
    "largest_cluster",
    "cluster_levels",
    "user_buckets",
)
_OF_CODES = {
    "trained": set(),
    "categories": {"category_levels"},
    "clusters": {"clusters", "largest_cluster", "cluster_levels"},
}


def _option(default, text: str, *choices: str):
    metadata = {"help": text} | ({"choices": list(choices)} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class SCIDSettings:
    """Options of the token level; see the module for the variants they make."""

    sides: str = _option("dual", "Whether users have codes too.", "dual", "item")
    item_codebook_sizes: list[int] = _option([256, 256, 256], "Codes at each level of an item's SCID.")
    user_codebook_sizes: list[int] = _option([256, 256, 256], "Codes at each level of a user's SCID.")
    auto_codebook_sizes: bool = _option(
        False, "Take 3 levels for items whose size follows from the catalogue, in place of item_codebook_sizes."
    )
    codebook_dim: int = _option(32, "Width of a code vector.")
    hidden_dims: list[int] = _option([], "Widths of the RQ-VAEs' hidden layers; none makes them linear.")
    semantic_weight: float = _option(0.5, "Scale of the semantic features against the collaborative ones.")
    sc_encoder: str = _option("mlp", "SC encoder in front of the quantisers.", "mlp", "none")
    hidden_dim: int = _option(256, "Width of the SC encoders' hidden layer.")
    sc_dim: int = _option(64, "Width of the unified embeddings.")
    u2i_temperature: float = _option(1.0, "Divides the scores of Eq. (1).")
    contrastive_weight: float = _option(0.0, "LETTER's collaborative regulariser on items.")
    diversity_weight: float = _option(0.0, "LETTER's diversity regulariser on items.")
    commitment_weight: float = _option(0.25, "Weight of the commitment term.")
    estimator: str = _option("straight-through", "How gradients pass the quantiser.", "straight-through", "rotation")
    codebook_update: str = _option("loss", "How code vectors learn.", "loss", "ema")
    ema_decay: float = _option(0.99, "Decay of the running means of codebook_update ema.")
    sinkhorn_epsilon: float = _option(0.0, "Above 0, training balances the use of codes by Sinkhorn's algorithm.")
    revive_after: int = _option(100, "Steps after which an unused code is put somewhere else; 0 never.")
    collisions: str = _option("assignment", "What makes item codes unique.", *STRATEGIES)
    collaborative_input: bool = _option(
        True, "Whether codes are made from collaborative features too; LETTER's regulariser sees them in any case."
    )
    codes: str = _option(
        "trained",
        "Item codes of a trained model, of the items' categories (P5-SemID) or of co-occurrence clusters (P5-CID).",
        *("trained", "categories", "clusters"),
    )
    category_levels: int = _option(3, "codes categories: categories of an item that count.")
    clusters: int = _option(20, "codes clusters: parts that a cluster is cut into.")
    largest_cluster: int = _option(200, "codes clusters: items up to which a cluster stays whole.")
    cluster_levels: int = _option(3, "codes clusters: cuts at most.")
    user_buckets: int = _option(
        0, "With sides item: give each user one of so many codes by a hash of the id (TIGER); 0 gives none."
    )
    item_codes: str | None = _option(None, "Ready item codes (Parquet or *.index.json) in place of training.")
    previous: str | None = _option(None, "Folder scid of an earlier run whose codes keep their meaning.")
    pin: bool = _option(True, "With previous: items and users that had codes keep them.")

    def __post_init__(self) -> None:
        self._check_ready()
        if self.previous and self.pin and self.collisions in ADDED_LEVEL:
            raise InputError(f"pin: does not go with collisions '{self.collisions}'; take nearest-free, or pin: false")
        if self.auto_codebook_sizes and self.item_codebook_sizes != [256, 256, 256]:
            raise InputError("auto_codebook_sizes: leave item_codebook_sizes out, or set it to false")
        if self.sc_encoder == "none" and (self.hidden_dims or self.contrastive_weight):
            raise InputError("sc_encoder: 'none' quantises the features themselves; leave hidden_dims and weights out")

    def _check_ready(self) -> None:
        if self.item_codes and self.codes != "trained":
            raise InputError(f"item_codes: does not go with codes '{self.codes}'; leave one of them out")
        name = "item_codes" if self.item_codes else f"codes {self.codes}"
        if self.ready and self.sides != "item":
            raise InputError(f"{name}: ready codes have no user side; set sides: item")
        if self.ready and self.collisions not in ("none", *ADDED_LEVEL):
            others = ", ".join(("none", *ADDED_LEVEL))
            raise InputError(f"collisions: '{self.collisions}' needs a trained model; with {name} take {others}")
        if self.ready and self.previous:
            raise InputError(f"previous: does not apply to ready {name}; leave one of them out")
        if self.user_buckets < 0 or (self.user_buckets and self.sides != "item"):
            raise InputError(
                f"user_buckets: got {self.user_buckets} with sides '{self.sides}', expected 0 or more, and sides: item"
            )

    @property
    def ready(self) -> bool:
        """Whether item codes come without training."""
        return bool(self.item_codes) or self.codes != "trained"

    def recorded(self) -> dict[str, Any]:
        """What a manifest holds of these options."""
        default = asdict(type(self)())
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != default[name]}

    def without_effect(self, training: DualSCIDTrainingConfig) -> list[str]:
        """Options that were set to another value than the default although this variant does not look at them."""
        idle: set[str] = set()
        if self.ready:
            idle |= {option.name for option in fields(self)}
            idle -= {"sides", "collisions", "item_codes", "codes", "user_buckets", *_OF_CODES[self.codes]}
            idle |= {option.name for option in fields(training)} - ({"seed"} if self.codes == "clusters" else set())
        else:
            idle |= set().union(*_OF_CODES.values())
        if self.sides == "item":
            idle |= {"user_codebook_sizes", "alignment_epochs", "alpha", "logq_correction", "u2i_temperature"}
        if self.sc_encoder == "none":
            idle |= {"alignment_epochs", "autoencoder_epochs", "alpha", "patience", "min_auc_gain", "logq_correction"}
            idle |= {"codebook_dim", "hidden_dim", "sc_dim", "u2i_temperature", "estimator"}
        if self.codebook_update != "ema":
            idle.add("ema_decay")
        if not self.previous:
            idle.add("pin")
        return sorted(
            option.name
            for options in (self, training)
            for option in fields(options)
            if option.name in idle and getattr(options, option.name) != getattr(type(options)(), option.name)
        )

    def item_sizes(self, num_items: int) -> list[int]:
        """Codes at each level for a catalogue."""
        return propose_codebook_sizes(num_items).sizes if self.auto_codebook_sizes else self.item_codebook_sizes

    def model_config(self, num_items: int, items: tuple[int, int], users: tuple[int, int]) -> DualSCIDConfig:
        """The model for a catalogue.

        Args:
            num_items: items of the catalogue.
            items, users: widths of the semantic and the collaborative features.
        """

        def quantizer(sizes: list[int]) -> RQVAEConfig:
            return RQVAEConfig(
                codebook_sizes=sizes,
                codebook_dim=self.codebook_dim,
                hidden_dims=self.hidden_dims,
                commitment_weight=self.commitment_weight,
                estimator=self.estimator,
                codebook_update=self.codebook_update,
                ema_decay=self.ema_decay,
                sinkhorn_epsilon=self.sinkhorn_epsilon,
                revive_after=self.revive_after,
            )

        return DualSCIDConfig(
            *items,
            *(users if self.sides == "dual" else (0, 0)),
            semantic_weight=self.semantic_weight,
            sc_encoder=self.sc_encoder,
            hidden_dim=self.hidden_dim,
            sc_dim=self.sc_dim,
            u2i_temperature=self.u2i_temperature,
            collaborative_input=self.collaborative_input,
            contrastive_weight=self.contrastive_weight,
            diversity_weight=self.diversity_weight,
            item_rqvae=quantizer(self.item_sizes(num_items)),
            user_rqvae=quantizer(self.user_codebook_sizes),
        )
