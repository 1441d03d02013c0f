"""Training of a [`DINModel`] on the train split, and the frozen encoder that comes out of it."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, set_seed

from align3gr.encoders.collaborative import interaction_counts
from align3gr.encoders.configuration_din import DINConfig
from align3gr.encoders.histories import VALIDATION_NEGATIVES, Histories, auc_of_true_items, last_items
from align3gr.encoders.modeling_din import DINModel
from align3gr.encoders.semantic import SETTINGS, read_settings
from align3gr.errors import InputError
from align3gr.finite_loss import NONFINITE, FiniteLoss
from align3gr.one_device import OneDeviceArguments
from align3gr.progress import is_watched
from align3gr.tracking import follow

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 4096
MODEL_SETTINGS = ("attention_dims", "hidden_dims", "attention", "activation", "mini_batch_l2", "max_history")


@dataclass
class DINTrainingConfig:
    """Schedule of a DIN.

    Args:
        learning_rate: of Adam, constant.
        batch_size: targets of users in a batch, each beside its negatives.
        epochs: most epochs.
        patience: training ends when the validation AUC has not grown for this many epochs; the best one is kept.
        negatives: items drawn uniformly for each target among those that the user did not take.
        weight_decay: of AdamW.
        seed: of weights, batches and negatives.
    """

    learning_rate: float = 3e-3
    batch_size: int = 1024
    epochs: int = 20
    patience: int = 2
    negatives: int = 4
    weight_decay: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "patience", "negatives"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 1 or more")


class TargetDataset(Dataset):
    """Positions of `Histories.items` that have something before them, to be predicted from it.

    Args:
        positions: `(rows,)` indices into `histories.items`.
        negatives: `(rows, negatives)` items beside each target; None draws new ones each time.
    """

    def __init__(self, histories: Histories, positions: np.ndarray, negatives: np.ndarray | None = None) -> None:
        self.histories, self.positions, self.fixed = histories, positions, negatives

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, rows: list[int]) -> tuple["TargetDataset", np.ndarray]:
        # The whole batch at once: the collator makes tensors without a loop over rows.
        return self, np.asarray(rows)


class TargetCollator:
    """A batch of histories, their targets (the true one first) and labels."""

    def __init__(self, negatives: int, seed: int) -> None:
        self.number = negatives
        self.rng = np.random.default_rng(seed)

    def __call__(self, batch: tuple[TargetDataset, np.ndarray]) -> dict[str, torch.Tensor]:
        dataset, rows = batch
        histories, positions = dataset.histories, dataset.positions[rows]
        if dataset.fixed is None:
            negatives = histories.negatives(histories.user_of[positions], self.number, self.rng)
        else:
            negatives = dataset.fixed[rows]
        users = histories.user_of[positions]
        targets = torch.from_numpy(np.concatenate([histories.items[positions][:, None], negatives], axis=1))
        labels = torch.zeros(targets.shape)
        labels[:, 0] = 1
        return {"history": histories.before(users, positions), "targets": targets, "labels": labels}


class DINTrainer(FiniteLoss, Trainer):
    """`Trainer` that stops at a loss that is no number."""


def target_auc(prediction: EvalPrediction) -> dict[str, float]:
    return {"auc": auc_of_true_items(np.asarray(prediction.predictions))}


def train_din(
    model: DINModel, sequences: Sequence[np.ndarray], config: DINTrainingConfig, output_dir: str | Path
) -> list[float]:
    """Trains the model in place until its AUC is flat, and keeps the best epoch.

    Validation is each user's last item of `sequences` (see `last_items`), training all items before it.

    Returns:
        The validation AUC of every epoch.

    Raises:
        InputError: no user has the three items that a history, a target and a validation item need, or training
            diverged.
    """
    histories = Histories(sequences, model.config.num_items, model.config.max_history)
    rng = np.random.default_rng(config.seed)
    last = last_items(histories, rng, "din")
    # Those of all users are left out, also where only some are validated.
    held_out = histories.starts[1:][histories.lengths >= 3] - 1
    first = histories.starts[:-1][histories.lengths > 0]
    training = np.setdiff1d(np.arange(len(histories.items)), np.concatenate([held_out, first]))
    negatives = histories.negatives(histories.user_of[last], VALIDATION_NEGATIVES, rng)
    trainer = DINTrainer(
        model=model,
        args=_arguments(config, output_dir),
        data_collator=cast(Any, TargetCollator(config.negatives, config.seed)),
        train_dataset=TargetDataset(histories, training),
        eval_dataset=TargetDataset(histories, last, negatives),
        compute_metrics=target_auc,
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0],
        callbacks=[EarlyStoppingCallback(config.patience)],
    )
    follow(trainer, "din")
    trainer.train()
    if not model.item_embeddings.weight.isfinite().all():
        raise InputError(
            f"learning_rate: din diverged in its last step at a rate of {config.learning_rate:.2g}; lower it"
        )
    return [entry["eval_auc"] for entry in trainer.state.log_history if "eval_auc" in entry]


def _arguments(config: DINTrainingConfig, output_dir: str | Path) -> OneDeviceArguments:
    return OneDeviceArguments(
        output_dir=str(output_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=config.weight_decay,
        eval_strategy="epoch",
        save_strategy="best",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="auc",
        greater_is_better=True,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # or the log shows the last loss that was a number
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
        disable_tqdm=not is_watched(),
    )


class DINEncoder:
    """Item embeddings of a DIN trained on the train split; a user is the history as the DIN pools it.

    A user's vector is the interest for the user's own latest item; docs/encoders.md shows what else was measured. An
    item without interactions, and a user without an item that has any, get the zero vector.

    Args:
        dim: width of the vectors.
        seed: of weights, batches and negatives; that of `training` where None.
        training: schedule.
        model: settings of the [`DINModel`] other than `num_items` and `embedding_dim`.

    Raises:
        InputError: a setting has no such name; in `fit`, histories are too short, or training diverged.
    """

    def __init__(
        self, dim: int = 64, seed: int | None = None, *, training: DINTrainingConfig | None = None, **model: Any
    ) -> None:
        unknown = next((name for name in model if name not in MODEL_SETTINGS), None)
        if unknown:
            raise InputError(f"{unknown}: no setting of a DIN; expected one of {', '.join(MODEL_SETTINGS)}")
        training = training or DINTrainingConfig()
        self.training = training if seed is None else replace(training, seed=seed)
        self.dim, self.seed, self.settings = dim, self.training.seed, model
        self.auc: list[float] = []

    def fit(self, sequences: Sequence[np.ndarray], num_items: int) -> None:
        set_seed(self.training.seed)
        self.model = DINModel(DINConfig(num_items=num_items, embedding_dim=self.dim, **self.settings))
        self.model.interactions[:num_items] = torch.from_numpy(interaction_counts(sequences, num_items))
        scratch = Path(mkdtemp(prefix="align3gr-din-"))
        try:
            self.auc = train_din(self.model, sequences, self.training, scratch)
        finally:
            if not any(scratch.glob(f"{NONFINITE}*")):  # a batch to look at
                shutil.rmtree(scratch)
        self.model.eval()
        logger.info("din: validation AUC %.4f, best of %d epochs", max(self.auc), len(self.auc))

    @property
    def item_vectors(self) -> np.ndarray:
        known = self.model.interactions > 0
        vectors = self.model.item_embeddings.weight.detach() * known[:, None]
        return vectors[: self.model.config.num_items].float().cpu().numpy()

    @torch.no_grad()
    def encode_users(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        known = self.model.interactions.cpu().numpy() > 0
        arrays = [np.asarray(history, dtype=np.int64) for history in histories]
        kept = [history[known[history]] for history in arrays]
        ragged = Histories(kept, self.model.config.num_items, self.model.config.max_history)
        vectors = np.zeros((len(kept), self.model.config.embedding_dim), dtype=np.float32)
        for start in range(0, len(kept), ROWS_AT_ONCE):
            users = np.arange(start, min(start + ROWS_AT_ONCE, len(kept)))
            users = users[ragged.lengths[users] > 0]
            history = ragged.before(users, ragged.starts[users + 1]).to(self.model.device)
            vectors[users] = self.model.interests(history, history[:, -1:])[:, 0].float().cpu().numpy()
        return vectors

    def save(self, folder: str | Path) -> None:
        """The model as `save_pretrained` writes it, so that `AutoModel` opens it, and `encoder.json`."""
        self.model.save_pretrained(folder)
        settings = {"type": "din", "auc": self.auc, "training": asdict(self.training)}
        Path(folder, SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "DINEncoder":
        """What `save` wrote into the folder."""
        model, saved = DINModel.from_pretrained(folder).eval(), read_settings(folder)
        # Folders of earlier versions hold no schedule, which a trained encoder does not need.
        training = DINTrainingConfig(**saved.get("training", {}))
        settings = {name: getattr(model.config, name) for name in MODEL_SETTINGS}
        encoder = cls(model.config.embedding_dim, training=training, **settings)
        encoder.model, encoder.auc = model, saved["auc"]
        return encoder
