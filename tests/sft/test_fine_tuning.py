from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from trl import SFTConfig

from align3gr.decoding import Recommender
from align3gr.errors import InputError
from align3gr.process_seeds import SeedOfEachProcess
from align3gr.scid import PromptBuilder, codes_column
from align3gr.sft import SFTArguments, SmallLlamaConfig, every_item_rows, make_trainer, read_user_codes, small_llama

from .conftest import ITEM_CODES, SEQUENCES, USER_CODES


def trainer_of(scid_tokenizer, folder, validate, **options):
    prompts = PromptBuilder(scid_tokenizer, 3)
    model = small_llama(SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_heads=2), scid_tokenizer, 0)
    steps = {"eval_steps": 1, "save_steps": 1, "eval_strategy": "steps", "save_strategy": "steps"}
    best = {"load_best_model_at_end": True} if validate else {"eval_strategy": "no"}
    training = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        max_steps=8,
        report_to=[],
        gradient_checkpointing=False,
        **(steps | best),
    )
    rows = every_item_rows(prompts, SEQUENCES, USER_CODES, ITEM_CODES)
    arguments = SFTArguments(run_dir=str(folder), **options)
    names = [f"item {row}" for row in range(len(ITEM_CODES))]
    items = pl.DataFrame({"item_id": names, "title": names}).with_columns(codes_column(ITEM_CODES))
    recommender = Recommender(model, scid_tokenizer, items, prompt_builder=prompts)
    return make_trainer(model, scid_tokenizer, rows, training, arguments, recommender, validate)


def test_a_resumed_run_has_the_patience_that_is_left(scid_tokenizer, tmp_path):
    calls = []

    def falling(model):
        calls.append(1)
        return {"recall@10": 1.0 / len(calls)}

    trainer = trainer_of(scid_tokenizer, tmp_path, falling, early_stopping_patience=3)
    trainer.args.max_steps = 3  # interrupted here, after two evaluations without a new best
    trainer.train()
    resumed = trainer_of(scid_tokenizer, tmp_path, falling, early_stopping_patience=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4 and len(calls) == 4
    assert resumed.state.best_metric == 1.0


@pytest.mark.parametrize("name", ["early_stopping_patience", "validation_users"])
def test_options_of_an_evaluation_need_one(scid_tokenizer, tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: needs an evaluation"):
        trainer_of(scid_tokenizer, tmp_path, None, **{name: 5})


@pytest.mark.parametrize(
    "options",
    [
        {"validation_beams": 5},
        {"validation_users": -5},
        {"early_stopping_patience": -1},
        {"base_model_revision": "v2"},
        {"embedding_scale": 0.0, "embedding_init": "collaborative"},
        {"embedding_scale": 5.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_named(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}: "):
        SFTArguments(run_dir="r", **options)


def test_a_trainer_that_recommends_is_refused_under_fsdp(scid_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r'^eval_strategy: recommends while it trains.*: set eval_strategy: "no", or'):
        trainer_of(scid_tokenizer, tmp_path, lambda model: {"recall@10": 0.0})


def test_user_codes_that_no_prompt_holds_are_refused():
    arguments = SFTArguments(run_dir="r", user_scid=False, user_codes_from="prefix")
    with pytest.raises(InputError, match="no effect with user_scid"):
        read_user_codes(arguments, np.zeros((1, 1)), None, Path("scid"))
    assert read_user_codes(SFTArguments(run_dir="r", user_scid=False), np.zeros((1, 1)), None, Path("scid")) is None


def test_each_process_gets_dropout_masks_of_its_own(scid_tokenizer, tmp_path):
    (callback,) = (
        callback
        for callback in trainer_of(scid_tokenizer, tmp_path, None).callback_handler.callbacks
        if isinstance(callback, SeedOfEachProcess)
    )

    def drawn(process: int, seed: int = 3) -> list[float]:
        torch.manual_seed(seed)
        callback.on_train_begin(SimpleNamespace(seed=seed, process_index=process), None, None)
        return torch.rand(4).tolist()

    torch.manual_seed(3)
    undisturbed = torch.rand(4).tolist()
    assert drawn(0) == undisturbed  # one process does what it would do anyway
    assert len({*map(tuple, (drawn(0), drawn(1), drawn(2)))}) == 3
    assert drawn(1) == drawn(1) != drawn(1, seed=9)
