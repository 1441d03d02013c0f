"""Tokens of the Hub are left out of whatever is written down or shown."""

import re
from collections.abc import Sequence

MASK = "***"
_TOKEN = re.compile(r"\bhf_\w+")
_OPTION = "--hub_token"
_SHORTEST = len("--hub_t")  # as much of the option as means no other one


def without_tokens(text: str) -> str:
    """A text without anything that has the form of a token.

    >>> without_tokens("--hub_tokn hf_abcDEF123 is unknown")
    '--hub_tokn *** is unknown'
    """
    return _TOKEN.sub(MASK, text)


def words_without_tokens(words: Sequence[str]) -> list[str]:
    """Words of a command line without tokens; what follows `--hub_token` is one, however the option is spelt.

    >>> words_without_tokens(["--lr", "1", "--hub-token", "secret", "--hub_tok=secret", "hf_abcDEF123"])
    ['--lr', '1', '--hub-token', '***', '--hub_tok=***', '***']
    """
    shown: list[str] = []
    before = ""
    for word in words:
        name, equals, _ = word.partition("=")
        if _means_the_token(before):
            shown.append(MASK)
        elif equals and _means_the_token(name):
            shown.append(f"{name}={MASK}")
        else:
            shown.append(without_tokens(word))
        before = word
    return shown


def _means_the_token(word: str) -> bool:
    """Whether argparse takes a word for the option: dashes and beginnings that no other option has count, too."""
    return len(word) >= _SHORTEST and _OPTION.startswith(word.replace("-", "_").replace("__", "--", 1))
