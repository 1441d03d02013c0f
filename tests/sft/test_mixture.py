import re
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import yaml

from align3gr.errors import InputError
from align3gr.scid import PromptBuilder
from align3gr.sft import TASKS, TaskTemplates, parse_tasks, task_rows
from align3gr.sft.mixture import read_templates
from align3gr.sft.tasks import IntentionItemPrediction, ItemTextAlignment, SequentialItemPrediction

from .conftest import ITEM_CODES, SEQUENCES, USER_CODES


def rows_of(data, task, templates, tokenizer, weight=1.0, max_length=512, seed=0):
    rng = np.random.default_rng(seed)
    return task_rows(data, task, templates.of(task, tokenizer), tokenizer, weight, max_length, rng)


def texts_of(rows, tokenizer):
    """Prompt and response of each row, decoded."""
    for row in rows:
        start = next(place for place, label in enumerate(row["labels"]) if label != -100)
        assert row["labels"][start:] == row["input_ids"][start:] and set(row["labels"][:start]) == {-100}
        yield tokenizer.decode(row["input_ids"][:start]), tokenizer.decode(row["input_ids"][start:])


def as_pattern(template: str) -> str:
    """What a rendered template looks like, optional parts included."""
    scid = {"user": r"<u0_\d>", "item": r"<i0_\d><i1_\d>", "history": r"(?:<i0_\d><i1_\d>)+"}
    pieces = re.split(r"(\{[a-z_]+\}|[\[\]])", template)
    brackets = {"[": "(?:", "]": ")?"}
    return "".join(
        scid.get(piece[1:-1], ".+") if piece.startswith("{") else brackets.get(piece, re.escape(piece))
        for piece in pieces
    )


@pytest.mark.parametrize("source", ["natural", "compact"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_template_renders_and_comes_back(task_data, scid_tokenizer, source, task):
    templates = TaskTemplates(source)
    for block, template in zip(read_templates(source)[task.name], templates.of(task, scid_tokenizer), strict=True):
        rows = task_rows(task_data, task, [template], scid_tokenizer, 2, 512, np.random.default_rng(0))
        in_words = not re.search(r"\{(item|user)\}", block["response"])
        for prompt, response in texts_of(rows, scid_tokenizer):
            assert re.fullmatch("<s>" + as_pattern(block["prompt"]), prompt), prompt
            assert re.fullmatch(as_pattern(block["response"]) + ("</s>" if in_words else ""), response), response
            assert not re.search(r" <[iu]\d_\d+>", prompt + response)  # a blank in front of an SCID costs a token
            whole = scid_tokenizer(prompt.removeprefix("<s>"), add_special_tokens=False)["input_ids"]
            assert scid_tokenizer.decode(whole) == prompt.removeprefix("<s>")


def test_the_shared_prompt_is_the_one_of_the_first_template(task_data, scid_tokenizer):
    templates = TaskTemplates("natural")
    prompts = PromptBuilder(scid_tokenizer, max_history=3, template=templates.prompt)
    first = templates.of(SequentialItemPrediction, scid_tokenizer)[:1]
    rows = task_rows(task_data, SequentialItemPrediction, first, scid_tokenizer, 30, 512, np.random.default_rng(0))
    allowed = {
        tuple(
            prompts.prompt(USER_CODES[user], ITEM_CODES[sequence[:position]])
            + prompts.completion(ITEM_CODES[sequence[position]])
        )
        for user, sequence in enumerate(SEQUENCES)
        for position in range(1, len(sequence))
    }
    assert {tuple(ids) for ids in rows["input_ids"]} == allowed  # 4 positions, all drawn in 30 passes


def test_without_user_codes_the_optional_parts_are_gone(task_data, scid_tokenizer):
    task_data.user_codes = None
    for task in TASKS[:5]:
        for prompt, response in texts_of(
            rows_of(task_data, task, TaskTemplates("natural"), scid_tokenizer), scid_tokenizer
        ):
            assert "<u" not in prompt + response and "ser" not in prompt
    with pytest.raises(InputError, match="'user_profile' has no rows"):
        rows_of(task_data, TASKS[5], TaskTemplates("natural"), scid_tokenizer)


def test_a_pass_is_one_example_each_and_a_weight_counts_passes(task_data, scid_tokenizer):
    templates = TaskTemplates("compact")
    assert len(rows_of(task_data, ItemTextAlignment, templates, scid_tokenizer)) == 8
    assert len(rows_of(task_data, ItemTextAlignment, templates, scid_tokenizer, weight=3)) == 24
    half = [len(rows_of(task_data, ItemTextAlignment, templates, scid_tokenizer, 10.5, seed=s)) for s in range(20)]
    assert 80 < np.mean(half) < 88 and len(set(half)) > 1
    assert len(rows_of(task_data, TASKS[5], templates, scid_tokenizer)) == 2  # user b has no profile


def test_templates_are_drawn_evenly_among_those_with_values(task_data, scid_tokenizer):
    rows = rows_of(task_data, ItemTextAlignment, TaskTemplates("compact"), scid_tokenizer, weight=100)
    pairs = Counter(
        (response.startswith("<i"), "title" in prompt) for prompt, response in texts_of(rows, scid_tokenizer)
    )
    # Item 7 has no title, so that its examples use the two templates of texts.
    assert sum(pairs.values()) == 800
    for (_, by_title), count in pairs.items():
        assert abs(count - (175 if by_title else 225)) < 45


def test_intentions_are_reviews_where_there_are_some(task_data, scid_tokenizer):
    task_data.reviews = {(0, position): "soft and warm" for position in range(4)}
    rows = list(
        texts_of(rows_of(task_data, IntentionItemPrediction, TaskTemplates("compact"), scid_tokenizer), scid_tokenizer)
    )
    assert len(rows) == 2
    by_user = {re.search(r"<u0_(\d)>", prompt).group(1): prompt for prompt, _ in rows}
    assert "want:soft and warm=" in by_user["0"] and "want:shoes=" in by_user["1"]


def test_rows_that_do_not_fit_get_a_shorter_history_or_are_left_out(task_data, scid_tokenizer):
    templates = TaskTemplates("compact")
    full = rows_of(task_data, SequentialItemPrediction, templates, scid_tokenizer, weight=50)
    assert set(map(len, full["input_ids"])) == {1 + 1 + items * 2 + 2 for items in (1, 2, 3)}
    short = rows_of(task_data, SequentialItemPrediction, templates, scid_tokenizer, weight=50, max_length=8)
    assert len(short) == len(full) and set(map(len, short["input_ids"])) == {6, 8}  # of three items one is left
    with pytest.raises(InputError, match="100 too long"):
        rows_of(task_data, SequentialItemPrediction, templates, scid_tokenizer, weight=50, max_length=5)


def test_a_shorter_history_has_the_titles_of_its_items(task_data, scid_tokenizer, tmp_path):
    task_data.titles[0], task_data.titles[1] = "A long title; with a separator", "Hats; Blue"
    task_data.sequences = [np.array([0, 2, 0, 1, 3])]
    task_data.max_history = 4
    task_data.positions = lambda rng: iter([(0, 4)])
    templates = yaml.safe_load((files("align3gr.sft") / "templates" / "natural.yaml").read_text())
    templates["asymmetric"] = [{"prompt": "{history}|{history_titles}|", "response": "{item}"}]
    (tmp_path / "templates.yaml").write_text(yaml.safe_dump(templates))

    def prompt(max_length: int) -> str:
        own = TaskTemplates(str(tmp_path / "templates.yaml"))
        rows = rows_of(task_data, TASKS[1], own, scid_tokenizer, max_length=max_length)
        return next(texts_of(rows, scid_tokenizer))[0].removeprefix("<s>")

    longest = len(scid_tokenizer(prompt(512))["input_ids"])
    assert prompt(512).endswith("|A long title; with a separator; Hat; A long title; with a separator; Hats; Blue|")
    halves = "<i0_0><i1_0><i0_0><i1_1>|A long title; with a separator; Hats; Blue|"
    assert prompt(longest - 2) == halves
    assert prompt(len(scid_tokenizer(halves)["input_ids"]) - 2) == "<i0_0><i1_1>|Hats; Blue|"
    task_data.titles[1] = ""  # what is left has no title, and the template wants one
    with pytest.raises(InputError, match="1 too long"):
        prompt(12)


def test_same_seed_same_rows(task_data, scid_tokenizer):
    templates = TaskTemplates("natural")
    first, second, other = (
        rows_of(task_data, TASKS[1], templates, scid_tokenizer, 5, seed=seed)["input_ids"] for seed in (0, 0, 1)
    )
    assert list(first) == list(second) != list(other)


def test_tasks_and_weights_are_parsed():
    parsed = parse_tasks(["sequential", "asymmetric=0.5"])
    assert {task.name: weight for task, weight in parsed.items()} == {"sequential": 1.0, "asymmetric": 0.5}
    for words, message in [
        (["sequentiel"], "unknown"),
        (["sequential", "sequential=2"], "twice"),
        (["sequential=much"], "expected a number"),
        (["sequential=0"], "positive"),
        ([], "none given"),
    ]:
        with pytest.raises(InputError, match=message):
            parse_tasks(words)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"item_text": [{"prompt": "{item}", "response": "{title}"}]}, "no block 'sequential'"),
        ({"sequential": [{"prompt": "{history}", "response": "{title}"}]}, "field 'title'"),
        ({"sequential": [{"prompt": "{history}"}]}, "prompt and response"),
        ({"sequential": [{"prompt": {"history": None}, "response": "{item}"}]}, "prompt is .*put it in quotes"),
        ({"sequential": []}, "prompt and response"),
        ({"sequential": [{"prompt": "{history}", "response": "{item}"}], "other": []}, "has task 'other'"),
    ],
)
def test_templates_of_ones_own_are_checked(tmp_path, content, message):
    path = tmp_path / "templates.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        TaskTemplates(str(path))
    with pytest.raises(InputError, match='"natural", "compact" or a YAML file'):
        TaskTemplates(str(tmp_path / "missing.yaml"))
