"""Branches of a tree are the samples of the prefix objective: same loss, same gradients, in any trainer."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import MistralConfig, MistralForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from align3gr.scid import PromptBuilder
from align3gr.sft import (
    SmallLlamaConfig,
    SmallVocabularySFTTrainer,
    TreeCollator,
    every_item_rows,
    prefix_rows,
    small_llama,
    tree_rows,
)

CODES = np.stack([np.arange(16) // 4, np.arange(16) % 4], axis=1)
DRAWN = np.random.default_rng(0)
# Shorter and longer than the four items that a prompt holds; nothing to learn, one item, several groups of long ones.
SEQUENCES = [DRAWN.integers(0, 16, length) for length in (0, 1, 2, 3, 5, 6, 13)]
USERS = DRAWN.integers(0, 4, (len(SEQUENCES), 1))
SAMPLES = sum(max(0, len(sequence) - 1) for sequence in SEQUENCES)
TEMPLATES = ["[{user}]{history}", "[{user}]{history}likes:"]
PLAIN = Dataset.from_dict(
    {"input_ids": [[1, 2, 3, 4], [1, 5, 6]], "labels": [[-100, -100, 3, 4], [-100, 5, 6]]},
    features=Features({"input_ids": List(Value("int64")), "labels": List(Value("int64"))}),
)


@pytest.fixture
def llama(scid_tokenizer):
    config = SmallLlamaConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)
    return lambda: small_llama(config, scid_tokenizer, seed=0)


def prompts_of(tokenizer, template):
    return PromptBuilder(tokenizer, max_history=4, template=template)


def loss_and_gradients(model, rows, collate):
    """Sum of the loss over the label tokens of one batch, their number, and all gradients as one vector."""
    batch = collate(list(rows))
    count = int((batch["labels"] != -100).sum())
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss * count
    loss.backward()
    return loss.detach(), count, torch.cat([p.grad.ravel() for p in model.parameters()])


def assert_equal_losses(one, other):
    assert one[1] == other[1]
    assert one[0].item() == pytest.approx(other[0].item(), rel=1e-6)
    assert (one[2] - other[2]).norm() <= 1e-6 * other[2].norm()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_tree_has_the_loss_and_gradients_of_its_prefixes(llama, scid_tokenizer, attention, template, padding):
    model = llama()
    model.set_attn_implementation(attention)
    prompts = prompts_of(scid_tokenizer, template)
    tree = concatenate_datasets([tree_rows(prompts, SEQUENCES, USERS, CODES), PLAIN])
    prefixes = concatenate_datasets([prefix_rows(prompts, SEQUENCES, USERS, CODES), PLAIN])
    assert len(tree) < len(prefixes) == SAMPLES + len(PLAIN)

    def padded_left(rows):
        width = max(len(row["input_ids"]) for row in rows)
        ids = [[0] * (width - len(row["input_ids"])) + row["input_ids"] for row in rows]
        labels = [[-100] * (width - len(row["labels"])) + row["labels"] for row in rows]
        mask = [[0] * (width - len(row["labels"])) + [1] * len(row["labels"]) for row in rows]
        mask = torch.tensor(mask)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        tensors = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        return tensors | {"attention_mask": mask, "position_ids": positions}

    usual = DataCollatorForLanguageModeling(0) if padding == "right" else padded_left
    collate = TreeCollator.for_model(model, 0, longest=64, pad_to_multiple_of=8 if padding == "left" else None)
    assert_equal_losses(loss_and_gradients(model, tree, collate), loss_and_gradients(model, prefixes, usual))


def test_every_item_has_the_loss_and_gradients_of_short_histories(llama, scid_tokenizer):
    model, prompts = llama(), prompts_of(scid_tokenizer, TEMPLATES[0])
    short = [sequence[:5] for sequence in SEQUENCES]
    usual = DataCollatorForLanguageModeling(0)
    every_item = loss_and_gradients(model, every_item_rows(prompts, short, USERS, CODES), usual)
    assert_equal_losses(every_item, loss_and_gradients(model, prefix_rows(prompts, short, USERS, CODES), usual))


def test_the_mask_and_the_positions_of_a_row_made_by_hand():
    # Trunk 1 2 3; branch 4 5 sees one token of it, branch 6 all three.
    tree = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, -100, -100, 7, 8]}
    tree |= {"branch_starts": [3, 5], "branch_seen": [1, 3]}
    batch = TreeCollator(pad_token_id=9)([tree, {"input_ids": [1, 2], "labels": [-100, 2]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9]]
    assert batch["labels"].tolist() == [tree["labels"], [-100, 2, -100, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 1, 2, 3], [0, 1, 0, 0, 0, 0]]
    assert batch["attention_mask"].dtype == torch.bool and batch["attention_mask"].shape == (2, 1, 6, 6)
    assert batch["attention_mask"][:, 0].long().tolist() == [
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 0, 0, 1, 0, 0],
            [1, 0, 0, 1, 1, 0],
            [1, 1, 1, 0, 0, 1],
        ],
        [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]] + [[int(i == j) for j in range(6)] for i in range(2, 6)],
    ]


def test_a_batch_of_plain_rows_has_the_usual_mask():
    rows = [row | {"branch_starts": None, "branch_seen": None} for row in PLAIN]
    batch, usual = TreeCollator(pad_token_id=0)(rows), DataCollatorForLanguageModeling(0)(list(PLAIN))
    assert set(batch) == set(usual) and all(torch.equal(batch[name], usual[name]) for name in usual)


def make_trainer(trainer_class, model, tokenizer, rows, folder, collator=None, **options):
    """A trainer of two steps of plain gradient descent."""
    options = {"learning_rate": 0.5, "max_steps": 2, "bf16": False, "optim": "sgd", "max_grad_norm": 0} | options
    fixed = {
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "lr_scheduler_type": "constant",
    }
    arguments = SFTConfig(output_dir=str(folder), gradient_checkpointing=False, **fixed, **options)
    return trainer_class(
        model=model, args=arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer
    )


def losses_and_parameters(trainer):
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, torch.cat([p.detach().ravel() for p in trainer.model.parameters()])


@pytest.mark.parametrize("trainer_class", [SmallVocabularySFTTrainer, SFTTrainer])
def test_accumulated_trees_train_like_all_prefixes_in_one_batch(
    llama, scid_tokenizer, tmp_path, trainer_class, monkeypatch
):
    monkeypatch.setattr("align3gr.sft.objectives.LONG_HISTORIES_A_ROW", 3)
    prompts = prompts_of(scid_tokenizer, TEMPLATES[1])
    prefixes, tree = (rows(prompts, SEQUENCES, USERS, CODES) for rows in (prefix_rows, tree_rows))
    assert len(tree) == 9  # five trunks; one and eight samples with long histories, at most three a row
    model, other = llama(), llama()
    start = torch.cat([p.detach().ravel() for p in model.parameters()])
    options = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3, "remove_unused_columns": False}
    collator = TreeCollator.for_model(model, 0, longest=64)
    trainer = make_trainer(trainer_class, model, scid_tokenizer, tree, tmp_path, collator, **options)
    losses, trained = losses_and_parameters(trainer)
    options = {"per_device_train_batch_size": len(prefixes)}
    trainer = make_trainer(trainer_class, other, scid_tokenizer, prefixes, tmp_path, **options)
    expected_losses, expected = losses_and_parameters(trainer)
    assert losses == pytest.approx(expected_losses, rel=1e-4) and losses[1] < losses[0]
    assert (trained - expected).norm() <= 1e-5 * (expected - start).norm()


@pytest.mark.parametrize("rows_of", [every_item_rows, prefix_rows, tree_rows])
def test_batches_are_grouped_by_length_and_bf16_takes_a_step(llama, scid_tokenizer, tmp_path, rows_of):
    template = TEMPLATES[0] if rows_of is every_item_rows else TEMPLATES[1]
    rows = rows_of(prompts_of(scid_tokenizer, template), SEQUENCES, USERS, CODES)
    collator = TreeCollator.for_model(llama(), 0, longest=64) if rows_of is tree_rows else None
    options = {"per_device_train_batch_size": 2, "remove_unused_columns": False, "max_steps": 1}
    losses = []
    for bf16 in (True, False):
        options |= {"train_sampling_strategy": "group_by_length", "bf16": bf16}
        trainer = make_trainer(SmallVocabularySFTTrainer, llama(), scid_tokenizer, rows, tmp_path, collator, **options)
        first = next(iter(trainer.get_train_dataloader()))
        longest_two = sorted(len(row["input_ids"]) for row in rows)[-2:]
        assert (first["input_ids"] != scid_tokenizer.pad_token_id).sum(-1).sort().values.tolist() == longest_two
        (loss,), _ = losses_and_parameters(trainer)
        losses.append(loss)
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_rows_that_lost_their_branches_are_refused(llama, scid_tokenizer, tmp_path):
    tree = tree_rows(prompts_of(scid_tokenizer, TEMPLATES[1]), SEQUENCES, USERS, CODES)
    collator = TreeCollator.for_model(llama(), 0, longest=64)
    trainer = make_trainer(SmallVocabularySFTTrainer, llama(), scid_tokenizer, tree, tmp_path, collator)
    with pytest.raises(ValueError, match=r"no column branch_starts.*remove_unused_columns: false"):
        trainer.train()


def test_attention_that_follows_no_tree_is_refused(llama):
    for attention in ("flash_attention_2", "flex_attention"):
        model = llama()
        model.config._attn_implementation = attention
        with pytest.raises(ValueError, match=rf"{attention}.*sdpa.*objective prefix"):
            TreeCollator.for_model(model, 0, longest=64)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sliding = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=6))
    TreeCollator.for_model(sliding, 0, longest=6)
    with pytest.raises(ValueError, match="sliding window of 6"):
        TreeCollator.for_model(sliding, 0, longest=7)
