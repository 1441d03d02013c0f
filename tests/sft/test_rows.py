from collections import Counter

import numpy as np
import pytest

from align3gr.errors import InputError
from align3gr.scid import PromptBuilder
from align3gr.sft import TaskTemplates, every_item_rows, parse_tasks, prefix_rows, training_rows

from .conftest import ITEM_CODES, SEQUENCES, USER_CODES


def rows_of(data, tokenizer, tasks, source="compact", **options):
    templates = TaskTemplates(source)
    prompts = PromptBuilder(tokenizer, data.max_history, template=templates.prompt)
    return training_rows(data, prompts, tokenizer, ITEM_CODES, parse_tasks(tasks), templates, **options)


def as_set(rows):
    return Counter(tuple(ids) for ids in rows["input_ids"])


def test_sequential_rows_are_those_of_the_objective(task_data, scid_tokenizer):
    rows = rows_of(task_data, scid_tokenizer, ["sequential"])
    expected = every_item_rows(PromptBuilder(scid_tokenizer, 3), SEQUENCES, USER_CODES, ITEM_CODES)
    assert as_set(rows) == as_set(expected)
    rows = rows_of(task_data, scid_tokenizer, ["sequential"], objective="prefix")
    expected = prefix_rows(PromptBuilder(scid_tokenizer, 3), SEQUENCES, USER_CODES, ITEM_CODES)
    assert as_set(rows) == as_set(expected) and len(rows) == 4


def test_weights_repeat_or_thin_out(task_data, scid_tokenizer):
    once = rows_of(task_data, scid_tokenizer, ["sequential"], objective="prefix")
    more = rows_of(task_data, scid_tokenizer, ["sequential=2.5"], objective="prefix")
    assert len(more) == 10 and as_set(more) >= as_set(once) + as_set(once)


def test_cuts_are_drawn_anew_in_each_pass(task_data, scid_tokenizer):
    task_data.sequences = [np.arange(8), np.array([3, 4, 3]), np.array([5])]
    options = {"objective": "prefix_lm", "returns": 3, "shuffled": 2, "seed": 1}
    rows = rows_of(task_data, scid_tokenizer, ["sequential=40"], **options)
    assert as_set(rows) == as_set(rows_of(task_data, scid_tokenizer, ["sequential=40"], **options))
    ordered = np.array([*scid_tokenizer.scid.item_ids(ITEM_CODES)]).tolist()
    starts = Counter()  # of the first user's answers
    for row in rows_of(task_data, scid_tokenizer, ["sequential=40"], objective="prefix_lm"):
        answer = [label for label in row["labels"] if label != -100][:2]
        starts[ordered.index(answer)] += 1
    assert set(starts) == set(range(1, 8)) and starts[1] >= 40


def test_a_small_weight_keeps_at_least_a_row(task_data, scid_tokenizer):
    assert len(rows_of(task_data, scid_tokenizer, ["sequential=0.001"])) == 1


def test_tasks_do_not_change_each_other(task_data, scid_tokenizer):
    words = rows_of(task_data, scid_tokenizer, ["item_text"])
    both = rows_of(task_data, scid_tokenizer, ["sequential", "preference", "item_text"])
    assert as_set(both) >= as_set(words)
    tree = rows_of(task_data, scid_tokenizer, ["sequential", "item_text"], "natural", objective="tree")
    assert {"branch_starts", "branch_seen"} <= set(tree.column_names) and len(tree) == 2 + 8


def test_rephrased_rows_use_the_other_templates(task_data, scid_tokenizer):
    plain = rows_of(task_data, scid_tokenizer, ["sequential"], "natural", objective="prefix")
    more = rows_of(task_data, scid_tokenizer, ["sequential"], "natural", objective="prefix", rephrased=3)
    added = as_set(more) - as_set(plain)
    assert sum(added.values()) == 6
    assert not any("Items chosen so far" in scid_tokenizer.decode(ids) for ids in added)
    with pytest.raises(InputError, match="rephrased: compact has one template"):
        rows_of(task_data, scid_tokenizer, ["sequential"], rephrased=1)


def test_shuffled_passes_hold_the_same_items_in_other_orders(task_data, scid_tokenizer):
    plain = rows_of(task_data, scid_tokenizer, ["sequential"])
    more = rows_of(task_data, scid_tokenizer, ["sequential"], shuffled=99.5)
    assert len(plain) == 2 and len(more) == len(plain) + 2 * 99 + 1  # the third user has one item only
    assert as_set(more) > as_set(plain)
    # The four items of the first user, one of them twice, have 12 orders, the two of the second one 2.
    assert len(as_set(more)) == 12 + 2
    assert {tuple(sorted(ids)) for ids in as_set(more)} == {tuple(sorted(ids)) for ids in as_set(plain)}


def test_what_cannot_be_learnt_is_refused(task_data, scid_tokenizer):
    for name in ("rephrased", "returns", "shuffled"):
        with pytest.raises(InputError, match=f"{name}: got -0.5, expected 0 or more"):
            rows_of(task_data, scid_tokenizer, ["sequential"], **{name: -0.5})
    with pytest.raises(InputError, match="objective: got 'some'"):
        rows_of(task_data, scid_tokenizer, ["sequential"], objective="some")
    with pytest.raises(InputError, match="needs a template that ends"):
        rows_of(task_data, scid_tokenizer, ["sequential"], "natural")
    task_data.sequences = [np.array([1])] * 3
    with pytest.raises(InputError, match="no user has two train items"):
        rows_of(task_data, scid_tokenizer, ["sequential"])
