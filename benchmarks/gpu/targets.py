"""The parts in the order of their worth, what each figure is called, and what it should reach on an H100 or H200."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: what is measured.
        target: number to reach, None for a figure that only explains others.
        better: whether the figure should be at least or at most the target.
        digits: after the point.
    """

    title: str
    target: float | None = None
    better: Literal["at least", "at most"] = "at least"
    digits: int = 2

    def reached(self, value: float | bool | str) -> bool | None:
        """Whether a value is good enough; None without a target."""
        if self.target is None or isinstance(value, str):
            return None
        return value >= self.target if self.better == "at least" else value <= self.target


@dataclass(frozen=True)
class Part:
    """What one process measures.

    Attributes:
        title: headline of its table.
        seconds: that it may take; what it leaves is there for the later ones.
        rows: figures by name.
    """

    title: str
    seconds: int
    rows: dict[str, Row]


PARTS: dict[str, Part] = {
    "beam": Part(
        "Constrained beam search: Llama2-7B shape, prompt 120, 20 beams, 20,000 items of 3 x 256",
        150,
        {
            "users_per_s": Row("users a second, best batch", 200, digits=0),
            "best_batch": Row("that batch", digits=0),
            "ratio": Row("over `generate` + `prefix_allowed_tokens_fn`, 16 prompts", 12, digits=1),
            "users_per_s_batch_16": Row("users a second, 16 prompts", digits=0),
            "generate_users_per_s": Row("`generate`: users a second, 16 prompts", digits=1),
            "latency_ms": Row("one user, ms", 20, "at most", 1),
            "users_per_s_template": Row("users a second, first 60 tokens cached", digits=0),
            "ratio_template": Row("best batch with cached template over `generate` with 16 prompts", 15, digits=1),
            "latency_template_ms": Row("one user, first 60 tokens cached, ms", 20, "at most", 1),
            "template_overlap": Row("share of the list that stays with the cached template", 0.97, digits=3),
            "trie_share": Row("look-ups in the trie over the search, upper bound", 0.01, "at most", 4),
            "trie_ms": Row("look-ups of one search, ms", digits=3),
            "peak_gb": Row("growth of memory at the peak, 16 prompts, GB", digits=1),
            "memory_ratio": Row("that of `generate` over ours", 10, digits=1),
        },
    ),
    "preference": Part(
        "Softmax-DPO step: Llama2-7B shape, LoRA, 16 prompts of 120 tokens, 20 rejected of 4 tokens",
        140,
        {
            "vs_naive": Row("full sequences over shared prompt", 12, digits=1),
            "token_limit": Row("ratio of the tokens computed", digits=1),
            "vs_sft": Row("shared prompt over a completion-only SFT step", 1.6, "at most"),
            "merged_vs_sft": Row("merged tree, hard stage, over the SFT step", 1.25, "at most"),
            "merged_gain": Row("shared prompt over merged tree, hard stage"),
            "shared_ms": Row("shared prompt, ms", digits=0),
            "merged_ms": Row("merged tree, hard stage, ms", digits=0),
            "sft_ms": Row("SFT step, ms", digits=0),
            "naive_ms": Row("full sequences, a prompt at a time, ms", digits=0),
            "shared_peak_gb": Row("growth of memory at the peak, shared prompt, 16 prompts, GB", digits=1),
            "naive_one_prompt_gb": Row("the same, full sequences of one prompt, GB", digits=1),
            "memory_ratio": Row("full sequences over shared prompt, one prompt", 8, digits=1),
            "loss_difference": Row("relative difference of the losses", digits=6),
            "gradient_difference": Row("relative distance of the gradients", digits=6),
        },
    ),
    "fine_tuning": Part(
        "LoRA fine-tuning: Llama2-7B shape, packed rows of 1,024 tokens, bf16, no checkpointing",
        90,
        {
            "mfu": Row("MFU: 4 N FLOP a token over 989 TFLOP/s", 0.40),
            "tokens_per_s": Row("tokens a second", digits=0),
            "rows": Row("rows a step", digits=0),
            "mfu_fp32_adapter": Row("MFU with the adapter in fp32, PEFT's default", 0.40),
            "tokens_per_s_fp32_adapter": Row("tokens a second, the same", digits=0),
            "rows_fp32_adapter": Row("rows a step, the same", digits=0),
            "mfu_compiled": Row("MFU with compiled layers", 0.40),
            "tokens_per_s_compiled": Row("tokens a second, the same", digits=0),
            "rows_compiled": Row("rows a step, the same", digits=0),
            "gemm_tflops": Row("a large bf16 product here, TFLOP/s", digits=0),
        },
    ),
    "precision": Part(
        "bf16 against fp32 with the same weights, 32 prompts; fp32 against the plain ways",
        80,
        {
            "overlap_20": Row("share of the fp32 list of 20 in the bf16 list", 0.97, digits=3),
            "overlap_10": Row("share of the fp32 list of 10 in the bf16 list", digits=3),
            "same_first": Row("prompts with the same first item", digits=3),
            "logp_mean_difference": Row("mean difference of a log-probability", digits=4),
            "logp_max_difference": Row("largest difference of a log-probability", digits=4),
            "same_as_generate": Row("fp32: share of the list that `generate` has", 1.0, digits=4),
            "score_difference_generate": Row("fp32: largest difference of a score", 1e-4, "at most", 7),
            "fp32_loss_difference": Row("fp32: losses of shared prompt and full sequences", 1e-5, "at most", 8),
            "fp32_gradient_difference": Row("fp32: gradients of the same", 1e-5, "at most", 8),
            "fp32_merged_difference": Row("fp32: gradients of merged tree and full sequences", 1e-5, "at most", 8),
        },
    ),
    "tokens": Part(
        "RQ-VAE of LC-Rec's widths, 448 -> 3 x 256: an epoch over 1M rows, codes of 10M items",
        60,
        {
            "assign_10m_s": Row("codes of 10M items, fp32, s", 2.0, "at most"),
            "assign_items_per_s": Row("items a second, fp32", digits=0),
            "assign_gemm_fraction": Row("its products over the fp32 GEMM rate", 0.8),
            "assign_bf16_ratio": Row("fp32 over bf16 encoder, time"),
            "assign_bf16_same": Row("items with the same three codes in bf16", digits=4),
            "epoch_s_fp32": Row("epoch, fp32, s", digits=1),
            "epoch_s_bf16": Row("epoch, bf16 autocast, s", digits=1),
            "train_bf16_ratio": Row("fp32 over bf16, time of a step", 3.5),
            "train_gemm_fraction": Row("products of a step over the fp32 GEMM rate", 0.8),
            "train_gemm_fraction_bf16": Row("products of a bf16 step over the bf16 GEMM rate"),
        },
    ),
    "yelp": Part(
        "Yelp from raw files: small model from scratch, 5 epochs, bf16",
        240,
        {
            "recall_10": Row("Recall@10, seen items allowed, test split", digits=4),
            "ndcg_10": Row("NDCG@10, the same", digits=4),
            "evaluation_users_per_s": Row("users a second of the evaluation", digits=0),
            "prepare_s": Row("prepare, s", digits=1),
            "embed_s": Row("embed, s", digits=1),
            "scid_s": Row("scid, s", digits=1),
            "sft_s": Row("sft, s", digits=1),
            "evaluate_s": Row("evaluate, baselines too, s", digits=1),
        },
    ),
}
