"""Training of a [`DualSCIDModel`] on the pairs of the train split, in the paper's two phases.

Phase 1 (alpha 1, gamma 0) aligns the SC encoders with behaviour. Phase 2 (alpha 0.1, gamma 1) trains everything, the
first epochs without the quantisers: k-means then starts the code books on latents from which the features can be told.
"""

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from align3gr.encoders.collaborative import interaction_matrix
from align3gr.errors import InputError
from align3gr.scid.features import FeatureTable, embed_all
from align3gr.scid.modeling_dual_scid import DualSCIDModel

logger = logging.getLogger(__name__)


@dataclass
class DualSCIDTrainingConfig:
    """Schedule of the two phases.

    Args:
        learning_rate: peak learning rate of both phases.
        batch_size: pairs in a batch, and rows in a batch of the quantisation terms.
        alignment_epochs: most epochs of phase 1, over the pairs.
        autoencoder_epochs: epochs of phase 2 before the code books start.
        quantization_epochs: epochs of phase 2 with them.
        patience: phase 1 ends when the AUC on held-out train pairs has not grown for this many epochs.
        min_auc_gain: what counts as growth.
        holdout: share of the train pairs that are held out for the AUC.
        alpha, gamma: weights of Eq. (2) in phase 2 (phase 1 is alpha 1, gamma 0).
        weight_decay: of AdamW.
        seed: of batches, held-out pairs and k-means.
    """

    learning_rate: float = 1e-3
    batch_size: int = 1024
    alignment_epochs: int = 20
    autoencoder_epochs: int = 3
    quantization_epochs: int = 20
    patience: int = 2
    min_auc_gain: float = 1e-3
    holdout: float = 0.05
    alpha: float = 0.1
    gamma: float = 1.0
    weight_decay: float = 1e-4
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")


@dataclass
class DualSCIDHistory:
    """What training showed, epoch by epoch."""

    auc: list[float] = field(default_factory=list)
    log: list[dict] = field(default_factory=list)


class PairDataset(Dataset):
    """Interacting (user, item) pairs of the train split. Shape: `pairs` `(pairs, 2)` int64."""

    def __init__(self, pairs: np.ndarray) -> None:
        self.pairs = torch.from_numpy(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pairs[index]

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        # The whole batch at once; a list of rows would be stacked again by the collator.
        return self.pairs[torch.as_tensor(indices)]


class PairCollator:
    """A batch of pairs with the features of both sides and the false negatives of Eq. (1)."""

    def __init__(self, users: FeatureTable, items: FeatureTable, interactions: sp.csr_matrix, quantize: bool) -> None:
        self.users, self.items, self.quantize = users, items, quantize
        self.interactions = interactions
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, pairs: torch.Tensor) -> dict:
        user_rows, item_rows = pairs[:, 0], pairs[:, 1]
        known = self.interactions[user_rows.numpy()][:, item_rows.numpy()].toarray() > 0
        batch = {
            "users": self.users.rows(user_rows),
            "items": self.items.rows(item_rows),
            "false_negatives": torch.from_numpy(known),
        }
        if self.quantize:
            # Uniform rows, not those of the pairs: rare items need codes that are as good as those of popular ones.
            for name, table in (("quantize_users", self.users), ("quantize_items", self.items)):
                batch[name] = table.rows(torch.randint(len(table), (len(pairs),), generator=self.generator))
        return batch


class DualSCIDTrainer(Trainer):
    """`Trainer` with the loss of Eq. (2) and the AUC of held-out pairs as its evaluation."""

    def __init__(self, *, alpha: float, gamma: float, auc_pairs: np.ndarray, collator: PairCollator, **kwargs: Any):
        super().__init__(data_collator=cast(Any, collator), **kwargs)
        self.alpha, self.gamma = alpha, gamma
        self.collator, self.auc_pairs = collator, auc_pairs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)
        loss = self.alpha * output.u2i_loss
        if self.gamma:
            loss = loss + self.gamma * (output.user_rq_loss + output.item_rq_loss)
        return (loss, output) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        auc = pair_auc(
            self.accelerator.unwrap_model(self.model), self.collator.users, self.collator.items, self.auc_pairs
        )
        metrics = {f"{metric_key_prefix}_auc": auc}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@torch.no_grad()
def pair_auc(
    model: DualSCIDModel, users: FeatureTable, items: FeatureTable, pairs: np.ndarray, seed: int = 0
) -> float:
    """Chance that a user scores a held-out item of theirs above a random item. Shape: `pairs` `(pairs, 2)`."""
    training = model.training
    model.eval()
    user_vectors, item_vectors = embed_all(model, users, items)
    model.train(training)
    rng = np.random.default_rng(seed)
    negatives = torch.from_numpy(rng.integers(len(items), size=len(pairs)))
    chosen = user_vectors[pairs[:, 0]]
    positive = (chosen * item_vectors[pairs[:, 1]]).sum(1)
    negative = (chosen * item_vectors[negatives]).sum(1)
    return ((positive > negative).float() + 0.5 * (positive == negative).float()).mean().item()


def train_dual_scid(
    model: DualSCIDModel,
    users: FeatureTable,
    items: FeatureTable,
    train_sequences: Sequence[np.ndarray],
    config: DualSCIDTrainingConfig,
    output_dir: str | Path,
) -> DualSCIDHistory:
    """Trains the model in place: alignment until the AUC is flat, autoencoders, k-means start, quantisation.

    Args:
        users, items: features of all users and items.
        train_sequences: item indices of each user's train split, in row order of `users`.
        output_dir: a scratch folder of the Trainer.
    """
    interactions = interaction_matrix(train_sequences, len(items))
    pairs = np.stack(interactions.nonzero(), 1).astype(np.int64)
    held_out = np.random.default_rng(config.seed).random(len(pairs)) < config.holdout
    history = DualSCIDHistory()

    if not held_out.any() or held_out.all():
        raise InputError(f"holdout: {config.holdout} of {len(pairs)} train pairs is none or all; change it")

    def train(quantize: bool, epochs: int) -> None:
        if not epochs:
            return
        args = TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine" if quantize else "constant",
            weight_decay=config.weight_decay,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="epoch",
            report_to=[],
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            dataloader_drop_last=bool((~held_out).sum() >= config.batch_size),
            metric_for_best_model="eval_auc",
            greater_is_better=True,
            seed=config.seed,
            disable_tqdm=not sys.stderr.isatty(),
        )
        trainer = DualSCIDTrainer(
            model=model,
            args=args,
            alpha=config.alpha if quantize else 1.0,
            gamma=config.gamma if quantize else 0.0,
            auc_pairs=pairs[held_out],
            collator=PairCollator(users, items, interactions, quantize),
            train_dataset=PairDataset(pairs[~held_out]),
            eval_dataset=PairDataset(pairs[held_out]),
            callbacks=[] if quantize else [EarlyStoppingCallback(config.patience, config.min_auc_gain)],
        )
        trainer.train()
        for entry in trainer.state.log_history:  # without the clock: the same training leaves the same report
            kept = {key: entry[key] for key in ("epoch", "loss", "eval_auc") if key in entry}
            history.log += [{"phase": 2 if quantize else 1, **kept}] if len(kept) > 1 else []
        history.auc += [entry["eval_auc"] for entry in trainer.state.log_history if "eval_auc" in entry]

    train(quantize=False, epochs=config.alignment_epochs)
    if history.auc:
        logger.info("U2I alignment ended with AUC %.4f after %d epochs", history.auc[-1], len(history.auc))
    model.quantize = False
    train(quantize=True, epochs=config.autoencoder_epochs)
    model.quantize = True
    user_vectors, item_vectors = embed_all(model, users, items)
    model.user_rqvae.initialize_codebooks(user_vectors.to(model.device), config.seed)
    model.item_rqvae.initialize_codebooks(item_vectors.to(model.device), config.seed)
    train(quantize=True, epochs=config.quantization_epochs)
    if not all(math.isfinite(auc) for auc in history.auc):
        raise RuntimeError("the SC encoders diverged: the AUC is not finite; lower learning_rate")
    model.eval()
    return history
