"""What the texts of some items have in common, in words."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

# A letter first: no numbers. Hyphens and apostrophes inside.
_WORD = re.compile(r"[^\W\d_][\w'-]+[^\W_]")
_LEAST_SHARE = 0.5  # of the items that share a word
_LEAST_LIFT = 2.0  # how much more often the word occurs than in the whole catalogue
_MOST_ITEMS = 500  # read for one prefix; a share is known well enough from these


class CommonWords:
    """Finds words that most items of a group share and that other items seldom have.

    Args:
        texts: one text an item.
    """

    def __init__(self, texts: Sequence[str]):
        self._texts = texts
        self._frequency = Counter(word for text in texts for word in _words(text))

    def of(self, items: np.ndarray, most: int = 3) -> tuple[str, ...]:
        """Up to `most` words of the items at these rows, by share x log(lift); none for fewer than two items.

        A word counts once an item, is shared by half of the items or more, and stands there at least twice as often
        as in the catalogue.
        """
        rows = items[:_MOST_ITEMS].tolist()
        if len(rows) < 2:
            return ()
        counts = Counter(word for row in rows for word in _words(self._texts[row]))
        value = {}
        for word, count in counts.items():
            share = count / len(rows)
            lift = share / (self._frequency[word] / len(self._texts))
            if share >= _LEAST_SHARE and lift >= _LEAST_LIFT:
                value[word] = share * math.log(lift)
        return tuple(sorted(value, key=lambda word: (-value[word], word))[:most])


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - ENGLISH_STOP_WORDS
