"""P5-SemID: codes from the categories that item texts name (Hua et al. 2023, "How to Index Item IDs").

An item's codes are its categories, the widest first. Categories are what stands in the text between the title and
the next sentence, separated by commas, as the readers write them. Lists that are flat (Yelp, MovieLens) have no order
to go by, so the more frequent category counts as the wider one. Where each item names its whole path in a tree, no
category is rarer than one below it, so the order of the tree is the same.
"""

import re
from collections import Counter

import numpy as np
import polars as pl

from align3gr.data.schema import TEXT, TITLE
from align3gr.errors import InputError

_YEAR = re.compile(r" \(\d{4}\)$")  # behind MovieLens titles, not in the texts


def category_codes(items: pl.DataFrame, levels: int) -> np.ndarray:
    """Codes of the items' widest categories; items of the same ones share them.

    A code stands for one category wherever it occurs at its level, the most frequent one first; the last code of a
    level is for items without a category there.

    Args:
        items: title and text.
        levels: categories that count.

    Returns:
        Shape: `(items, levels)` int64.

    Raises:
        InputError: `levels` is no positive number, or no text names a category.
    """
    if levels < 1:
        raise InputError(f"category_levels: got {levels}, expected 1 or more")
    named = [item_categories(title, text) for title, text in items.select(TITLE, TEXT).iter_rows()]
    counts = Counter(name for names in named for name in names)
    if not counts:
        raise InputError("codes: no item text names categories behind its title; take codes: clusters or trained")
    paths = [sorted(names, key=lambda name: -counts[name])[:levels] for names in named]
    codes = np.empty((len(paths), min(levels, max(map(len, paths)))), dtype=np.int64)
    for level in range(codes.shape[1]):
        at_level = Counter(path[level] for path in paths if len(path) > level)
        code = {name: number for number, (name, _) in enumerate(at_level.most_common())}
        codes[:, level] = [code[path[level]] if len(path) > level else len(code) for path in paths]
    return codes


def item_categories(title: str, text: str) -> list[str]:
    """The distinct categories of an item, in the order of its text.

    Args:
        title: of the item.
        text: of the item, with its categories in it.

    Example:
        >>> item_categories("Sal's Pizza", "Sal's Pizza. Italian, Pizza, Italian. Phoenix")
        ['Italian', 'Pizza']
    """
    start = f"{_YEAR.sub('', title)}. "
    behind = text.removeprefix(start) if text.startswith(start) else text.partition(". ")[2]
    names = (name.strip() for name in behind.partition(". ")[0].removesuffix(".").split(","))
    return list(dict.fromkeys(name for name in names if name))
