"""Trainers with validation by recommending; TRL's `SFTTrainer` with the model's own loss."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer
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

    Args:
        likelihood: SCIDs are normalised over its catalogue; over the vocabulary where it is None.
    """

    def __init__(self, *args: Any, likelihood: CatalogueLikelihood | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if likelihood is not None:

            def loss(outputs, labels, num_items_in_batch=None):
                return likelihood.loss(outputs.logits, labels, num_items_in_batch)

            self.compute_loss_func = loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["use_cache"] = False
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
