"""The trainer's loss, its metrics and the rows that it refuses."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from transformers import ProcessorMixin
from trl import DPOConfig, DPOTrainer

from align3gr.dpo import SoftmaxDPOTrainer
from align3gr.errors import InputError
from tests.dpo.training import UNIFORM, assert_gradients_equal, batch_loss, losses


@pytest.mark.parametrize("sharing", ["shared", "merged", "naive"])
def test_starts_at_log_of_the_number_of_completions(build, llama, rows, sharing):
    trainer = build(llama(), rows, prefix_sharing=sharing)
    first, second = losses(trainer)
    assert first == pytest.approx(UNIFORM, abs=1e-4)
    assert second < first - 0.01
    logged = trainer.state.log_history[0]
    assert logged["uniform_loss"] == pytest.approx(UNIFORM, abs=1e-6)
    assert logged["rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("sharing", ["shared", "naive"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_gradient_checkpointing_changes_nothing(kind, sharing, build, llama, lora, rows):
    plain, recomputed = (
        losses(
            build(
                lora(llama()) if kind == "lora" else llama(), rows, gradient_checkpointing=on, prefix_sharing=sharing
            )
        )
        for on in (False, True)
    )
    assert recomputed == pytest.approx(plain, abs=1e-5) and plain[1] < plain[0] - 0.01


@pytest.mark.parametrize("sharing", ["merged", "naive"])
def test_bf16_mixed_precision_starts_near_the_reference(sharing, build, llama, rows):
    trainer = build(llama(), rows, bf16=True, prefix_sharing=sharing)
    first, second = losses(trainer)
    assert first == pytest.approx(UNIFORM, abs=2e-2) and second < first - 0.01
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


TEXT_ROW = Dataset.from_list([{"prompt": "t1", "chosen": "t3", "rejected": "t4"}])


VARIANTS = {
    "sigmoid": ({}, {}),
    "with an SFT term": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 0.25]},
        {"preference_coefficient": 0.5, "sft_coefficient": 0.25},
    ),
    "sft alone": ({"loss_type": ["sft"]}, {"preference_coefficient": 0.0, "sft_coefficient": 1.0}),
    "means over tokens": ({"loss_type": ["sigmoid_norm"]}, {"length_normalization": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_rejected_equals_trl(variant, build, llama, rows, tokenizer, tmp_path):
    """Loss and gradients; the chosen are equally long, for TRL's SFT term counts every token of a batch alike."""
    theirs, options = VARIANTS[variant]
    pairs = [
        row | {"chosen_ids": [*row["chosen_ids"], 59][:3], "rejected_ids": row["rejected_ids"][-1:]} for row in rows
    ]
    policy, reference = llama(seed=0), llama(seed=1)
    ours, our_gradients = batch_loss(build(copy.deepcopy(policy), pairs, reference, **options))
    args = DPOConfig(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", **theirs)
    trl = DPOTrainer(policy, reference, args, train_dataset=TEXT_ROW, processing_class=tokenizer)
    batch = trl.data_collator([row | {"rejected_ids": row["rejected_ids"][0]} for row in pairs])
    loss = trl.compute_loss(trl.model, batch)
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-6)
    assert_gradients_equal(our_gradients, {name: p.grad for name, p in trl.model.named_parameters()})


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_three_layouts_give_one_loss_and_one_gradient(kind, build, llama, lora, rows):
    """Of the whole loss, all terms and ragged rows; LoRA with trained rows of embedding and head."""
    options = {"sft_coefficient": 0.5, "length_normalization": True}
    results = []
    for sharing in ("naive", "shared", "merged"):
        policy = lora(llama()) if kind == "lora" else llama()
        results.append(batch_loss(build(policy, rows, llama(seed=1), prefix_sharing=sharing, **options)))
    (expected, gradients), *others = results
    assert sum("trainable_tokens_delta" in name for name in gradients) == (2 if kind == "lora" else 0)
    for loss, other in others:
        assert loss == pytest.approx(expected, abs=1e-5)
        assert_gradients_equal(other, gradients)


def test_the_sft_term_is_the_mean_of_the_rows(build, llama, rows):
    """By hand: mean negative log-likelihood of each chosen completion; chosen differ in length."""
    model = llama()
    expected = []
    for row in rows:
        ids, start = torch.tensor([row["prompt_ids"] + row["chosen_ids"]]), len(row["prompt_ids"]) - 1
        logps = model(input_ids=ids).logits[0, start:-1].log_softmax(-1)
        expected.append(-logps[range(len(row["chosen_ids"])), row["chosen_ids"]].mean().item())
    trainer = build(model, rows, preference_coefficient=0.5, sft_coefficient=2.0)
    total = losses(trainer)[0]
    logged = trainer.state.log_history[0]
    assert logged["sft_loss"] == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert logged["preference_loss"] == pytest.approx(UNIFORM, abs=1e-5)
    assert total == pytest.approx(0.5 * UNIFORM + 2 * sum(expected) / 3, rel=1e-5)
    assert trainer.state.log_history[1]["sft_loss"] < logged["sft_loss"]
    without = build(llama(), rows)
    assert losses(without)[0] == pytest.approx(without.state.log_history[0]["preference_loss"], abs=1e-6)
    assert "sft_loss" not in without.state.log_history[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharing", ["shared", "naive"])
def test_logits_of_ten_thousand_stay_finite(dtype, sharing, build, llama, rows):
    policy = llama().to(dtype)
    with torch.no_grad():
        policy.lm_head.weight.mul_(1e4 / policy(input_ids=torch.tensor([rows[0]["prompt_ids"]])).logits.abs().max())
        assert policy(input_ids=torch.tensor([rows[0]["prompt_ids"]])).logits.abs().max() > 9e3
    loss, gradients = batch_loss(build(policy, rows, llama(seed=1), prefix_sharing=sharing, beta=1.0))
    assert math.isfinite(loss) and loss > 100
    assert all(torch.isfinite(grad).all() for grad in gradients.values()) and len(gradients) > 10


def test_order_of_rejected_changes_nothing(build, llama, rows):
    turned = [row | {"rejected_ids": row["rejected_ids"][::-1]} for row in rows]
    policy, reference = llama(seed=0), llama(seed=1)
    (loss, gradients), (other, other_gradients) = (batch_loss(build(policy, r, reference)) for r in (rows, turned))
    assert loss == pytest.approx(other, abs=1e-6)
    for name, grad in gradients.items():
        torch.testing.assert_close(other_gradients[name], grad, atol=1e-6, rtol=1e-4)


def test_ragged_rows_equal_rows_one_by_one(build, llama, rows):
    policy, reference = llama(seed=0), llama(seed=1)
    together, _ = batch_loss(build(policy, rows, reference))
    apart = [batch_loss(build(policy, [row], reference))[0] for row in rows]
    assert len(set(apart)) == 3
    assert together == pytest.approx(sum(apart) / 3, abs=1e-5)


def test_accumulation_equals_a_large_batch(build, llama, rows):
    rows = (rows * 3)[:8]
    ends = []
    for batch_size, accumulation in ((1, 8), (8, 1)):
        model = llama()
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        values = losses(build(model, rows, **options, max_steps=3, optim="sgd"))
        ends.append((values, model.state_dict()))
    (values, weights), (other_values, other_weights) = ends
    assert values == pytest.approx(other_values, abs=1e-4) and values[2] < values[0] - 1e-3
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_ranks_and_rewards_count_means_over_tokens_where_the_loss_does(build, llama):
    """The chosen has more tokens: worse by its sum, better by its mean."""
    model = llama()
    row = {"prompt_ids": [1, 5], "chosen_ids": [41, 47, 52, 53], "rejected_ids": [[42]]}
    logps = []
    for completion in (row["chosen_ids"], row["rejected_ids"][0]):
        logits = model(input_ids=torch.tensor([row["prompt_ids"] + completion])).logits[0, 1:-1].log_softmax(-1)
        logps.append(logits[range(len(completion)), completion].sum().item())
    assert logps[0] < logps[1] < logps[0] / 4
    logged = {}
    for normalised in (False, True):
        trainer = build(model, [row], llama(seed=1), length_normalization=normalised, learning_rate=0.0)
        losses(trainer)
        logged[normalised] = trainer.state.log_history[0]
    assert logged[False]["chosen_rank"] == 2 and logged[True]["chosen_rank"] == 1
    assert logged[True]["rewards/chosen"] == pytest.approx(logged[False]["rewards/chosen"] / 4, rel=1e-5)
    assert logged[True]["rewards/rejected"] == pytest.approx(logged[False]["rewards/rejected"], rel=1e-5)
    assert logged[True]["logps/chosen"] == logged[False]["logps/chosen"] == pytest.approx(logps[0], rel=1e-5)


def test_metrics_by_hand(build, llama, rows):
    trainer = build(llama(), rows[:2])
    logps = torch.tensor([[-1.0, -2.0, 0.5], [-3.0, -1.0, 0.0]])
    rewards = torch.tensor([[0.5, 0.1, 0.9], [0.2, -0.4, 0.0]])
    losses = {"preference_loss": torch.tensor([0.5, 1.5])}
    trainer._log_batch(losses, logps, logps, rewards, torch.tensor([[True, True, True], [True, True, False]]))
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    expected = {
        "preference_loss": 1.0,
        "rewards/chosen": 0.35,
        "rewards/rejected": (0.5 - 0.4) / 2,
        "rewards/accuracies": (0.5 + 1.0) / 2,
        "rewards/margins": (0.0 + 0.6) / 2,
        "logps/chosen": -2.0,
        "logps/rejected": (-0.75 - 1.0) / 2,
        "chosen_rank": 2.0,
        "uniform_loss": (math.log(3) + math.log(2)) / 2,
    }
    assert metrics == pytest.approx(expected, abs=1e-6)


GOOD = {"prompt_ids": [1], "chosen_ids": [40, 45], "rejected_ids": [[41, 46]]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rejected_ids": []}, "row 1: rejected_ids has 0 completions; expected 1 to num_rejected=2"),
        ({"rejected_ids": [[41], [42], [43]]}, "row 1: rejected_ids has 3 completions; expected 1 to num_rejected=2"),
        ({"prompt_ids": []}, "row 1: an empty prompt or completion"),
        ({"rejected_ids": [[]]}, "row 1: an empty prompt or completion"),
        ({"rejected_ids": [[40, 45]]}, "row 1: the chosen completion is also among rejected_ids"),
        ({"prompt_ids": [1] * 9}, "row 1: 11 tokens exceed max_length=10"),
    ],
)
def test_unusable_rows_are_named(build, llama, row, message):
    with pytest.raises(InputError, match=message):
        build(llama(), [GOOD, GOOD | row], num_rejected=2, max_length=10)


def test_unusable_columns_are_named(build, llama):
    with pytest.raises(InputError, match=r"columns \['rejected'\] are missing"):
        build(llama(), [{"prompt": "t1", "chosen": "t2"}])


def test_images_are_refused(llama, tokenizer):
    class Processor(ProcessorMixin):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="images are not implemented by Softmax-DPO; pass the tokenizer"):
        SoftmaxDPOTrainer(llama(), train_dataset=TEXT_ROW, processing_class=Processor())
