"""argparse as the command line wants it: errors in one line that suggest the right word, defaults shown."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from align3gr.errors import InputError
from align3gr.suggestions import did_you_mean


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises `InputError`, names near options, and says what the defaults are."""

    _words: Sequence[str] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        # An abbreviation of an option that is taken out of the words before others see them would stay in.
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As in argparse; the default stands behind the help unless that speaks of it."""
        default, text = options.get("default"), options.get("help") or ""
        if default not in (None, False, argparse.SUPPRESS) and text and "default" not in text:
            options["help"] = f"{text} (default: {default})"
        return super().add_argument(*names, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong; where an option is misspelt this may be why."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        given = [word.split("=")[0] for word in self._words if word.startswith("--") and word != "--"]
        wrong = next((word for word in given if word not in known), None)
        hint = "" if wrong is None else did_you_mean(wrong, known)
        if wrong is not None and hint and wrong not in message:
            hint = f"; there is no {wrong}{hint}"
        raise InputError(f"{self.prog}: {message}{hint or f'; see {self.prog} --help'}")
