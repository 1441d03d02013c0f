"""Packed rows learn what they learn alone, and packing that would cut or mix them up is refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from align3gr.scid import PromptBuilder
from align3gr.sft import (
    SmallLlamaConfig,
    SmallVocabularySFTTrainer,
    TreeCollator,
    check_rows,
    every_item_rows,
    prefix_rows,
    small_llama,
    tree_rows,
)

CODES = np.array([[0, 0], [1, 2], [2, 1]])


@pytest.fixture
def model(scid_tokenizer):
    config = SmallLlamaConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)
    return small_llama(config, scid_tokenizer, seed=0)


def arguments(folder, **options):
    options = {"max_length": 64, "per_device_train_batch_size": 1, "packing": True} | options
    return SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], **options
    )


def every_item(tokenizer, sequence):
    return every_item_rows(PromptBuilder(tokenizer), [np.array(sequence)], np.array([[1]]), CODES)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("trainer_class", [SmallVocabularySFTTrainer, SFTTrainer])
def test_a_neighbour_in_the_pack_changes_nothing(model, scid_tokenizer, tmp_path, trainer_class, attention):
    model.set_attn_implementation(attention)
    assert model.config.use_cache  # as models come; with a cache, attention would cross the rows of a pack
    sample = every_item(scid_tokenizer, [0, 2, 1, 1])[0]
    ids, labels = torch.tensor([sample["input_ids"]]), torch.tensor([sample["labels"]])
    alone = model(ids, labels=labels, use_cache=False).loss.item()
    received = []
    model.model.register_forward_pre_hook(lambda module, args, kwargs: received.append(kwargs), with_kwargs=True)
    for neighbour in ([1, 0], [2, 2, 2, 0, 1, 0]):  # behind the sample and, being longer, in front of it
        silent = every_item(scid_tokenizer, neighbour)[0]
        silent["labels"] = [-100] * len(silent["labels"])
        trainer = trainer_class(
            model=model,
            args=arguments(tmp_path),
            train_dataset=Dataset.from_list([sample, silent]),
            processing_class=scid_tokenizer,
        )
        (batch,) = trainer.get_train_dataloader()
        assert batch["input_ids"].shape == (1, len(sample["input_ids"]) + len(silent["input_ids"]))
        crossing = model(batch["input_ids"], labels=batch["labels"], use_cache=False).loss.item()
        assert trainer.compute_loss(model, dict(batch)).item() == pytest.approx(alone, rel=1e-6)
        assert received[-1].get("attention_mask") is None and received[-1]["use_cache"] is False
        assert sorted(received[-1]["position_ids"][0].tolist()) == sorted(
            [*range(len(sample["input_ids"])), *range(len(silent["input_ids"]))]
        )
        if len(silent["input_ids"]) > len(sample["input_ids"]):
            assert abs(crossing - alone) > 1e-3  # without positions the sample does see its neighbour


def test_packing_takes_no_collator_of_its_own(model, scid_tokenizer, tmp_path):
    rows = every_item(scid_tokenizer, [0, 2, 1])
    with pytest.raises(ValueError, match="custom data collator"):
        SmallVocabularySFTTrainer(
            model=model,
            args=arguments(tmp_path),
            train_dataset=rows,
            data_collator=TreeCollator.for_model(model, 0, longest=64),
            processing_class=scid_tokenizer,
        )


@pytest.mark.parametrize("rows_of", [every_item_rows, prefix_rows])
def test_whole_rows_can_be_packed(scid_tokenizer, tmp_path, rows_of):
    rows = rows_of(PromptBuilder(scid_tokenizer), [np.array([0, 2, 1])], None, CODES)
    check_rows(rows, arguments(tmp_path))
    for strategy in ("wrapped", "bfd_split"):
        with pytest.raises(ValueError, match=f"packing_strategy: got '{strategy}'.*cuts SCIDs"):
            check_rows(rows, arguments(tmp_path, packing_strategy=strategy))
        check_rows(rows, arguments(tmp_path, packing_strategy=strategy, packing=False))


def test_rows_that_would_lose_their_end_are_refused(scid_tokenizer, tmp_path):
    rows = every_item(scid_tokenizer, [0, 2, 1])  # BOS, user, three items of two levels
    for packing in (True, False):
        check_rows(rows, arguments(tmp_path, max_length=8, packing=packing))
        with pytest.raises(ValueError, match="max_length: got 7, but the longest row has 8 tokens"):
            check_rows(rows, arguments(tmp_path, max_length=7, packing=packing))


def test_trees_are_not_packed_and_keep_their_columns(scid_tokenizer, tmp_path):
    prompts = PromptBuilder(scid_tokenizer, template="[{user}]{history}likes:")
    rows = tree_rows(prompts, [np.array([0, 2, 1])], None, CODES)
    with pytest.raises(ValueError, match="packing: got true, but rows of the objective tree"):
        check_rows(rows, arguments(tmp_path, remove_unused_columns=False))
    with pytest.raises(ValueError, match="remove_unused_columns: got true"):
        check_rows(rows, arguments(tmp_path, packing=False))
    check_rows(rows, arguments(tmp_path, packing=False, remove_unused_columns=False))
