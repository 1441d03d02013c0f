from collections import Counter

import numpy as np
import pytest

from align3gr.errors import InputError
from align3gr.scid import PromptBuilder
from align3gr.sft import TaskTemplates, UserCodes, parse_tasks, training_rows
from align3gr.sft.returns import return_distances, with_returns

from .conftest import ITEM_CODES, SEQUENCES, USER_CODES

COMING_BACK = [np.array([4, 4, 7, 4]), np.array([1, 2, 3]), np.array([5])]


def test_distances_are_counted_from_the_last_time():
    assert return_distances(COMING_BACK).tolist() == [1, 2]


def test_without_what_was_put_in_the_sequences_are_as_before():
    many = [np.arange(start, start + 30) for start in range(0, 3000, 30)]
    longer = with_returns([*many, COMING_BACK[0]], np.random.default_rng(0))
    added = 0
    distances = Counter()
    for before, after in zip(many, longer, strict=False):
        _, first = np.unique(after, return_index=True)
        assert after[np.sort(first)].tolist() == before.tolist()
        put_in = sorted(set(range(len(after))) - set(first.tolist()))
        assert not put_in or put_in[0] >= 2  # nothing comes again behind one item alone
        added += len(put_in)
        distances.update(return_distances([after]).tolist())
    assert added == pytest.approx(100 * 29 / 2, rel=0.1)
    # Half of them one place and half two; what was put in may itself be what stands one place back.
    assert set(distances) <= {1, 2, 3} and distances[1] == pytest.approx(added / 2, rel=0.15)


def test_data_without_returns_is_refused():
    with pytest.raises(InputError, match="returns: no user of this data comes back"):
        with_returns(COMING_BACK[1:], np.random.default_rng(0))


def rows(data, tokenizer, **options):
    templates = TaskTemplates("compact")
    prompts = PromptBuilder(tokenizer, data.max_history, template=templates.prompt)
    made = training_rows(data, prompts, tokenizer, ITEM_CODES, parse_tasks(["sequential"]), templates, **options)
    return Counter(tuple(ids) for ids in made["input_ids"])


def test_rows_with_returns_come_beside_the_others(task_data, scid_tokenizer):
    plain, more = rows(task_data, scid_tokenizer), rows(task_data, scid_tokenizer, returns=2)
    assert plain <= more and (more - plain).total() >= 2 * plain.total()
    user = scid_tokenizer.convert_tokens_to_ids("<u0_0>")
    assert any(user in row for row in more - plain)


def test_codes_that_depend_on_the_position_are_left_out(task_data, scid_tokenizer):
    segments = [[(1, len(sequence), codes)] for sequence, codes in zip(SEQUENCES, USER_CODES, strict=True)]
    task_data.user_codes = UserCodes(USER_CODES, segments)
    plain, more = rows(task_data, scid_tokenizer), rows(task_data, scid_tokenizer, returns=1)
    users = set(scid_tokenizer.convert_tokens_to_ids([f"<u0_{code}>" for code in range(4)]))
    assert plain <= more and (more - plain).total() >= plain.total()
    assert all(users & set(row) for row in plain) and not any(users & set(row) for row in more - plain)
