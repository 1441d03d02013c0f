"""What a person may have meant by a word that is not known."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A piece of an error message, or nothing where no known word is near.

    >>> did_you_mean("serv", ["serve", "sft"])
    "; did you mean 'serve'?"
    >>> did_you_mean("cook", ["serve", "sft"])
    ''
    """
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
