"""Progress with the time left: a bar where a person watches, a line of the log every half minute elsewhere.

A bar in a pipe or a file is thousands of pieces of one line; a job that runs for hours without a word looks dead.
"""

import logging
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm as tqdm_class
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
_make_bar = tqdm_class.__init__


def is_watched() -> bool:
    """Whether a person sees bars: on a terminal, and in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def silence_bars() -> None:
    """No bar of any library from here on, for processes that nobody watches.

    The variable TQDM_DISABLE would come too late, tqdm reads it when it is imported, and leaves the bars that are
    asked for by name, such as TRL's.
    """

    def make_silent(self: Any, *args: Any, **options: Any) -> None:
        _make_bar(self, *args, **(options | {"disable": True}))

    tqdm_class.__init__ = make_silent


class ProgressBar:
    """How far a job of known size is, and how long it will still take.

    Args:
        total: size of the job.
        what: name of the job.
        unit: what it is counted in, in the singular.
        shown: False says nothing at all, as all processes but the first of a launch.
        done: what was there before; it does not count for the speed.

    Example:
        >>> with ProgressBar(2, "ranking", "user", shown=False) as bar:
        ...     bar.update(2)
        >>> bar.done
        2
    """

    def __init__(self, total: int, what: str, unit: str, shown: bool = True, done: int = 0) -> None:
        self.total, self.what, self.unit, self.shown, self.done = total, what, unit, shown, done
        self._before, self._started = done, time.monotonic()
        self._written = self._started
        self._bar = tqdm(
            total=total, initial=done, desc=what, unit=unit, disable=not (shown and is_watched()), leave=False
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def close(self) -> None:
        """Takes the bar away; leaving the `with` block does it."""
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """`count` more are done; more than there is counts as all."""
        count = min(count, self.total - self.done)
        self.done += count
        if not self._bar.disable:
            self._bar.update(count)
        elif self.shown and time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._written = time.monotonic()
            left = time_left(self._written - self._started, self.done - self._before, self.total - self.done)
            logger.info("%s: %s of %s %ss%s", self.what, f"{self.done:,}", f"{self.total:,}", self.unit, left)


def time_left(seconds: float, done: int, missing: int) -> str:
    """What a line says of the time left, from the time that the others took; nothing where none is done.

    >>> time_left(30.0, 10, 40)
    ', 02:00 left'
    """
    return f", {tqdm.format_interval(seconds / done * missing)} left" if done > 0 else ""
