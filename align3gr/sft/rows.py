"""All rows of a fine-tuning run: the objective of sequential item prediction, and the other tasks beside it."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder
from align3gr.sft.mixture import TaskTemplates, task_rows
from align3gr.sft.objectives import every_item_rows, prefix_lm_rows, prefix_rows, tree_rows
from align3gr.sft.returns import with_returns
from align3gr.sft.tasks import SequentialItemPrediction, Task, TaskData

logger = logging.getLogger(__name__)

OBJECTIVES: dict[str, Callable[..., Dataset]] = {
    "every_item": every_item_rows,
    "prefix": prefix_rows,
    "tree": tree_rows,
    "prefix_lm": prefix_lm_rows,
}


def training_rows(
    data: TaskData,
    prompts: PromptBuilder,
    tokenizer: PreTrainedTokenizerBase,
    item_codes: np.ndarray,
    tasks: Mapping[type[Task], float],
    templates: TaskTemplates,
    objective: str = "every_item",
    rephrased: float = 0.0,
    returns: float = 0.0,
    shuffled: float = 0.0,
    max_length: int = 512,
    seed: int = 0,
) -> Dataset:
    """Rows `{input_ids, labels}` of all tasks, and `branch_starts`, `branch_seen` with the objective "tree".

    Args:
        data: the train split.
        prompts: the prompt of every stage.
        tokenizer: of the model.
        item_codes: `(items, levels)`.
        tasks: weights: passes over a task, see `align3gr.sft.tasks`. For sequential item prediction a pass is the
            objective over all train positions; fractions keep a random part of its rows.
        templates: of all tasks.
        objective: "every_item", "prefix", "tree" or "prefix_lm", see `align3gr.sft.objectives`. A pass of the last one
            is drawn anew.
        rephrased: passes over sequential item prediction with the other templates than that of `prompts`.
        returns: passes over the sequences with returns put in (see `align3gr.sft.returns`), with the same objective.
        shuffled: passes over the sequences in another random order each, with the same objective: what a user likes
            without what came when, so that few interactions are learnt by heart less soon.
        max_length: most tokens of a row of the other tasks.
        seed: draws rows and templates; a task's rows do not depend on which other tasks there are.

    Raises:
        InputError: the objective is unknown or does not go with the template, a number of passes is negative, or a
            task gives no rows.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"objective: got {objective!r}, expected one of {', '.join(OBJECTIVES)}")
    for name, passes in (("rephrased", rephrased), ("returns", returns), ("shuffled", shuffled)):
        if not 0 <= passes < math.inf:
            raise InputError(f"{name}: got {passes}, expected 0 or more passes")
    random = objective == "prefix_lm"

    def make(sequences: Sequence[np.ndarray], codes: Any, rng: np.random.Generator) -> Dataset:
        drawn = {"rng": rng} if random else {}
        return OBJECTIVES[objective](prompts, sequences, codes, item_codes, **drawn)

    parts = []
    for task, weight in tasks.items():
        rng = np.random.default_rng([seed, *task.name.encode()])
        if task is SequentialItemPrediction:
            for passes in _single_passes(weight) if random else (weight,):
                rows = make(data.sequences, data.user_codes, rng)
                logger.info("task %s: %d rows, objective %s", task.name, len(rows), objective)
                parts.append(_weighted(rows, passes, rng))
        else:
            drawn = templates.of(task, tokenizer)
            parts.append(task_rows(data, task, drawn, tokenizer, weight, max_length, rng))
    if rephrased:
        rng = np.random.default_rng([seed, 1])
        others = templates.of(SequentialItemPrediction, tokenizer)[1:]
        if not others:
            raise InputError(
                f"rephrased: {templates.source} has one template of sequential item prediction; set it to 0"
            )
        parts.append(task_rows(data, SequentialItemPrediction, others, tokenizer, rephrased, max_length, rng))
    # Items that were put in or moved are at no position of the split, so codes that depend on it are left out.
    codes = data.user_codes.full if data.user_codes is not None and data.user_codes.same_everywhere else None
    if returns:
        rng = np.random.default_rng([seed, 2])
        for passes in _single_passes(returns) if random else (returns,):
            again = make(with_returns(data.sequences, rng), codes, rng)
            parts.append(_weighted(again, passes, rng))
            logger.info("returns put in: %d rows", len(parts[-1]))
    if shuffled:
        rng = np.random.default_rng([seed, 3])
        for passes in _single_passes(shuffled):
            again = make([rng.permutation(sequence) for sequence in data.sequences], codes, rng)
            parts.append(_weighted(again, passes, rng))
            logger.info("in random order: %d rows", len(parts[-1]))
    rows = concatenate_datasets(parts)
    if not len(rows):
        raise InputError("train: no user has two train items, so there is nothing to predict")
    return rows


def _single_passes(passes: float) -> list[float]:
    """A number of passes as whole ones and a part of one.

    >>> _single_passes(2.5)
    [1.0, 1.0, 0.5]
    """
    return [min(1.0, passes - done) for done in range(math.ceil(passes))]


def _weighted(rows: Dataset, weight: float, rng: np.random.Generator) -> Dataset:
    """Whole passes, and a random part of one; of few rows at least one, for a weight that is not 0 asks for some."""
    part = rng.permutation(len(rows))[: max(round((weight - int(weight)) * len(rows)), weight < 1)]
    parts: list[Any] = [rows] * int(weight)
    if len(part):
        parts.append(rows.select(np.sort(part)))
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
