"""What the policy is compared with: itself at the start, or a model that is given."""

import copy
import math
from pydoc import locate

import pytest
import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from align3gr.dpo import softmax_dpo_trainer as module
from align3gr.dpo.preference_rows import REFERENCE_COLUMNS
from tests.dpo.training import UNIFORM, batch_loss, losses


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


def test_model_is_left_without_the_parents_patch(build, llama, rows):
    model = llama()
    trainer = build(model, rows)
    assert "forward" not in model.__dict__
    twin = copy.deepcopy(model)
    trainer.train()
    ids = torch.tensor([[1, 5, 9]])
    # A patched copy would run the trained original.
    assert (twin(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() > 1e-3


def test_trl_still_adds_the_reference_adapter_under_its_name(llama, lora, rows, tokenizer, tmp_path):
    model = lora(llama())
    args = DPOConfig(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
    row = Dataset.from_list([{"prompt": "t1", "chosen": "t3", "rejected": "t4"}])
    DPOTrainer(model, None, args, train_dataset=row, processing_class=tokenizer)
    assert module.REFERENCE_ADAPTER in model.peft_config


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_resumed_run_keeps_the_reference_of_the_start(kind, build, llama, lora, rows, tmp_path):
    """Killed after step 2 of 4: the same losses and weights as without the kill."""

    def model():
        return lora(llama()) if kind == "lora" else llama()

    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    whole = build(model(), rows, **options)
    expected = losses(whole)
    resumed = build(model(), rows, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    entries = [entry for entry in resumed.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert [entry["loss"] for entry in entries] == pytest.approx(expected, abs=1e-6)
    weights = resumed.model.state_dict()
    assert any((weights[name] != value).any() for name, value in model().state_dict().items())
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0, msg=name)


def test_reference_is_kept_beside_the_rows_and_belongs_to_one_policy(build, llama, rows, tmp_path, monkeypatch):
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    computed = []
    compute = module.SoftmaxDPOTrainer.compute_ref_log_probs

    def counted(self, model, inputs):
        computed.append(len(inputs["label_ids"]))
        return compute(self, model, inputs)

    monkeypatch.setattr(module.SoftmaxDPOTrainer, "compute_ref_log_probs", counted)
    columns = []
    for seed, batches in ((0, [3]), (0, [3]), (1, [3, 3])):
        trainer = build(llama(seed=seed), load_from_disk(tmp_path / "rows"))
        assert computed == batches
        columns.append(trainer.train_dataset["ref_chosen_logps"][:])
    assert columns[0] == columns[1] != columns[2]


def test_dropout_is_off_in_the_reference_alone(build, llama, rows):
    still = build(llama(), rows).train_dataset["ref_chosen_logps"][:]
    model = llama(attention_dropout=0.5)
    model.train()
    trainer = build(model, rows, disable_dropout=False)
    assert trainer.train_dataset["ref_chosen_logps"][:] == pytest.approx(still, abs=1e-5)
    assert abs(losses(trainer)[0] - UNIFORM) > 0.01


def test_a_synchronised_reference_is_the_policy_of_the_step_before(build, llama, rows):
    """Copied whole after every step, it leaves nothing to compare with; unsynchronised, the loss falls."""
    options = {"precompute_ref_log_probs": False, "max_steps": 3}
    synced = build(
        llama(), rows, llama(), **options, sync_ref_model=True, ref_model_mixup_alpha=1.0, ref_model_sync_steps=1
    )
    assert losses(synced) == pytest.approx([UNIFORM] * 3, abs=1e-5)
    assert losses(build(llama(), rows, llama(), **options))[2] < UNIFORM - 0.01


def test_a_peft_policy_against_a_given_reference(build, llama, lora, rows):
    """Plain or with an adapter of its own, precomputed or not."""
    for reference in (llama(seed=0), lora(llama(seed=1))):
        with_and_without = [
            batch_loss(build(lora(llama()), rows, reference, precompute_ref_log_probs=precompute))[0]
            for precompute in (True, False)
        ]
        assert with_and_without[0] == pytest.approx(with_and_without[1], abs=1e-5)
        assert abs(with_and_without[0] - UNIFORM) > 0.01


def test_reference_of_bf16_weights(build, llama, rows):
    """The batches of the reference and of training are the same here, so that nothing is rounded differently."""
    for sharing in ("shared", "naive"):
        trainer = build(llama().bfloat16(), rows, prefix_sharing=sharing, precompute_ref_batch_size=3)
        first, second = losses(trainer)
        assert first == pytest.approx(UNIFORM, abs=1e-2) and second < first - 0.01


def test_undefined_references_are_refused(build, llama, lora, rows, monkeypatch):
    for model in (llama(), lora(llama())):
        with pytest.raises(ValueError, match="precompute_ref_log_probs=False needs an explicit `ref_model`"):
            build(model, rows, precompute_ref_log_probs=False)
    model = lora(llama())
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("other")
    with pytest.raises(ValueError, match=r"active adapters are \['other'\]"):
        build(model, rows)
    with monkeypatch.context() as environment:
        environment.setenv("ACCELERATE_USE_FSDP", "true")
        for model in (llama(), lora(llama())):
            with pytest.raises(ValueError, match="under FSDP pass the policy at the start as an explicit `ref_model`"):
                build(model, rows)
    with pytest.raises(ValueError, match="precompute_ref_log_probs=True` is not supported with IterableDataset"):
        build(llama(), Dataset.from_list(rows).to_iterable_dataset())
    with pytest.raises(ValueError, match=r"sync_ref_model=True` together with `precompute_ref_log_probs=True"):
        build(llama(), rows, llama(), sync_ref_model=True)
    with pytest.raises(NotImplementedError, match="sync_ref_model=True` while using a PEFT model"):
        build(lora(llama()), rows, llama(), sync_ref_model=True, precompute_ref_log_probs=False)
    model = llama()
    with pytest.raises(ValueError, match="cannot be the same object"):
        build(model, rows, model)


def test_private_names_of_trl_exist(build, llama, rows):
    for name in module.TRL_PRIVATE_FUNCTIONS:
        assert callable(locate(name)), name
    for name in module.TRL_PRIVATE_METHODS:
        assert callable(getattr(DPOTrainer, name)), name
    trainer = build(llama(), rows)
    for name in module.TRL_PRIVATE_ATTRIBUTES:
        assert hasattr(trainer, name), name
    assert isinstance(trainer.train_dataset._fingerprint, str)  # of datasets, as TRL uses it
    trainer._set_signature_columns_if_needed()
    assert set(REFERENCE_COLUMNS) <= set(trainer._signature_columns) & set(trainer.train_dataset.column_names)
