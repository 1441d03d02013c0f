"""Training of a [`DualSCIDModel`] on the pairs of the train split, in the paper's two phases.

Phase 1 (alpha 1, gamma 0) aligns the SC encoders with behaviour. Phase 2 (alpha 0.1, gamma 1) trains everything, the
first epochs without the quantisers: k-means then starts the code books on latents from which the features can be told.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import EarlyStoppingCallback, Trainer

from align3gr.encoders.collaborative import interaction_matrix
from align3gr.errors import InputError
from align3gr.finite_loss import FiniteLoss
from align3gr.one_device import OneDeviceArguments
from align3gr.progress import is_watched
from align3gr.scid.dual_scid_metrics import DualSCIDHistory, book_metrics, pair_auc, raw_auc
from align3gr.scid.features import FeatureTable, PinnedCodes, embed_all
from align3gr.scid.modeling_dual_scid import DualSCIDModel
from align3gr.scid.pairs import PairCollator, PairDataset
from align3gr.tracking import StageTracking, follow

logger = logging.getLogger(__name__)

PHASES = ("align", "autoencode", "quantize")
_REPORTED = ("eval_auc", "eval_item_", "eval_user_")


@dataclass
class DualSCIDTrainingConfig:
    """Schedule of the two phases.

    Args:
        learning_rate: peak learning rate of both phases.
        batch_size: pairs in a batch, and rows in a batch of the quantisation terms.
        alignment_epochs: most epochs of phase 1, over the pairs; 0 leaves U2I alignment out of it.
        autoencoder_epochs: epochs of phase 2 before the code books start.
        quantization_epochs: epochs of phase 2 with them; 0 leaves the code books where k-means puts them.
        patience: phase 1 ends when the AUC on held-out train pairs has not grown for this many epochs; the weights of
            its best epoch are kept.
        min_auc_gain: what counts as growth.
        holdout: share of the train pairs that are held out for the AUC.
        alpha, gamma: weights of Eq. (2) in phase 2 (phase 1 is alpha 1, gamma 0). Alpha 0 leaves U2I out of it.
        logq_correction: takes the log-probability of an item as a negative off its score in Eq. (1).
        weight_decay: of AdamW.
        bf16: trains under bf16 autocast; code books and codes stay in fp32.
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
    logq_correction: bool = False
    weight_decay: float = 1e-4
    bf16: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        epochs = ("alignment_epochs", "autoencoder_epochs", "quantization_epochs")
        for name in ("batch_size", "patience", *epochs, "alpha", "weight_decay"):
            least = 1 if name in ("batch_size", "patience") else 0
            if not getattr(self, name) >= least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected {least} or more")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate: got {self.learning_rate}, expected more than 0")
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout: got {self.holdout}, expected a number between 0 and 1")
        if not self.gamma > 0:
            raise InputError(f"gamma: got {self.gamma}, expected more than 0: without it there is nothing to quantise")


class DualSCIDTrainer(FiniteLoss, Trainer):
    """`Trainer` with the loss of Eq. (2); its evaluation is the AUC of held-out pairs and the health of the books.

    Args:
        alpha: weight of the U2I loss.
        gamma: weight of the losses of both RQ-VAEs.
        auc_pairs: held-out (user, item) pairs.
        collator: makes the batches.
        books: whether the code books are in use, so that their health is evaluated.
        **kwargs: the arguments of `Trainer`.
    """

    def __init__(
        self, *, alpha: float, gamma: float, auc_pairs: np.ndarray, collator: PairCollator, books: bool, **kwargs: Any
    ):
        super().__init__(data_collator=cast(Any, collator), **kwargs)
        self.alpha, self.gamma = alpha, gamma
        self.collator, self.auc_pairs, self.books = collator, auc_pairs, books

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)
        terms = [self.alpha * output.u2i_loss] if output.u2i_loss is not None else []
        terms += [self.gamma * loss for loss in (output.user_rq_loss, output.item_rq_loss) if loss is not None]
        if output.regularization is not None:
            terms.append(output.regularization)
        loss = torch.stack(terms).sum()
        return (loss, output) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        metrics: dict[str, float] = {}
        users, items = self.collator.users, self.collator.items
        if users is not None:
            metrics["auc"] = pair_auc(model, users, items, self.auc_pairs)
        if self.books:
            metrics |= book_metrics("item", model.embed_items, model.item_rqvae, items)
            if users is not None:
                metrics |= book_metrics("user", model.embed_users, model.user_rqvae, users)
        model.train(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class DualSCIDTraining:
    """Trains a model in place: alignment until the AUC is flat, autoencoders, k-means start, quantisation.

    Args:
        model: its user side is trained if it has one.
        users, items: features of all users and items.
        train_sequences: item indices of each user's train split, in row order of `users`.
        config: schedule.
        output_dir: a scratch folder of the Trainer.
        pinned: codes of an earlier training that shall keep their meaning; the code books then start from the means of
            what carries each code, in place of k-means.
        tracking: gets the logs of all phases, one behind the other.
    """

    def __init__(
        self,
        model: DualSCIDModel,
        users: FeatureTable | None,
        items: FeatureTable,
        train_sequences: Sequence[np.ndarray],
        config: DualSCIDTrainingConfig,
        output_dir: str | Path,
        pinned: PinnedCodes | None = None,
        tracking: StageTracking | None = None,
    ) -> None:
        self.tracking = tracking
        self.model, self.items, self.config = model, items, config
        self.users = users if model.config.has_users else None
        self.output_dir, self.pinned = str(output_dir), pinned or PinnedCodes()
        self.pinned.check("item", model.item_rqvae.config.codebook_sizes)
        if self.users is not None:
            self.pinned.check("user", model.user_rqvae.config.codebook_sizes)
        self.interactions = interaction_matrix(train_sequences, len(items))
        pairs = np.stack(self.interactions.nonzero(), 1).astype(np.int64)
        held_out = np.random.default_rng(config.seed).random(len(pairs)) < config.holdout
        if not held_out.any() or held_out.all():
            raise InputError(f"holdout: {config.holdout} of {len(pairs)} train pairs is none or all; change it")
        self.pairs, self.held_out_pairs = pairs[~held_out], pairs[held_out]
        self.history = DualSCIDHistory()

    def run(self) -> DualSCIDHistory:
        """Raises `CollapsedCodebookError` where a code book collapsed, `InputError` where training diverged."""
        model, config, history = self.model, self.config, self.history
        trained = model.config.sc_encoder == "mlp"
        if self.users is not None:
            history.raw_auc = raw_auc(model, self.users, self.items, self.held_out_pairs)
            if trained:
                self._train("align", config.alignment_epochs)
        if history.auc:
            logger.info(
                "U2I alignment: AUC %.4f, best of %d epochs (features alone: %s)",
                max(history.auc),
                len(history.auc),
                "unknown" if history.raw_auc is None else f"{history.raw_auc:.4f}",
            )
        if trained:
            model.quantize = False
            self._train("autoencode", config.autoencoder_epochs)
            model.quantize = True
        user_vectors, item_vectors = embed_all(model, self.users, self.items)
        model.item_rqvae.initialize_codebooks(item_vectors.to(model.device), config.seed, self.pinned.items)
        if user_vectors is not None:
            model.user_rqvae.initialize_codebooks(user_vectors.to(model.device), config.seed, self.pinned.users)
        self._train("quantize", config.quantization_epochs)
        model.eval()
        if not config.quantization_epochs:  # whose evaluation looks at the code books otherwise
            book_metrics("item", model.embed_items, model.item_rqvae, self.items)
            if self.users is not None:
                book_metrics("user", model.embed_users, model.user_rqvae, self.users)
        return history

    def _train(self, phase: str, epochs: int) -> None:
        if not epochs:
            return
        config, aligning = self.config, phase == "align"
        alpha = 1.0 if aligning else config.alpha
        if self.model.config.sc_encoder == "none":
            alpha = 0.0  # nothing between the features and Eq. (1) could learn
        collator = PairCollator(
            self.users,
            self.items,
            self.interactions,
            align=alpha > 0,
            quantize=not aligning,
            log_q=config.logq_correction,
            seed=config.seed + PHASES.index(phase),
        )
        trainer = DualSCIDTrainer(
            model=self.model,
            args=self._arguments(phase, epochs),
            alpha=alpha,
            gamma=config.gamma,
            auc_pairs=self.held_out_pairs,
            collator=collator,
            books=phase == "quantize",
            train_dataset=PairDataset(self.pairs),
            eval_dataset=PairDataset(self.held_out_pairs),
            callbacks=[EarlyStoppingCallback(config.patience, config.min_auc_gain)] if aligning else [],
        )
        if self.tracking is not None:
            self.tracking.begin_part(PHASES.index(phase))
        follow(trainer, f"scid, phase {phase}", self.tracking)
        trainer.train()
        for entry in trainer.state.log_history:  # without the clock: the same training leaves the same report
            kept = {k: v for k, v in entry.items() if k in ("epoch", "loss") or k.startswith(_REPORTED)}
            self.history.log += [{"phase": phase, **kept}] if len(kept) > 1 else []
        self.history.auc += [entry["eval_auc"] for entry in trainer.state.log_history if "eval_auc" in entry]

    def _arguments(self, phase: str, epochs: int) -> OneDeviceArguments:
        config = self.config
        return OneDeviceArguments(
            output_dir=self.output_dir,
            num_train_epochs=epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant" if phase == "align" else "cosine",
            weight_decay=config.weight_decay,
            eval_strategy="epoch",
            # Phase 1 goes on for a while after its best epoch, to see whether it was that.
            save_strategy="best" if phase == "align" else "no",
            save_only_model=True,
            save_total_limit=1,
            load_best_model_at_end=phase == "align",
            logging_strategy="epoch",
            report_to=[],
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=config.bf16,
            dataloader_pin_memory=torch.cuda.is_available(),
            dataloader_drop_last=len(self.pairs) >= config.batch_size,
            metric_for_best_model="eval_auc" if phase == "align" else None,
            greater_is_better=True if phase == "align" else None,
            seed=config.seed,
            disable_tqdm=not is_watched(),
        )


def train_dual_scid(
    model: DualSCIDModel,
    users: FeatureTable | None,
    items: FeatureTable,
    train_sequences: Sequence[np.ndarray],
    config: DualSCIDTrainingConfig,
    output_dir: str | Path,
    pinned: PinnedCodes | None = None,
    tracking: StageTracking | None = None,
) -> DualSCIDHistory:
    """[`DualSCIDTraining`] in one call.

    Args:
        model: trained in place.
        users: features of the users, None without users.
        items: features of the items.
        train_sequences: item indices of each user.
        config: the schedule.
        output_dir: for the log and checkpoints.
        pinned: codes of an earlier training, from which the code books start; who had codes keeps them only by
            [`assign_codes`].
        tracking: where metrics are reported.
    """
    return DualSCIDTraining(model, users, items, train_sequences, config, output_dir, pinned, tracking).run()
