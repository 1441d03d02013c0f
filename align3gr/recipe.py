"""What every recipe script does first and last: read its options, and end in one clear line when they are wrong."""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from align3gr.errors import InputError

# Options of `TrainingArguments` that leave the result as it is.
_NO_SETTINGS = {"output_dir", "run_name", "logging_dir", "report_to", "disable_tqdm", "logging_steps", "use_cpu"}
DATA_VARIABLE = "ALIGN3GR_DATA"
DEFAULT_DATA = "../shared/data"


def parse(option_types: Sequence[Any], arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Options from `--config file.yaml` and the command line, which wins, into the given dataclasses.

    Raises:
        InputError: the file cannot be read, an option is unknown, or a value is refused.
    """
    import torch
    from trl import TrlParser

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--config" in arguments[:-1]:
        _check_config(arguments[arguments.index("--config") + 1])
    parser = TrlParser(list(option_types))
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    if any(action.dest == "use_cpu" for action in parser._actions) and not torch.cuda.is_available():
        # bf16 without a GPU is refused unless the CPU was asked for.
        parser.set_defaults(use_cpu=True)
    try:
        return parser.parse_args_and_config(arguments, fail_with_unknown_args=True)
    except (ValueError, TypeError) as error:
        raise InputError(" ".join(str(error).split())) from error


def run_recipe(main: Callable[[], None]) -> None:
    """Runs a recipe; wrong input ends with one line and status 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "filelock", "fsspec", "urllib3", "accelerate", "DeepSpeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def expand(path: str) -> Path:
    """A path with `~` and variables filled in; `$ALIGN3GR_DATA` has a default."""
    os.environ.setdefault(DATA_VARIABLE, DEFAULT_DATA)
    return Path(os.path.expandvars(path)).expanduser()


def _check_config(name: str) -> None:
    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {name}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--config {name}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {name}: no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {name}: expected lines of the form 'option: value'")


def _refuse(message: str) -> None:
    raise InputError(f"{message}; see --help")


def training_settings(arguments: Any) -> dict[str, Any]:
    """What of a `TrainingArguments` differs from its defaults and changes the result: paths and reports do not."""
    values = arguments.to_dict()
    return {
        option.name: values[option.name]
        for option in dataclasses.fields(arguments)
        if option.name in values and option.name not in _NO_SETTINGS and values[option.name] != _default(option)
    }


def _default(option: dataclasses.Field) -> Any:
    return option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
