"""What `--help` of a recipe says beyond what TRL's parser makes of dataclasses."""

import argparse
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.+)")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says what the defaults are, but of no option that it is None, and of no `--no_x` what `--x` is by default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.nargs == 0 else super()._get_help_string(action)


def describe(parser: argparse.ArgumentParser, option_types: Sequence[type]) -> None:
    """Gives a recipe's parser its name, what the recipe does, the option `--config`, and a text for every option.

    Args:
        parser: of the running script.
        option_types: the dataclasses that it reads; options without a help of their own have the text of `Args:`.
    """
    parser.prog = f"align3gr {Path(sys.argv[0]).stem}"
    parser.usage = f"{parser.prog} [--config FILE] [options]"
    parser.description = (sys.modules["__main__"].__doc__ or "").split("\n\n")[0]
    parser.formatter_class = _Formatter
    text = "YAML file with options by their names; those of the command line win."
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help=text)
    texts = {name: text for option_type in option_types for name, text in documented_options(option_type).items()}
    for action in parser._actions:
        if not action.help:
            action.help = texts.get(action.dest, "").replace("%", "%%")


def documented_options(option_type: type[Any]) -> dict[str, str]:
    """The texts of a class's `Args:` by name; names that share a line share its text.

    >>> class Shape:
    ...     '''Of a net.
    ...
    ...     Args:
    ...         width, height: of its
    ...             layers.
    ...         dropout: share.
    ...     '''
    >>> documented_options(Shape)
    {'width': 'of its layers.', 'height': 'of its layers.', 'dropout': 'share.'}
    """
    _, _, section = (inspect.getdoc(option_type) or "").partition("\nArgs:\n")
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in section.split("\n\n")[0].splitlines():
        if entry := _ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            texts |= dict.fromkeys(names, entry[2])
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts
