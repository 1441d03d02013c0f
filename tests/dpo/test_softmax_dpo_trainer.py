"""The trainer's loss, its reference and its rows."""

import copy
import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from align3gr.dpo import softmax_dpo_trainer as module
from align3gr.dpo.preference_rows import REFERENCE_COLUMNS
from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
from align3gr.dpo.softmax_dpo_trainer import SoftmaxDPOTrainer
from align3gr.errors import InputError


@pytest.fixture
def build(tmp_path, tokenizer):
    def trainer(model, rows, ref_model=None, eval_dataset=None, peft_config=None, **options):
        settings = {"learning_rate": 1e-2, "max_steps": 2, "report_to": "none", "use_cpu": True, "logging_steps": 1}
        settings |= {"per_device_train_batch_size": 3, "save_strategy": "no", "disable_tqdm": True}
        args = SoftmaxDPOConfig(str(tmp_path), **(settings | options))
        data = rows if isinstance(rows, IterableDataset) else Dataset.from_list(rows)
        return SoftmaxDPOTrainer(model, ref_model, args, data, eval_dataset, tokenizer, peft_config=peft_config)

    return trainer


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def batch_loss(trainer):
    """Loss and gradients of one batch of the whole dataset."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


UNIFORM = (math.log(3) + math.log(2) + math.log(5)) / 3  # rows of 2, 1 and 4 rejected


@pytest.mark.parametrize("sharing", ["shared", "merged", "naive"])
def test_starts_at_log_of_the_number_of_completions(build, llama, rows, sharing):
    trainer = build(llama(), rows, prefix_sharing=sharing)
    first, second = losses(trainer)
    assert first == pytest.approx(UNIFORM, abs=1e-4)
    assert second < first - 0.01
    logged = trainer.state.log_history[0]
    assert logged["uniform_loss"] == pytest.approx(UNIFORM, abs=1e-6)
    assert logged["rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("moved", [False, True], ids=["fresh", "trained"])
def test_reference_of_a_peft_model_is_the_policy_at_the_start(build, llama, lora, rows, moved):
    """Also where DPOTrainer's copy of the adapter lacks the trained token rows."""
    model = lora(llama())
    if moved:
        losses(build(model, rows))
    trainer = build(model, rows)
    assert list(model.peft_config) == ["default"]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in trainable if "trainable_tokens" in name} == {"default"}
    assert losses(trainer)[0] == pytest.approx(UNIFORM, abs=1e-4)


def test_reference_of_a_second_stage_is_the_end_of_the_first(build, llama, rows):
    model = llama()
    losses(build(model, rows))
    assert losses(build(model, rows))[0] == pytest.approx(UNIFORM, abs=1e-4)


def test_fresh_adapter_from_a_peft_config(build, llama, rows):
    trainer = build(llama(), rows[:2], peft_config=LoraConfig(target_modules=["q_proj"]))
    assert losses(trainer)[0] == pytest.approx((math.log(3) + math.log(2)) / 2, abs=1e-4)


def test_explicit_reference_with_and_without_precomputation(build, llama, rows):
    policy, reference = llama(seed=0), llama(seed=1)
    values = [
        batch_loss(build(policy, rows, reference, precompute_ref_log_probs=precompute))[0]
        for precompute in (True, False)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    # By hand: log-ratios from both models, Eq. (3) as printed, row by row.
    expected = []
    for row in rows:
        ratios = []
        for completion in [row["chosen_ids"], *row["rejected_ids"]]:
            ids, start = torch.tensor([row["prompt_ids"] + completion]), len(row["prompt_ids"]) - 1
            logps = [m(input_ids=ids).logits[0, start:-1].log_softmax(-1) for m in (policy, reference)]
            ratios.append(sum((logps[0] - logps[1])[at, token].item() for at, token in enumerate(completion)))
        total = sum(math.exp(0.1 * (ratio - ratios[0])) for ratio in ratios[1:])
        expected.append(-math.log(1 / (1 + total)))
    assert values[0] == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_gradient_checkpointing_changes_nothing(build, llama, lora, rows):
    plain, recomputed = (losses(build(lora(llama()), rows, gradient_checkpointing=on)) for on in (False, True))
    assert recomputed == pytest.approx(plain, abs=1e-5) and plain[1] < plain[0] - 0.01


def test_bf16_mixed_precision_starts_near_the_reference(build, llama, rows):
    trainer = build(llama(), rows, bf16=True)
    first, second = losses(trainer)
    assert first == pytest.approx(UNIFORM, abs=2e-2) and second < first - 0.01
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


TEXT_ROW = Dataset.from_list([{"prompt": "t1", "chosen": "t3", "rejected": "t4"}])


def trl_config(folder):
    return DPOConfig(str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")


def test_one_rejected_equals_trl_sigmoid_dpo(build, llama, rows, tokenizer, tmp_path):
    pairs = [row | {"rejected_ids": row["rejected_ids"][:1]} for row in rows]
    policy, reference = llama(seed=0), llama(seed=1)
    ours, our_gradients = batch_loss(build(copy.deepcopy(policy), pairs, reference))
    trl = DPOTrainer(policy, reference, trl_config(tmp_path), train_dataset=TEXT_ROW, processing_class=tokenizer)
    batch = trl.data_collator([row | {"rejected_ids": row["rejected_ids"][0]} for row in pairs])
    loss = trl.compute_loss(trl.model, batch)
    loss.backward()
    assert ours == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in trl.model.named_parameters():
        torch.testing.assert_close(our_gradients[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


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


def test_evaluation_uses_the_reference_of_the_start(build, llama, rows):
    trainer = build(llama(), rows, eval_dataset=Dataset.from_list(rows))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(UNIFORM, abs=1e-4)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < UNIFORM - 0.01
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (3, 5)


def test_dataset_after_training_has_no_reference(build, llama, lora, rows):
    trainer = build(lora(llama()), rows)
    trainer.train()
    with pytest.raises(ValueError, match=r"has been trained since.*ref_model"):
        trainer.evaluate(Dataset.from_list(rows))


def test_streamed_rows_with_an_explicit_reference(build, llama, rows):
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = build(llama(seed=0), stream, llama(seed=0), precompute_ref_log_probs=False)
    assert losses(trainer)[0] == pytest.approx(UNIFORM, abs=1e-4)


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


def test_undefined_references_are_refused(build, llama, lora, rows, monkeypatch):
    with pytest.raises(ValueError, match="precompute_ref_log_probs=False needs an explicit `ref_model`"):
        build(llama(), rows, precompute_ref_log_probs=False)
    model = lora(llama())
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("other")
    with pytest.raises(ValueError, match=r"active adapters are \['other'\]"):
        build(model, rows)
    with monkeypatch.context() as environment:
        environment.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match="under FSDP"):
            build(llama(), rows)


def test_model_is_left_without_the_parents_patch(build, llama, rows):
    model = llama()
    trainer = build(model, rows)
    assert "forward" not in model.__dict__
    twin = copy.deepcopy(model)
    trainer.train()
    ids = torch.tensor([[1, 5, 9]])
    # A patched copy would run the trained original.
    assert (twin(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() > 1e-3


def test_private_names_of_trl_exist(build, llama, rows):
    for name in module.TRL_PRIVATE_METHODS:
        assert callable(getattr(DPOTrainer, name)), name
    trainer = build(llama(), rows)
    for name in module.TRL_PRIVATE_ATTRIBUTES:
        assert hasattr(trainer, name), name
    trainer._set_signature_columns_if_needed()
    assert set(REFERENCE_COLUMNS) <= set(trainer._signature_columns) & set(trainer.train_dataset.column_names)


def test_trl_still_adds_the_reference_adapter_under_its_name(llama, lora, rows, tokenizer, tmp_path):
    model = lora(llama())
    DPOTrainer(model, None, trl_config(tmp_path), train_dataset=TEXT_ROW, processing_class=tokenizer)
    assert module.REFERENCE_ADAPTER in model.peft_config
