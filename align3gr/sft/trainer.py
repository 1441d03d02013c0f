"""TRL's `SFTTrainer` with the model's own loss."""

from transformers import Trainer
from trl import SFTTrainer


class SmallVocabularySFTTrainer(SFTTrainer):
    """`SFTTrainer` for models with a few thousand tokens: the loss is that of the model's own forward.

    TRL computes log-probabilities tile by tile, with entropies and ranks for its metrics. That saves memory where a
    vocabulary is large; with 2,000 tokens on a CPU it takes longer than the rest of the model, and the full logits
    are small. Everything else is TRL's; `entropy` and `mean_token_accuracy` are not logged.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["use_cache"] = False
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
