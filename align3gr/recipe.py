"""What every recipe script does first and last: read its options, and end in one clear line when they are wrong."""

import argparse
import dataclasses
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any

import yaml

from align3gr.errors import InputError
from align3gr.masking import without_tokens
from align3gr.processes import leave
from align3gr.progress import is_watched, silence_bars
from align3gr.recipe_help import describe
from align3gr.suggestions import did_you_mean

# Options of `TrainingArguments` that leave the result as it is.
_NO_SETTINGS = {"output_dir", "run_name", "logging_dir", "report_to", "disable_tqdm", "logging_steps", "use_cpu"}
_NO_SETTINGS |= {"project", "trackio_space_id", "trackio_bucket_id"}
DATA_VARIABLE = "ALIGN3GR_DATA"
DEFAULT_DATA = "../shared/data"


def parse(option_types: Sequence[Any], arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Options from `--config file.yaml` and the command line, which wins, into the given dataclasses.

    Raises:
        InputError: the file cannot be read, an option is unknown, or a value is refused.
    """
    import torch
    from trl import TrlParser

    arguments = split_assignments(sys.argv[1:] if arguments is None else arguments)
    if "--config" in arguments:
        at = arguments.index("--config") + 1
        if at == len(arguments):
            raise InputError("--config: needs the path of a YAML file")
        read_config(arguments[at])
    parser = TrlParser(list(option_types))
    describe(parser, option_types)

    def refuse(message: str) -> None:
        hint = _suggestion(parser, arguments, message) or "; see --help"
        raise InputError(without_tokens(message) + hint)

    parser.error = refuse  # type: ignore[method-assign, assignment]
    if any(action.dest == "use_cpu" for action in parser._actions):  # `TrainingArguments`
        # bf16 without a GPU is refused unless the CPU was asked for; a bar is for those who watch.
        parser.set_defaults(use_cpu=not torch.cuda.is_available(), disable_tqdm=not is_watched())
    try:
        *parsed, in_file, in_words = parser.parse_args_and_config(
            arguments, return_remaining_strings=True, separate_remaining_strings=True
        )
    except InputError:  # is a ValueError
        raise
    except (ValueError, TypeError) as error:
        message = " ".join(str(error).split())
        raise InputError(without_tokens(message) + _suggestion(parser, arguments, message)) from error
    for where, unknown in (("command line", in_words), ("config file", in_file)):
        if unknown:
            refuse(f"unknown options in the {where}: {' '.join(unknown)}")
    for options in parsed:
        _check_values(options)
        if reported := getattr(options, "report_to", None):
            from align3gr.tracking import check_report_to

            check_report_to(reported)
    return tuple(parsed)


def split_assignments(arguments: Sequence[str]) -> list[str]:
    """`--option=value` as two words, as the rest of the options are read."""
    words: list[str] = []
    for word in arguments:
        words += word.split("=", 1) if word.startswith("--") else [word]
    return words


def _check_values(options: Any) -> None:
    """argparse checks choices and lists on the command line only, not what a file says."""
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        choices = option.metadata.get("choices")
        if choices and value not in choices and value != _default(option):
            raise InputError(f"{option.name}: got '{value}', choose from {', '.join(map(str, choices))}")
        if isinstance(_default(option), list) and not isinstance(value, list):
            raise InputError(f"{option.name}: got {value!r}, expected a list such as {_default(option)}")


def run_recipe(main: Callable[[], None]) -> None:
    """Runs a recipe, with what it logs for a person."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "httpx2", "filelock", "fsspec", "urllib3", "accelerate", "DeepSpeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # TRL 1.16 uses the old names itself; to be removed when it uses transformers' new ones.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)
    if not is_watched():
        silence_bars()
    with one_line_ends():
        main()
        leave()


@contextmanager
def one_line_ends() -> Iterator[None]:
    """Wrong input, a full disk and Ctrl-C end the process with one line and a status; a defect keeps its traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (full := _full_disk(error)) is None:
            raise
        print(f"error: {full}; free some space and start the same command again", file=sys.stderr)
        sys.exit(2)


def _full_disk(error: BaseException | None) -> str | None:
    """What a library says where it could not write for want of space, whatever it made of the system's error."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (ENOSPC, EFBIG, EDQUOT) or any(os.strerror(no) in str(error) for no in (ENOSPC, EFBIG, EDQUOT)):
            return " ".join(str(error).split())[:300]
        error = error.__cause__ or error.__context__
    return None


def expand(path: str) -> Path:
    """A path with `~` and variables filled in; `$ALIGN3GR_DATA` has a default."""
    os.environ.setdefault(DATA_VARIABLE, DEFAULT_DATA)
    return Path(os.path.expandvars(path)).expanduser()


def read_config(name: str | Path) -> dict[str, Any]:
    """Options of a YAML file.

    Raises:
        InputError: it cannot be read, or holds no options.
    """
    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {name}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--config {name}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except yaml.YAMLError as error:
        reason = without_tokens(" ".join(str(error).split()))
        raise InputError(f"--config {name}: no valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {name}: expected lines of the form 'option: value'")
    return content


def _suggestion(parser: argparse.ArgumentParser, arguments: Sequence[str], message: str) -> str:
    """What a word that is no option may have meant; those of a file stand in the message."""
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    given = [word for word in (*arguments, *re.findall(r"--[\w-]+", message)) if word.startswith("--")]
    wrong = next((word for word in given if not any(name.startswith(word) for name in (*known, "--config"))), None)
    near = did_you_mean(wrong, known) if wrong else ""
    return f"; there is no {wrong}{near}" if near else ""


def training_settings(arguments: Any) -> dict[str, Any]:
    """What of a `TrainingArguments` differs from its defaults and changes the result: paths and reports do not."""
    option = next(option for option in dataclasses.fields(arguments) if option.name == "output_dir")
    if arguments.output_dir not in (_default(option), "trainer_output"):
        raise InputError("output_dir: does not apply, everything goes below run_dir; leave it out")
    values = arguments.to_dict()
    return {
        option.name: values[option.name]
        for option in dataclasses.fields(arguments)
        if option.name in values and option.name not in _NO_SETTINGS and values[option.name] != _default(option)
    }


def _default(option: dataclasses.Field) -> Any:
    return option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
