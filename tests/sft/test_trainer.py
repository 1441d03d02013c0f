import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

from align3gr.decoding import SCIDTrie
from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.scid import PromptBuilder, SCIDTokenizer, SCIDVocabulary, train_base_tokenizer
from align3gr.sft import SmallLlamaConfig, SmallVocabularySFTTrainer, every_item_rows, small_llama


@pytest.fixture(scope="module")
def tokenizer():
    return SCIDTokenizer.from_base(train_base_tokenizer(["a b c"], 260), [3, 3], [2])


ITEM_CODES = np.array([[0, 0], [1, 2], [2, 1], [1, 0]])


def train(trainer_class, tokenizer, folder, validate=None, callbacks=(), likelihood=None, **options):
    sequences = [np.array([0, 2, 1]), np.array([1, 0, 1, 2, 2]), np.array([2, 1])]
    rows = every_item_rows(PromptBuilder(tokenizer), sequences, np.array([[1], [0], [1]]), ITEM_CODES)
    config = SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    model = small_llama(config, tokenizer, seed=0)
    arguments = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        **({"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no"} | options),
    )
    judged = {} if validate is None else {"validate": validate}
    judged |= {} if likelihood is None else {"likelihood": likelihood}
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        **judged,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


def test_it_trains_as_trl_does(tokenizer, tmp_path):
    options = {"per_device_train_batch_size": 3}
    losses, model = train(SmallVocabularySFTTrainer, tokenizer, tmp_path, **options)
    expected, other = train(SFTTrainer, tokenizer, tmp_path, **options)
    assert losses == pytest.approx(expected, abs=1e-5) and losses[-1] < losses[0]
    for value, reference in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)


def catalogue(tokenizer) -> CatalogueLikelihood:
    trie = SCIDTrie.from_codes(ITEM_CODES, (3, 3))
    return CatalogueLikelihood(trie, SCIDVocabulary.from_tokenizer(tokenizer).item_tokens)


def test_over_the_catalogue_the_first_loss_is_that_of_a_guess_among_its_items(tokenizer, tmp_path):
    losses, _ = train(
        SmallVocabularySFTTrainer,
        tokenizer,
        tmp_path,
        likelihood=catalogue(tokenizer),
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        max_steps=40,
        warmup_steps=0,
    )
    # Seven items are learnt: codes 1 of 3, then 1 of 1 or, behind code 1, 1 of 2. Each has two labels.
    items = [2, 1, 0, 1, 2, 2, 1]  # from the second on, of all sequences
    guess = np.mean([np.log(3) + np.log(2) * (item == 1) for item in items]) / 2
    assert losses[0] == pytest.approx(guess, abs=0.02)
    assert losses[-1] < guess / 3


def test_a_llama_trains_without_its_logits_as_with_them(tokenizer, tmp_path, monkeypatch):
    asked = []

    class WithLogits(SmallVocabularySFTTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            assert self._from_states
            self._from_states = False

    def spy(self, *args, original=CatalogueLikelihood.loss_of_states):
        asked.append(args)
        return original(self, *args)

    monkeypatch.setattr(CatalogueLikelihood, "loss_of_states", spy)
    options = {"likelihood": catalogue(tokenizer), "per_device_train_batch_size": 3}
    losses, model = train(SmallVocabularySFTTrainer, tokenizer, tmp_path, **options)
    assert len(asked) == 3
    expected, other = train(WithLogits, tokenizer, tmp_path, **options)
    assert len(asked) == 3 and losses == pytest.approx(expected, abs=1e-6)
    for value, reference in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalizer", ["vocabulary", "catalogue"])
def test_accumulating_small_batches_is_one_large_batch(tokenizer, tmp_path, normalizer):
    likelihood = catalogue(tokenizer) if normalizer == "catalogue" else None
    large, _ = train(
        SmallVocabularySFTTrainer, tokenizer, tmp_path, likelihood=likelihood, per_device_train_batch_size=3
    )
    small, _ = train(
        SmallVocabularySFTTrainer,
        tokenizer,
        tmp_path,
        likelihood=likelihood,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=3,
    )
    assert small == pytest.approx(large, abs=1e-5)


def test_the_best_by_recommending_is_kept_and_training_stops_early(tokenizer, tmp_path):
    seen = []

    def validate(model):
        seen.append({name: value.detach().clone() for name, value in model.named_parameters()})
        return {"recall@10": [0.1, 0.3, 0.2, 0.25, 0.9][len(seen) - 1]}

    losses, model = train(
        SmallVocabularySFTTrainer,
        tokenizer,
        tmp_path,
        validate,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        per_device_train_batch_size=3,
        max_steps=9,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="recall@10",
        load_best_model_at_end=True,
    )
    assert len(losses) == len(seen) == 4  # two evaluations without a new best
    for name, value in model.named_parameters():
        assert torch.equal(value, seen[1][name])
    assert any(not torch.equal(seen[1][name], seen[3][name]) for name in seen[1])
