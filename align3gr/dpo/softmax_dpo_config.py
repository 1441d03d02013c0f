"""Arguments of `SoftmaxDPOTrainer`."""

from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

PREFIX_SHARING = ("shared", "merged", "naive")

# Options of the parent that change its loss, its batches or its reference, with the only value that means the same
# here. Anything else is refused: an accepted option that does nothing is worse than none.
_FIXED: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "label_smoothing_factor": 0.0,
    "use_weighting": False,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "discopop_tau": 0.05,
    "padding_free": False,
    "use_liger_kernel": False,
    "truncation_mode": "keep_start",
    "pad_token": None,
}
# What `sync_ref_model` alone reads.
_SYNC: dict[str, Any] = {"ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512}


@dataclass
class SoftmaxDPOConfig(DPOConfig):
    """Configuration of [`SoftmaxDPOTrainer`]: that of `trl.DPOConfig`, with the differences below.

    Args:
        num_rejected: Most rejected completions a row may have; 20 in the paper. Rows may have fewer.
        prefix_sharing: `"shared"` computes a prompt once for all its completions, `"merged"` also what completions
            have in common at their beginning, `"naive"` runs one full sequence a completion (any attention kernel).
            The three give the same loss and gradients.
        preference_coefficient: Weight of the Softmax-DPO loss. 0 with `sft_coefficient=1` is continued fine-tuning on
            the same rows in the same steps.
        sft_coefficient: Weight of the negative log-likelihood of the chosen completion, the mean over its tokens.
        length_normalization: Log-ratios are means over a completion's tokens in place of sums, as in TRL's loss
            `sigmoid_norm`; so are then the rewards and ranks that are logged.
        append_eos: Text completions get the tokenizer's end-of-sequence token where they do not end with it, as in
            `trl.DPOTrainer`. Messages end as the chat template ends them, token ids are taken as they are.
        precompute_ref_log_probs: On by default: the reference is the policy at the start of training, and is computed
            once. Off needs an explicit `ref_model`.
        bf16: Off unless asked for.
        gradient_checkpointing: Off unless asked for.

    Raises:
        ValueError: An option of the parent that Softmax-DPO does not implement is set, or a value is out of range.
    """

    num_rejected: int = field(
        default=20, metadata={"help": "Most rejected completions a row may have. Rows may have fewer."}
    )
    prefix_sharing: str = field(
        default="shared",
        metadata={
            "help": "'shared' computes each prompt once for all its completions, 'merged' also the common beginnings "
            "of completions, 'naive' one full sequence a completion. Same loss and gradients.",
            "choices": list(PREFIX_SHARING),
        },
    )
    preference_coefficient: float = field(
        default=1.0,
        metadata={"help": "Weight of the Softmax-DPO loss. 0 with sft_coefficient=1 is continued fine-tuning."},
    )
    sft_coefficient: float = field(
        default=0.0,
        metadata={"help": "Weight of the negative log-likelihood of the chosen completion, the mean over its tokens."},
    )
    length_normalization: bool = field(
        default=False, metadata={"help": "Log-ratios are means over a completion's tokens in place of sums."}
    )
    append_eos: bool = field(
        default=True,
        metadata={
            "help": "Text completions get the end-of-sequence token where they do not end with it. Messages end as "
            "the chat template ends them, token ids are taken as they are."
        },
    )
    precompute_ref_log_probs: bool = field(
        default=True,
        metadata={
            "help": "Compute the reference once, by the policy at the start. Off needs an explicit `ref_model`."
        },
    )
    bf16: bool = field(default=False, metadata={"help": "Whether to use bf16 mixed precision."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Whether to recompute activations in the backward pass to save memory."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        for name, value in _FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not implemented by Softmax-DPO; leave it at {value!r}"
                )
        if self.router_aux_loss_coef:
            raise ValueError(
                f"router_aux_loss_coef={self.router_aux_loss_coef} is not implemented by Softmax-DPO; set it to 0.0"
            )
        for name, value in _SYNC.items():
            if getattr(self, name) != value and not self.sync_ref_model:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect without sync_ref_model=True")
        for name in ("preference_coefficient", "sft_coefficient"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative; expected 0 or a positive weight")
        if self.preference_coefficient == self.sft_coefficient == 0:
            raise ValueError("preference_coefficient=0.0 and sft_coefficient=0.0 leave no loss; set one of them")
        if self.num_rejected < 1:
            raise ValueError(f"num_rejected={self.num_rejected} leaves nothing to prefer over; expected at least 1")
        if self.prefix_sharing not in PREFIX_SHARING:
            raise ValueError(f"prefix_sharing={self.prefix_sharing!r} is unknown; expected one of {PREFIX_SHARING}")
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} gives no preference; expected a positive number, 0.1 by default")
        super().__post_init__()
