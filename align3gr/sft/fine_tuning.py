"""A fine-tuning run put together: user SCIDs, trainer, validation, log."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTConfig

from align3gr.checkpoints import LogWithCheckpoint
from align3gr.data import Split
from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.recommender import Recommender
from align3gr.errors import InputError
from align3gr.evaluation import evaluate_policy, sample_users
from align3gr.process_seeds import SeedOfEachProcess
from align3gr.processes import refuse_fsdp
from align3gr.scid.assigner import SCIDAssigner
from align3gr.sft.encoder_decoder import EncoderDecoderCollator, EncoderDecoderTrainer, encoder_decoder_rows
from align3gr.sft.row_checks import check_rows
from align3gr.sft.sft_arguments import SFTArguments
from align3gr.sft.trainer import RecommendingSFTTrainer, SmallVocabularySFTTrainer
from align3gr.sft.tree_collator import TreeCollator
from align3gr.sft.user_codes import UserCodes, user_codes_without_future
from align3gr.undivided import undivided

DEFAULT_METRIC = "recall@10"

Validation = Callable[[Any], dict[str, float]]


def read_user_codes(arguments: SFTArguments, codes: np.ndarray, split: Split, scid: Path) -> UserCodes | None:
    """The users' SCIDs as they stand in front of each train item; None where prompts hold none.

    Args:
        arguments: `user_scid` and `user_codes_from` count.
        codes: made from all train items.
            Shape: `(users, levels)`.
        split: the data.
        scid: folder of the token level.

    Raises:
        InputError: an option has no effect, or the token level has no model.
    """
    if not arguments.user_scid:
        if arguments.user_codes_from != "all":
            raise InputError("user_codes_from: has no effect with user_scid: false; leave one of them out")
        return None
    assigner = None
    if arguments.user_codes_from != "all":
        with undivided():
            assigner = SCIDAssigner.from_pretrained(scid)
    return user_codes_without_future(arguments.user_codes_from, codes, split, assigner)  # type: ignore[arg-type]


def recommending_validation(
    recommender: Recommender,
    split: Split,
    item_codes: np.ndarray,
    user_codes: np.ndarray,
    arguments: SFTArguments,
    seed: int,
) -> Validation:
    """Recall and NDCG on validation targets, seen items allowed, by constrained decoding.

    Args:
        recommender: prompt and catalogue of the model that is trained.
        split: the data.
        item_codes: `(items, levels)`.
        user_codes: `(users, levels)`.
        arguments: `validation_users` and `validation_beams` count.
        seed: of the sample of users.
    """
    questions = sample_users(split.histories("validation"), arguments.validation_users, seed)
    prompts = recommender.prompt_builder

    def validate(model: PreTrainedModel) -> dict[str, float]:
        tokens, beams = prompts.vocabulary.item_tokens, arguments.validation_beams
        search = ConstrainedBeamSearch(model, recommender.search.trie, tokens, beams)
        # Under ZeRO-3 every forward is one of all processes, so none may have another number of them.
        shared = not is_deepspeed_zero3_enabled()
        columns = evaluate_policy(search, prompts, questions, item_codes, user_codes, distributed=shared)
        return columns["seen_allowed"]

    return validate


def make_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    training: SFTConfig,
    arguments: SFTArguments,
    recommender: Recommender,
    validate: Validation | None = None,
    loss_temperature: float = 1.0,
) -> RecommendingSFTTrainer | EncoderDecoderTrainer:
    """The trainer of the SFT stage.

    An encoder-decoder takes [`EncoderDecoderTrainer`], which alone looks at `loss_temperature`. A causal LM from
    scratch takes [`SmallVocabularySFTTrainer`], and so does every one that is normalised over the catalogue; a
    pretrained one takes TRL's own loss otherwise. `recommender` gives prompt and catalogue. With `validate` and
    `load_best_model_at_end` the best checkpoint by `metric_for_best_model` (Recall@10 if not set) is the result.

    Args:
        model: trained in place.
        tokenizer: its tokenizer.
        rows: what it learns.
        training: the options of the Trainer.
        arguments: the options of the stage.
        recommender: prompt and catalogue.
        validate: measures recommendations.
        loss_temperature: divides the logits.

    Raises:
        InputError: a setting would cut rows, early stopping has nothing to go by, or FSDP divides a model that is to
            recommend.
    """
    if validate is not None:
        refuse_fsdp("eval_strategy", training, 'set eval_strategy: "no"')
    for name in ("early_stopping_patience", "validation_users"):
        if validate is None and getattr(arguments, name):
            raise InputError(f"{name}: needs an evaluation; set eval_strategy: epoch or steps")
    callbacks: list[TrainerCallback] = [_SavedTogether(), LogWithCheckpoint(), SeedOfEachProcess()]
    if validate is not None:
        if training.metric_for_best_model in (None, "loss"):  # transformers' default; no loss is computed here
            training.metric_for_best_model = DEFAULT_METRIC
        training.greater_is_better = True
        if arguments.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(arguments.early_stopping_patience))
            training.restore_callback_states_from_checkpoint = True  # a resumed run has the patience that is left
    multiple = None if training.pad_to_multiple_of is None else int(training.pad_to_multiple_of)
    if model.config.is_encoder_decoder:
        check_rows(rows, training)
        return EncoderDecoderTrainer(
            model=model,
            args=training,
            train_dataset=encoder_decoder_rows(rows),
            processing_class=tokenizer,
            data_collator=EncoderDecoderCollator(tokenizer, model, pad_to_multiple_of=multiple),
            callbacks=callbacks,
            validate=validate,
            likelihood=recommender.search.likelihood,
            temperature=loss_temperature,
        )
    collator = None
    if arguments.objective == "tree":
        training.remove_unused_columns = False
        longest = recommender.prompt_builder.longest
        collator = TreeCollator.for_model(model, tokenizer.pad_token_id, longest, multiple)
    check_rows(rows, training)
    options: dict[str, Any] = {}
    trainer_class: type[RecommendingSFTTrainer] = RecommendingSFTTrainer
    if arguments.normalizer == "catalogue" or arguments.base_model is None:
        trainer_class = SmallVocabularySFTTrainer
    if arguments.normalizer == "catalogue":
        options["likelihood"] = recommender.search.likelihood
    return trainer_class(
        model=model,
        args=training,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=collator,
        callbacks=callbacks,
        validate=validate,
        **options,
    )


class _SavedTogether(TrainerCallback):
    """Lets no process go on before a checkpoint is whole.

    DeepSpeed's first process writes the weights alone (deepspeed 0.19), so that another one could look for the best
    checkpoint at the end of a training before it is there.
    """

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """Losses and validation metrics by epoch, from a Trainer's log.

    Args:
        path: a JSON file.
        history: `log_history` of the Trainer's state.
    """
    kept = [
        {name: value for name, value in entry.items() if name in ("epoch", "step", "loss") or name.startswith("eval_")}
        for entry in history
        if "loss" in entry or any(name.startswith("eval_") for name in entry)
    ]
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
