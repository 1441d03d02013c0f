"""Stages of a curriculum, and how a person writes them down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from align3gr.errors import InputError


@dataclass(frozen=True)
class CurriculumStage:
    """One stage: its data and what differs from the common arguments.

    Attributes:
        name: Name in folders and logs.
        difficulty: Kind of preference data, for `make_rows`.
        num_prompts: Amount of preference data, for `make_rows`.
        learning_rate: In place of the common one.
        num_train_epochs: In place of the common one.
        beta: In place of the common one.
    """

    name: str
    difficulty: str
    num_prompts: int
    learning_rate: float | None = None
    num_train_epochs: float | None = None
    beta: float | None = None


# What may stand behind a stage's name, and the type of its value.
_OPTIONS: dict[str, type] = {
    "difficulty": str,
    "num_prompts": int,
    "learning_rate": float,
    "num_train_epochs": float,
    "beta": float,
}


def read_stages(entries: Sequence[Any], num_prompts: int) -> list[CurriculumStage]:
    """Stages from a list of names, each with options of its own behind it where it needs some.

    A name is also the difficulty, unless the options say otherwise. On a command line an option is written as in a
    file: `--stages easy 'hard: {beta: 0.2}'`.

    Args:
        entries: Names, or dictionaries of one name and its options.
        num_prompts: Amount of data of the stages that do not say.

    Raises:
        InputError: An entry is no name with options, an option is unknown or its value is of another type.

    >>> [stage.difficulty for stage in read_stages(["easy", {"again": {"difficulty": "easy", "beta": 0.2}}], 100)]
    ['easy', 'easy']
    """
    stages = [_stage(entry, num_prompts) for entry in entries]
    check_names(stages)
    return stages


def check_names(stages: Sequence[CurriculumStage]) -> None:
    """Refuses stages that a record could not tell apart.

    Raises:
        InputError: There is none, or two have one name.
    """
    names = [stage.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise InputError(f"stages: expected at least one, each with a name of its own; got {names}")


def _stage(entry: Any, num_prompts: int) -> CurriculumStage:
    try:
        content = yaml.safe_load(entry) if isinstance(entry, str) else entry
    except yaml.YAMLError:
        content = None
    if isinstance(content, str):
        content = {content: {}}
    options = next(iter(content.values())) if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(options, dict):
        raise InputError(f"stages: got {entry!r}, expected a name such as easy, or 'easy: {{learning_rate: 5.0e-5}}'")
    name = str(next(iter(content)))
    if not name or set(name) & set("/\\"):
        raise InputError(f"stages: {name!r} is the name of a folder, too; leave out slashes")
    values = {option: _value(name, option, value) for option, value in options.items()}
    return CurriculumStage(**({"name": name, "difficulty": name, "num_prompts": num_prompts} | values))


def _value(stage: str, option: str, value: Any) -> Any:
    if option not in _OPTIONS:
        raise InputError(f"stages: {stage} has the unknown option {option!r}; choose from {', '.join(_OPTIONS)}")
    wanted = _OPTIONS[option]
    if wanted is float and isinstance(value, str):  # YAML reads 5e-5, without a dot, as text
        value = _number(value)
    fits = isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
    if not fits or (wanted is not str and not 0 < value < float("inf")):
        expected = "text" if wanted is str else f"a positive {'number' if wanted is float else 'integer'}"
        raise InputError(f"stages: {stage} has {option}={value!r}, expected {expected}")
    return wanted(value)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
