"""Stages as a person writes them."""

import pytest

from align3gr.dpo.curriculum_stage import CurriculumStage, read_stages
from align3gr.errors import InputError


def test_names_alone_and_names_with_options():
    assert read_stages(["easy", "hard"], 40) == [
        CurriculumStage("easy", "easy", 40),
        CurriculumStage("hard", "hard", 40),
    ]
    options = {"difficulty": "hard", "num_prompts": 9, "learning_rate": "5e-5", "num_train_epochs": 2, "beta": 0.2}
    again = CurriculumStage("again", "hard", 9, 5e-5, 2.0, 0.2)
    assert read_stages(["easy", {"again": options}], 40)[1] == again
    written = "again: {difficulty: hard, num_prompts: 9, learning_rate: 5e-5, num_train_epochs: 2, beta: 0.2}"
    assert read_stages([written], 40) == [again]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "expected at least one"),
        (["easy", "easy"], "each with a name of its own; got ['easy', 'easy']"),
        ([3], "got 3, expected a name such as easy"),
        ([{"easy": {}, "hard": {}}], "expected a name such as easy"),
        ([{"easy": "hard"}], "expected a name such as easy"),
        (["easy: {beta: 0.2"], "expected a name such as easy"),
        (["../easy"], "leave out slashes"),
        ([{"easy": {"betta": 0.2}}], "easy has the unknown option 'betta'; choose from difficulty, num_prompts"),
        ([{"easy": {"beta": -0.2}}], "easy has beta=-0.2, expected a positive number"),
        ([{"easy": {"beta": True}}], "easy has beta=True, expected a positive number"),
        ([{"easy": {"learning_rate": "fast"}}], "easy has learning_rate='fast', expected a positive number"),
        ([{"easy": {"num_prompts": 1.5}}], "easy has num_prompts=1.5, expected a positive integer"),
        ([{"easy": {"difficulty": 3}}], "easy has difficulty=3, expected text"),
    ],
)
def test_what_is_no_stage_is_refused(entries, message):
    with pytest.raises(InputError) as refused:
        read_stages(entries, 40)
    assert str(refused.value).startswith("stages: ") and message in str(refused.value)
