"""Tasks and templates to rows: `{input_ids, labels}`, with the loss on the response alone."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from align3gr.errors import InputError
from align3gr.scid.template import Template, TextTokenizer, template_fields
from align3gr.sft.objectives import IGNORE
from align3gr.sft.tasks import TASKS, Example, SequentialItemPrediction, Task, TaskData

logger = logging.getLogger(__name__)

_SCID_FIELDS = {"item", "user", "history"}
_FEATURES = Features({"input_ids": List(Value("int64")), "labels": List(Value("int64"))})


class TaskTemplate(NamedTuple):
    """A prompt and its response."""

    prompt: Template
    response: Template

    @property
    def required(self) -> frozenset[str]:
        return self.prompt.required | self.response.required


class TaskTemplates:
    """The templates of all tasks, read from YAML.

    Args:
        source: "natural" (for pretrained language models), "compact" (for small ones trained from scratch), or the
            path of a YAML file: for each task a list of `{prompt, response}`.

    Raises:
        InputError: the file cannot be read, names an unknown task or field, or a template is malformed.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._texts = read_templates(source)

    @property
    def prompt(self) -> str:
        """The template of the prompt that all stages share: the first one of sequential item prediction."""
        return self._texts[SequentialItemPrediction.name][0]["prompt"]

    def of(self, task: type[Task], tokenizer: PreTrainedTokenizerBase) -> list[TaskTemplate]:
        """The templates of one task."""
        texts = TextTokenizer(tokenizer)
        blocks = self._texts.get(task.name, [])
        if not blocks:
            raise InputError(f"templates: {self.source} has none for task {task.name!r}")
        return [TaskTemplate(Template(block["prompt"], texts), Template(block["response"], texts)) for block in blocks]


def read_templates(source: str) -> dict[str, list[dict[str, str]]]:
    """The templates of a YAML file as texts, checked; see [`TaskTemplates`]."""
    built_in = files("align3gr.sft") / "templates" / f"{source}.yaml"
    path: Any = built_in if built_in.is_file() else Path(source)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f'templates: got {source!r}, expected "natural", "compact" or a YAML file') from error
    except yaml.YAMLError as error:
        raise InputError(f"templates: {source} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or SequentialItemPrediction.name not in content:
        raise InputError(f"templates: {source} has no block 'sequential', whose first prompt all stages share")
    tasks = {task.name: task for task in TASKS}
    for name, blocks in content.items():
        if name not in tasks:
            raise InputError(f"templates: {source} has task {name!r}, expected one of {', '.join(tasks)}")
        for block in blocks if isinstance(blocks, list) and blocks else [None]:
            if not isinstance(block, dict) or set(block) != {"prompt", "response"}:
                raise InputError(f"templates: {source}, {name}: expected a list of blocks of prompt and response")
            _check_fields(source, tasks[name], block)
    return content


def _check_fields(source: str, task: type[Task], block: Mapping[str, str]) -> None:
    for part in ("prompt", "response"):
        if not isinstance(block[part], str):
            raise InputError(
                f"templates: {source}, {task.name}: {part} is {block[part]!r}, expected a text; put it in quotes"
            )
        unknown = template_fields(block[part]) - task.fields
        if unknown:
            raise InputError(
                f"templates: {source}, {task.name}: {block[part]!r} has field {min(unknown)!r}, expected some of "
                f"{', '.join(sorted(task.fields))}"
            )


def parse_tasks(names: Sequence[str]) -> dict[type[Task], float]:
    """Tasks and weights from words such as "sequential" or "asymmetric=0.5".

    Args:
        names: the words.

    Raises:
        InputError: a task is unknown or stands there twice, a weight is no positive number, or there is none.
    """
    known = {task.name: task for task in TASKS}
    weights: dict[type[Task], float] = {}
    for word in names:
        name, _, weight = str(word).partition("=")
        if name not in known:
            raise InputError(
                f"tasks: {name!r} is unknown; choose from {', '.join(known)}, each with =WEIGHT if wanted"
            )
        if known[name] in weights:
            raise InputError(f"tasks: {name!r} stands there twice; give it a weight instead")
        try:
            weights[known[name]] = float(weight or 1)
        except ValueError as error:
            raise InputError(f"tasks: {word!r} has weight {weight!r}, expected a number") from error
        if not 0 < weights[known[name]] < np.inf:
            raise InputError(f"tasks: {word!r} has weight {weight}, expected a positive number; leave the task out")
    if not weights:
        raise InputError("tasks: none given; name at least one")
    return weights


def task_rows(
    data: TaskData,
    task: type[Task],
    templates: Sequence[TaskTemplate],
    tokenizer: PreTrainedTokenizerBase,
    weight: float,
    max_length: int,
    rng: np.random.Generator,
) -> Dataset:
    """Rows `{input_ids, labels}` of one task; each example takes one of the templates that it has values for.

    An answer in words ends with the end-of-sequence token; one of SCIDs has its length from the catalogue. A row
    longer than `max_length` gets half of its history, again and again; one that is still too long is left out.

    Args:
        data: the train split.
        task: the task.
        templates: its templates.
        tokenizer: gives the tokens at both ends.
        weight: passes over the task: 0.5 is half of the examples of a pass, 2 two passes.
        max_length: most tokens of a row.
        rng: draws examples and templates.

    Raises:
        InputError: not one row could be made.
    """
    counts: Counter[str] = Counter()
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for example in _passes(data, task, weight, rng):
        usable = [
            template for template in templates if all(example.get(name) is not None for name in template.required)
        ]
        if not usable:
            counts["without a template"] += 1
            continue
        template = usable[int(rng.integers(len(usable)))]
        end = [] if template.response.fields <= _SCID_FIELDS else [tokenizer.eos_token_id]
        response = template.response.render(example, continued=True) + end
        prompt = bos + _fitting_prompt(template.prompt, example, data, max_length - len(response) - len(bos))
        if len(prompt) + len(response) > max_length:
            counts["too long"] += 1
            continue
        rows["input_ids"].append(prompt + response)
        rows["labels"].append([IGNORE] * len(prompt) + response)
    made = len(rows["input_ids"])
    logger.info("task %s: %d rows%s", task.name, made, "".join(f", {count} {why}" for why, count in counts.items()))
    if not made:
        left_out = ", ".join(f"{count} {why}" for why, count in counts.items()) or "the data has nothing for it"
        raise InputError(f"tasks: {task.name!r} has no rows ({left_out}); leave the task out, or see its templates")
    return Dataset.from_dict(rows, features=_FEATURES)


def _passes(data: TaskData, task: type[Task], weight: float, rng: np.random.Generator) -> Iterator[Example]:
    for _ in range(int(weight)):
        yield from task.examples(data, rng)
    share = weight - int(weight)
    if share:
        yield from (example for example in task.examples(data, rng) if rng.random() < share)


def _fitting_prompt(template: Template, example: Example, data: TaskData, room: int) -> list[int]:
    prompt = template.render(example)
    items = np.asarray(example.get("history_items") or [], dtype=np.int64)
    kept = len(items)
    while len(prompt) > room and kept > 1:
        kept //= 2
        shorter = example | data.history(items[-kept:])
        if any(shorter[name] is None for name in template.required):
            break  # none of the items that are left has a title
        prompt = template.render(shorter)
    return prompt
