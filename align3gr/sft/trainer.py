"""Trainers with validation by recommending; TRL's `SFTTrainer` with the model's own loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, Trainer
from trl import SFTTrainer

from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.finite_loss import FiniteLoss


class RecommendingEvaluation:
    """A part of a Trainer: it judges a model by what it recommends.

    Where `validate` is given, an evaluation is a call of it in place of the loss on a set of rows, so that
    `eval_steps`, `metric_for_best_model`, `load_best_model_at_end` and `EarlyStoppingCallback` go by Recall or NDCG.
    Everything else is that of the Trainer that stands behind it.

    Args:
        model, train_dataset, eval_dataset, options: of the Trainer behind it, by name.
        validate: takes the unwrapped model and gives metrics by name, such as `{"recall@10": 0.05}`. Each process
            calls it, and all must get the same.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        validate: Callable[[Any], dict[str, float]] | None = None,
        **options: Any,
    ) -> None:
        self._validate = validate
        if validate is not None and eval_dataset is None:
            # The Trainer wants a set wherever it is to evaluate; this one is never looked at.
            eval_dataset = train_dataset.select(range(1))
        super().__init__(model, train_dataset=train_dataset, eval_dataset=eval_dataset, **options)  # type: ignore[call-arg]

    def evaluate(self: Any, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        if self._validate is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[misc]
        values = self._validate(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class RecommendingSFTTrainer(RecommendingEvaluation, FiniteLoss, SFTTrainer):
    """`SFTTrainer` that judges a model by what it recommends; see [`RecommendingEvaluation`].

    Args:
        model, train_dataset, eval_dataset: as in `SFTTrainer`.
        validate: gives the metrics of the model; without it the Trainer evaluates as always.
        **options: the other arguments of `SFTTrainer`.
    """


class SmallVocabularySFTTrainer(RecommendingSFTTrainer):
    """`SFTTrainer` for models with a few thousand tokens: the loss is that of the model's own forward.

    TRL computes log-probabilities tile by tile, with entropies and ranks for its metrics. That saves memory where a
    vocabulary is large; with 2,000 tokens on a CPU it takes longer than the rest of the model, and the full logits
    are small. `entropy` and `mean_token_accuracy` are not logged.

    Over a catalogue, a Llama's logits are computed only where a label looks at them.

    Args:
        likelihood: SCIDs are normalised over its catalogue; over the vocabulary where it is None.
    """

    def __init__(self, *args: Any, likelihood: CatalogueLikelihood | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._likelihood = likelihood
        # Other classes may scale their logits or adapt the head, and a divided head is whole in the forward alone.
        plain = type(self.accelerator.unwrap_model(self.model)) is LlamaForCausalLM
        self._from_states = plain and not self.is_deepspeed_enabled and not self.is_fsdp_enabled
        if likelihood is not None:
            self.compute_loss_func = self._catalogue_loss

    def _catalogue_loss(
        self: Any, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if not self._from_states:
            return self._likelihood.loss(outputs.logits, labels, num_items_in_batch)
        head = self.accelerator.unwrap_model(self.model).lm_head.weight
        return self._likelihood.loss_of_states(outputs.hidden_states[-1], head, labels, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["use_cache"] = False
        if self._likelihood is not None and self._from_states:
            inputs["output_hidden_states"] = True
            inputs["logits_to_keep"] = torch.empty(0, dtype=torch.long, device=inputs["input_ids"].device)
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
