import numpy as np
import pytest
import torch

from align3gr.scid import PromptBuilder, SCIDTokenizer, train_base_tokenizer
from align3gr.sft import SmallLlamaConfig, add_dropout, every_item_rows, small_llama, windows


@pytest.fixture(scope="module")
def tokenizer():
    return SCIDTokenizer.from_base(train_base_tokenizer(["a b c"], 260), [3, 3], [2])


@pytest.mark.parametrize("length", [0, 1, 2, 5, 6, 7, 20, 53])
@pytest.mark.parametrize("max_history", [1, 4, 20])
def test_each_item_with_a_history_is_learnt_once_from_enough_history(length, max_history):
    learnt = []
    for start, end, first in windows(length, max_history):
        assert 0 <= start < first < end <= length and end - start <= max_history + 1
        # what a prompt may hold, or at least half of it
        assert all(item - start >= min(item, max(1, max_history // 2)) for item in range(first, end))
        learnt += range(first, end)
    assert learnt == list(range(1, length))


def test_rows_hold_the_prompt_and_the_loss_stands_on_items_only(tokenizer):
    prompts = PromptBuilder(tokenizer, max_history=20)
    item_codes = np.array([[0, 0], [1, 2], [2, 1]])
    rows = every_item_rows(prompts, [np.array([0, 2, 1]), np.array([1])], np.array([[1], [0]]), item_codes)
    assert len(rows) == 1  # the second user has nothing to predict
    row = rows[0]
    assert tokenizer.decode(row["input_ids"]) == "<s><u0_1><i0_0><i1_0><i0_2><i1_1><i0_1><i1_2>"
    learnt = [i for i, label in enumerate(row["labels"]) if label != -100]
    assert learnt == [4, 5, 6, 7]
    assert [row["labels"][i] for i in learnt] == [row["input_ids"][i] for i in learnt]
    # What stands before the last item is the prompt of evaluation.
    assert row["input_ids"][:-2] == prompts.prompt(np.array([1]), item_codes[[0, 2]])


def test_loss_of_one_row_is_that_of_all_its_prefixes(tokenizer):
    prompts = PromptBuilder(tokenizer)
    item_codes = np.array([[0, 0], [1, 2], [2, 1]])
    sequence, user = np.array([0, 2, 1, 1]), np.array([1])
    model = small_llama(
        SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2), tokenizer, 0
    )
    row = every_item_rows(prompts, [sequence], user[None], item_codes)[0]
    labels = torch.tensor([row["labels"]])
    together = model(torch.tensor([row["input_ids"]]), labels=labels).loss * (labels[0] != -100).sum()
    apart = 0.0
    for position in range(1, 4):
        prompt = prompts.prompt(user, item_codes[sequence[:position]])
        answer = prompts.completion(item_codes[sequence[position]])
        ids = torch.tensor([prompt + answer])
        apart += model(ids, labels=torch.tensor([[-100] * len(prompt) + answer])).loss * len(answer)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only_and_is_no_part_of_the_model(tokenizer):
    model = small_llama(
        SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2), tokenizer, 0
    )
    ids, names = torch.tensor([[1, 2, 3]]), set(model.state_dict())
    before = model.eval()(ids).logits
    add_dropout(model, 0.5)
    assert torch.equal(model(ids).logits, before)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert set(model.state_dict()) == names
    with pytest.raises(ValueError, match="dropout"):
        add_dropout(model, 1.0)
