"""Fine-tuning an encoder-decoder: the prompt goes into the encoder, the response is what the decoder learns."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy, pad
from transformers import DataCollatorForSeq2Seq, T5ForConditionalGeneration, Trainer

from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.finite_loss import FiniteLoss
from align3gr.sft.dataset import IGNORE, ROWS_A_CHUNK, dataset_of
from align3gr.sft.trainer import RecommendingEvaluation


def encoder_decoder_rows(rows: Dataset) -> Dataset:
    """Rows of a causal LM as `{input_ids, labels}` of an encoder-decoder: what is in front of the response, and it.

    Args:
        rows: `input_ids` and `labels`, -100 in front of the response.
    """

    def parts() -> Iterator[tuple[np.ndarray, ...]]:
        for table in rows.select_columns(["input_ids", "labels"]).with_format("arrow").iter(ROWS_A_CHUNK):
            for ids, labels in zip(table["input_ids"].to_pylist(), table["labels"].to_pylist(), strict=True):
                start = labels.count(IGNORE)
                yield np.asarray(ids[:start], np.int64), np.asarray(labels[start:], np.int64)

    return dataset_of(parts(), ["input_ids", "labels"])


class EncoderDecoderCollator(DataCollatorForSeq2Seq):
    """transformers' collator with answers padded on the right, on whichever side the tokenizer pads prompts.

    A decoder has no mask, so that an answer behind padding would be learnt behind tokens that no search has there.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]], return_tensors: str | None = None) -> Any:
        longest, multiple = max(len(row["labels"]) for row in features), self.pad_to_multiple_of or 1
        length = -(-longest // multiple) * multiple
        padded = [{**row, "labels": [*row["labels"], *[IGNORE] * (length - len(row["labels"]))]} for row in features]
        return super().__call__(padded, return_tensors)


@contextmanager
def _headless(model: T5ForConditionalGeneration) -> Iterator[torch.nn.Linear]:
    """Takes the output embeddings off a T5, and gives them back afterwards."""
    head, model.lm_head = model.lm_head, torch.nn.Identity()
    try:
        yield head
    finally:
        model.lm_head = head


class EncoderDecoderTrainer(RecommendingEvaluation, FiniteLoss, Trainer):
    """transformers' `Trainer` with the loss over the catalogue or at a temperature, and validation by recommending.

    The collator must give `decoder_input_ids`, as `EncoderDecoderCollator(tokenizer, model)` does.

    Args:
        likelihood: SCIDs are normalised over its catalogue; over the vocabulary where it is None.
        temperature: divides the logits. Below 1 the loss looks at the hardest negatives most: the ranking-guided
            generation loss of LETTER (Wang et al. 2024, Eq. 7). Searches take the logits as they are.
    """

    def __init__(
        self, *args: Any, likelihood: CatalogueLikelihood | None = None, temperature: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._likelihood = likelihood
        self._temperature = temperature
        # Others may scale their logits or have a bias, and a divided head is whole in the forward alone.
        plain = type(self.accelerator.unwrap_model(self.model)) is T5ForConditionalGeneration
        divided = self.is_deepspeed_enabled or self.is_fsdp_enabled
        self._from_states = likelihood is not None and plain and not divided
        # A loss of this kind gets the number of labels of a whole step: answers of several tasks differ in length, and
        # a mean of means would depend on how many batches and processes a step is cut into.
        self.compute_loss_func = self._loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["use_cache"] = False
        if not self._from_states:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with _headless(self.accelerator.unwrap_model(model)) as self._head:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Mean over the labels, or over as many as are given. Shape of the labels: `(batch, length)`."""
        logits = outputs.logits / self._temperature
        if self._likelihood is not None:
            # A causal LM's label is predicted one place before it, a decoder's at its own place.
            logits, labels = pad(logits, (0, 0, 0, 1)), pad(labels, (1, 0), value=IGNORE)
            if self._from_states:  # without a head a T5 gives what its head would be applied to
                return self._likelihood.loss_of_states(logits, self._head.weight, labels, num_items_in_batch)
            return self._likelihood.loss(logits, labels, num_items_in_batch)
        count = (labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        total = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return total / count
