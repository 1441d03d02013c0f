import numpy as np
import pytest
import torch

from align3gr.scid import PromptBuilder, SCIDTokenizer, train_base_tokenizer
from align3gr.sft import (
    SmallLlamaConfig,
    UserCodes,
    every_item_rows,
    prefix_lm_rows,
    prefix_rows,
    small_llama,
    tree_rows,
    windows,
)
from align3gr.sft.objectives import ITEMS_AN_ANSWER


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


@pytest.mark.parametrize("first", [1, 2, 6, 9, 30])
def test_windows_can_begin_later_and_still_see_what_is_before(first):
    learnt = []
    for start, end, begin in windows(40, 8, first):
        assert end - start <= 9 and all(item - start >= min(item, 4) for item in range(begin, end))
        learnt += range(begin, end)
    assert learnt == list(range(first, 40))


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


ITEMS = np.array([[0, 0], [1, 2], [2, 1]])


def decoded(tokenizer, row):
    """Text of a row, and of the tokens that carry its loss."""
    return tokenizer.decode(row["input_ids"]), tokenizer.decode([label for label in row["labels"] if label != -100])


def test_each_prefix_is_a_prompt_with_its_answer(tokenizer):
    prompts = PromptBuilder(tokenizer, max_history=2, template="[{user}]{history}=")
    rows = prefix_rows(prompts, [np.array([0, 2, 1, 1]), np.array([1])], np.array([[1], [0]]), ITEMS)
    assert [decoded(tokenizer, row) for row in rows] == [
        ("<s><u0_1><i0_0><i1_0>=<i0_2><i1_1>", "<i0_2><i1_1>"),
        ("<s><u0_1><i0_0><i1_0><i0_2><i1_1>=<i0_1><i1_2>", "<i0_1><i1_2>"),
        ("<s><u0_1><i0_2><i1_1><i0_1><i1_2>=<i0_1><i1_2>", "<i0_1><i1_2>"),
    ]
    assert all(row["labels"][-2:] == row["input_ids"][-2:] for row in rows)


def test_branches_stand_behind_the_trunk_without_their_last_token(tokenizer):
    prompts = PromptBuilder(tokenizer, max_history=2, template="[{user}]{history}=")
    rows = tree_rows(prompts, [np.array([0, 2, 1, 1])], np.array([[1]]), ITEMS)
    # Two samples share their history; the third has lost its beginning and shares the header with nobody.
    assert [decoded(tokenizer, row) for row in rows] == [
        ("<s><u0_1><i0_0><i1_0><i0_2><i1_1>=<i0_2>=<i0_1><i1_2>", "<i0_2><i1_1><i0_1><i1_2>"),
        ("<s><u0_1><i0_2><i1_1><i0_1><i1_2>=<i0_1><i1_2>", "<i0_1><i1_2>"),
    ]
    assert [(row["branch_starts"], row["branch_seen"]) for row in rows] == [([6, 8], [4, 6]), ([2], [2])]
    assert [at for at, label in enumerate(rows[0]["labels"]) if label != -100] == [7, 8, 9, 10]


def test_without_a_suffix_the_trunk_itself_predicts(tokenizer):
    prompts = PromptBuilder(tokenizer, max_history=2)
    rows = tree_rows(prompts, [np.array([0, 2, 1])], np.array([[1]]), ITEMS)
    every_item = every_item_rows(prompts, [np.array([0, 2, 1])], np.array([[1]]), ITEMS)
    assert len(rows) == 1 and rows[0]["branch_starts"] == []
    assert {name: rows[0][name] for name in ("input_ids", "labels")} == every_item[0]


def test_every_item_needs_the_answer_right_behind_the_history(tokenizer):
    prompts = PromptBuilder(tokenizer, template="[{user}]{history}=")
    with pytest.raises(ValueError, match=r"template: got .*\{history\}=.* tree or prefix"):
        every_item_rows(prompts, [np.array([0, 2])], None, ITEMS)


@pytest.mark.parametrize("rows_of", [every_item_rows, prefix_rows, tree_rows])
def test_items_stand_behind_the_codes_of_their_position(tokenizer, rows_of):
    codes = UserCodes(np.array([[0]]), [[(1, 3, np.array([1])), (3, 5, np.array([0]))]])
    rows = rows_of(PromptBuilder(tokenizer), [np.array([0, 1, 2, 0, 1])], codes, ITEMS)
    learnt = {0: [], 1: []}
    for row in rows:
        text, answers = decoded(tokenizer, row)
        learnt[int(text[len("<s><u0_")])].append(answers)
    assert "".join(learnt[1]) == "<i0_1><i1_2><i0_2><i1_1>"
    assert "".join(learnt[0]) == "<i0_0><i1_0><i0_1><i1_2>"
    # What is behind the second codes has still seen the whole history.
    assert "<s><u0_0><i0_0><i1_0><i0_1><i1_2><i0_2><i1_1><i0_0><i1_0>" in "".join(
        decoded(tokenizer, r)[0] for r in rows
    )


@pytest.mark.parametrize("rows_of", [every_item_rows, prefix_rows, tree_rows])
def test_sequences_without_a_history_give_no_rows(tokenizer, rows_of):
    rows = rows_of(PromptBuilder(tokenizer), [np.array([1]), np.array([], dtype=np.int64)], None, ITEMS)
    assert len(rows) == 0 and {"input_ids", "labels"} <= set(rows.column_names)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 23])
def test_an_answer_holds_what_came_next_and_each_item_is_learnt_once(tokenizer, length):
    prompts = PromptBuilder(tokenizer, max_history=4, user_scid=False)
    item_codes = np.array(np.divmod(np.arange(9), 3)).T
    sequence = np.random.default_rng(0).integers(9, size=length)
    passes = 400
    direct = np.zeros(length)
    for seed in range(passes):
        rows = prefix_lm_rows(prompts, [sequence], None, item_codes, np.random.default_rng(seed))
        position = 1
        for row in rows:
            direct[position] += 1
            start = len(row["labels"]) - sum(label != -100 for label in row["labels"])
            assert row["input_ids"][:start] == prompts.prompt(None, item_codes[sequence[:position]])
            end = position + (len(row["labels"]) - start) // 2
            assert 1 <= end - position <= ITEMS_AN_ANSWER
            assert row["labels"][start:] == [
                token for item in sequence[position:end] for token in prompts.completion(item_codes[item])
            ]
            position = end
        assert position == length
    if length > 2:  # the first one always, every other one as often as the next
        assert direct[1] == passes and direct[2:] == pytest.approx(passes / ITEMS_AN_ANSWER, rel=0.4)
