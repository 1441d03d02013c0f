"""A Softmax-DPO step with LoRA at Llama2-7B's shape: shared prompt, merged tree, full sequences, and an SFT step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from align3gr.dpo import naive_logps, sequence_batch, shared_prefix_logps, tree_batch
from align3gr.dpo.softmax_dpo_loss import softmax_dpo_loss
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import Run, Setting, relative_distance
from benchmarks.softmax_dpo import LEVELS, PROMPT_LENGTH, REJECTED, Rows, build_rows

PROMPTS = 16
BETA = 0.1
Step = Callable[[], Tensor]


def with_lora(model: Any) -> Any:
    """An adapter of rank 8 on all linear layers, both halves random: with one half zero, a gradient would be zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config, autocast_adapter_dtype=False).train()


class Steps:
    """Forward, loss and backward of each variant over the same prompts; the reference is cached, as in training.

    Args:
        model: with a LoRA adapter.
        setting: where it runs.
        rows: of [`build_rows`].
        together: prompts of full sequences that run at once; their gradients are accumulated.
    """

    def __init__(self, model: Any, setting: Setting, rows: Rows, together: int = 1):
        self._model, self._device, self._together = model, setting.device, together
        self.prompts = len(rows[0])
        parts = [
            (rows[0][start : start + together], rows[1][start : start + together])
            for start in range(0, self.prompts, together)
        ]
        self._sequences = [self._moved(sequence_batch(*part)) for part in parts]
        self._tree = self._moved(tree_batch(*rows))
        self._merged = self._moved(tree_batch(*rows, merge=True))
        self._chosen = self._moved(sequence_batch(rows[0], [branches[:1] for branches in rows[1]]))
        with torch.no_grad():
            policy = shared_prefix_logps(model, self._tree)
        noise = torch.randn(policy.shape, generator=torch.Generator().manual_seed(0))
        self._reference = policy + noise.to(policy)

    def _moved(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self._device) for name, value in batch.items()}

    def _step(self, losses: Sequence[Step]) -> Tensor:
        self._model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for loss in losses:
            value = loss()
            value.backward()
            total += value.detach()
        return total

    def _loss(self, logps: Tensor, first: int) -> Tensor:
        """Of some of the prompts, their share of the mean over all."""
        ratios = logps - self._reference[first : first + len(logps)]
        there = torch.ones_like(ratios[:, 1:], dtype=torch.bool)
        return softmax_dpo_loss(ratios[:, 0], ratios[:, 1:], there, BETA).sum() / self.prompts

    def naive(self) -> Tensor:
        """One full sequence a completion, logits at the completions alone."""

        def loss_of(part: int) -> Tensor:
            return self._loss(naive_logps(self._model, self._sequences[part]), part * self._together)

        return self._step([partial(loss_of, part) for part in range(len(self._sequences))])

    def shared(self) -> Tensor:
        return self._step([lambda: self._loss(shared_prefix_logps(self._model, self._tree), 0)])

    def merged(self) -> Tensor:
        return self._step([lambda: self._loss(shared_prefix_logps(self._model, self._merged), 0)])

    def sft(self) -> Tensor:
        """The chosen completions alone, loss on the completion."""
        return self._step([lambda: -naive_logps(self._model, self._chosen).mean()])


def disagreement(model: Any, ours: Step, theirs: Step) -> tuple[float, float]:
    """Relative distance of the losses, and of all gradients together."""
    losses, gradients = [], []
    for run in (ours, theirs):
        losses.append(float(run()))
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    return abs(losses[0] - losses[1]) / abs(losses[1]), relative_distance(*gradients)


def measure(setting: Setting, figures: Figures) -> None:
    """Milliseconds of each step, their ratios, peak memory, agreement of loss and gradients."""
    prompts, length, rejected = (2, 24, 6) if setting.tiny else (PROMPTS, PROMPT_LENGTH, REJECTED)
    model = with_lora(setting.llama())
    vocabulary = model.config.vocab_size
    easy = Steps(model, setting, build_rows(vocabulary, False, prompts, length, rejected))
    hard = Steps(model, setting, build_rows(vocabulary, True, prompts, length, rejected))
    seconds = setting.seconds({"shared": (easy.shared, 3), "sft": (easy.sft, 3)}, rounds=3)
    figures.record(
        shared_ms=1000 * seconds["shared"], sft_ms=1000 * seconds["sft"], vs_sft=seconds["shared"] / seconds["sft"]
    )
    with figures.attempt("naive"):
        seconds = setting.seconds({"shared": (easy.shared, 2), "naive": (easy.naive, 1)}, rounds=3)
        sequence = length + LEVELS - 1
        figures.record(
            naive_ms=1000 * seconds["naive"],
            vs_naive=seconds["naive"] / seconds["shared"],
            token_limit=(1 + rejected) * sequence / (length + (1 + rejected) * (LEVELS - 1)),
        )
    with figures.attempt("agreement"):
        loss, gradient = disagreement(model, easy.shared, easy.naive)
        figures.record(loss_difference=loss, gradient_difference=gradient)
    with figures.attempt("merged"):
        variants: dict[str, tuple[Run, int]] = {
            "hard": (hard.shared, 2),
            "merged": (hard.merged, 2),
            "sft": (hard.sft, 2),
        }
        seconds = setting.seconds(variants, rounds=3)
        figures.record(
            merged_ms=1000 * seconds["merged"],
            merged_gain=seconds["hard"] / seconds["merged"],
            merged_vs_sft=seconds["merged"] / seconds["sft"],
        )
    with figures.attempt("memory"):
        _record_memory(setting, figures, model, easy, build_rows(vocabulary, False, 1, length, rejected))


def _record_memory(setting: Setting, figures: Figures, model: Any, easy: Steps, rows: Rows) -> None:
    """Peaks of one prompt on either side, all that full sequences run at once, and of the whole shared step."""
    one = Steps(model, setting, rows)
    model.zero_grad(set_to_none=True)
    shared, naive = setting.peak_gb(one.shared), setting.peak_gb(one.naive)
    figures.record(shared_peak_gb=setting.peak_gb(easy.shared), naive_one_prompt_gb=naive)
    if shared and naive:
        figures.record(memory_ratio=naive / shared)
