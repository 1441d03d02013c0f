"""A warm-up that teaches a model from scratch to copy SCIDs from its prompt.

Users come back to items they know, and showing them again is worth more than most models (see docs/sft.md). Copying an
SCID takes induction: find where the codes written so far stand in the prompt, and continue as it went on there. A
pretrained model has it; one that sees a few million tokens, of which few are returns, never gets it. Sequences of
random items that are all repeated teach it within a few hundred steps, without a single real interaction. How often
users come back is learnt afterwards, from them.
"""

import logging
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder
from align3gr.sft.dataset import IGNORE
from align3gr.sft.trainer import SmallVocabularySFTTrainer

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
WARMUP_STEPS = 100


def copying_rows(prompts: PromptBuilder, item_codes: np.ndarray, rows: int, seed: int) -> Dataset:
    """Rows `{input_ids, labels}` of random items and the same items in another order, with the loss on the latter.

    Args:
        prompts: gives header (without a user), tokens and the length of a history.
        item_codes: `(items, levels)`.
        rows: how many.
        seed: draws the items.

    Raises:
        InputError: the catalogue has fewer items than half a history, or a history is too short to repeat anything.
    """
    half = (prompts.max_history + 1) // 2
    if half < 2 or len(item_codes) < half:
        raise InputError(
            f"copying_steps: needs histories of 3 items or more and a catalogue of {half}, got max_history "
            f"{prompts.max_history} and {len(item_codes)} items; set it to 0"
        )
    rng = np.random.default_rng([seed, 2])
    tokens = prompts.vocabulary.item_ids(item_codes)
    header = prompts.header(None)
    drawn = rng.integers(len(tokens), size=(rows, half))
    again = rng.permuted(drawn, axis=1)
    ids = np.concatenate([tokens[drawn].reshape(rows, -1), tokens[again].reshape(rows, -1)], axis=1)
    ids = np.concatenate([np.tile(np.asarray(header, np.int64), (rows, 1)), ids], axis=1)
    labels = ids.copy()
    labels[:, : len(header) + half * tokens.shape[1]] = IGNORE
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def learn_to_copy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptBuilder,
    item_codes: np.ndarray,
    training: SFTConfig,
    steps: int,
) -> float:
    """Trains on [`copying_rows`] and gives the last loss logged, in nats a token.

    Args:
        model: from scratch; it is changed in place.
        tokenizer: its tokenizer.
        prompts: its prompt.
        item_codes: `(items, levels)`.
        training: of the training that follows; learning rate, precision and seed are taken from it.
        steps: optimiser steps of 32 rows in each process.
    """
    arguments = SFTConfig(
        output_dir=f"{training.output_dir}-copying",
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=min(WARMUP_STEPS, steps // 4),
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        bf16=training.bf16,
        use_cpu=training.use_cpu,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        max_length=None,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to=[],
    )
    rows = copying_rows(prompts, item_codes, steps * BATCH_SIZE * training.world_size, training.seed)
    trainer = SmallVocabularySFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    loss = float([entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1])
    logger.info("copying: %.2f nats a token after %d steps", loss, steps)
    return loss
