import numpy as np
import pytest
import torch
from trl import SFTConfig, SFTTrainer

from align3gr.scid import PromptBuilder, SCIDTokenizer, train_base_tokenizer
from align3gr.sft import SmallLlamaConfig, SmallVocabularySFTTrainer, every_item_rows, small_llama


@pytest.fixture(scope="module")
def tokenizer():
    return SCIDTokenizer.from_base(train_base_tokenizer(["a b c"], 260), [3, 3], [2])


def train(trainer_class, tokenizer, folder, **options):
    item_codes = np.array([[0, 0], [1, 2], [2, 1]])
    sequences = [np.array([0, 2, 1]), np.array([1, 0, 1, 2, 2]), np.array([2, 1])]
    rows = every_item_rows(PromptBuilder(tokenizer), sequences, np.array([[1], [0], [1]]), item_codes)
    config = SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    model = small_llama(config, tokenizer, seed=0)
    arguments = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        max_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        **options,
    )
    trainer = trainer_class(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


def test_it_trains_as_trl_does(tokenizer, tmp_path):
    options = {"per_device_train_batch_size": 3}
    losses, model = train(SmallVocabularySFTTrainer, tokenizer, tmp_path, **options)
    expected, other = train(SFTTrainer, tokenizer, tmp_path, **options)
    assert losses == pytest.approx(expected, abs=1e-5) and losses[-1] < losses[0]
    for value, reference in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)


def test_accumulating_small_batches_is_one_large_batch(tokenizer, tmp_path):
    large, _ = train(SmallVocabularySFTTrainer, tokenizer, tmp_path, per_device_train_batch_size=3)
    small, _ = train(
        SmallVocabularySFTTrainer,
        tokenizer,
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=3,
    )
    assert small == pytest.approx(large, abs=1e-5)
