"""Where the SCID tokens stand in a tokenizer: the bridge between codes and token ids.

It reads token strings, not a tokenizer class, because `AutoTokenizer` gives some architectures (Qwen2, Mistral, ...)
a class of its own. Everything that turns codes into ids or back goes through here.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from align3gr.errors import InputError

ITEM_FAMILY = "i"
USER_FAMILY = "u"
# In the config of a model: what its log-probabilities of SCIDs are normalised over, the vocabulary if it is missing.
NORMALIZER_FIELD = "scid_normalizer"
# No leading zeros: <i0_07> is not another spelling of <i0_7>.
_TOKEN = re.compile(r"<([iu])(0|[1-9][0-9]*)_(0|[1-9][0-9]*)>")


def scid_token(family: str, level: int, code: int) -> str:
    """The token of one code, such as `<i0_12>` for an item or `<u2_7>` for a user."""
    return f"<{family}{level}_{code}>"


def scid_tokens(family: str, codebook_sizes: Sequence[int]) -> list[str]:
    """All tokens of one family, level by level."""
    return [scid_token(family, level, code) for level, size in enumerate(codebook_sizes) for code in range(size)]


def find_scid_tokens(tokens: Iterable[str]) -> list[str]:
    """Those of the given tokens that are SCID tokens."""
    return [token for token in tokens if _TOKEN.fullmatch(token)]


@dataclass(frozen=True)
class SCIDVocabulary:
    """Token ids of the item and user SCID tokens.

    Attributes:
        item_tokens: `(levels, codebook_size)` int64, the token id of each item code; -1 where a level is smaller.
        user_tokens: the same for users; shape `(0, 0)` where the tokenizer has no user tokens.
    """

    item_tokens: np.ndarray
    user_tokens: np.ndarray

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "SCIDVocabulary":
        """Finds the SCID tokens among the added tokens of any tokenizer.

        Raises:
            InputError: the tokenizer has no item SCID tokens, or a level has gaps.
        """
        found: dict[str, dict[tuple[int, int], int]] = {ITEM_FAMILY: {}, USER_FAMILY: {}}
        for token, token_id in tokenizer.get_added_vocab().items():
            match = _TOKEN.fullmatch(token)
            if match:
                family, level, code = match.groups()
                found[family][int(level), int(code)] = token_id
        if not found[ITEM_FAMILY]:
            raise InputError(
                "the tokenizer has no item SCID tokens such as <i0_0>; make it with SCIDTokenizer.from_base(...)"
            )
        return cls(_token_table(found[ITEM_FAMILY]), _token_table(found[USER_FAMILY]))

    @property
    def item_levels(self) -> int:
        """Codes in an item's SCID."""
        return self.item_tokens.shape[0]

    @property
    def token_ids(self) -> list[int]:
        """All SCID token ids, items before users, ascending within each."""
        return [
            int(token_id) for table in (self.item_tokens, self.user_tokens) for token_id in np.sort(table[table >= 0])
        ]

    def item_ids(self, codes: np.ndarray) -> np.ndarray:
        """Token ids of item codes. Shape: `(..., levels)` -> `(..., levels)` int64."""
        return _lookup(self.item_tokens, codes, "item")

    def user_ids(self, codes: np.ndarray) -> np.ndarray:
        """Token ids of user codes. Shape: `(..., levels)` -> `(..., levels)` int64."""
        return _lookup(self.user_tokens, codes, "user")

    def item_codes(self, token_ids: np.ndarray) -> np.ndarray:
        """Codes of item token ids; the inverse of `item_ids`. Shape: `(..., levels)` -> `(..., levels)` int64.

        Raises:
            InputError: an id is not the item token of its level.
        """
        token_ids = np.asarray(token_ids)
        codes = np.empty(token_ids.shape, dtype=np.int64)
        for level, table in enumerate(self.item_tokens):
            order = np.argsort(table)
            at = np.clip(np.searchsorted(table[order], token_ids[..., level]), 0, len(table) - 1)
            codes[..., level] = order[at]
        if (self.item_ids(codes) != token_ids).any():
            raise InputError("token_ids: not all ids are item SCID tokens of their level")
        return codes


class SCIDCatalogue:
    """Which token ids name an item, and which items token ids name.

    Args:
        vocabulary: where the SCID tokens stand.
        item_ids: the items, one for each row of `codes`.
        codes: `(items, levels)` integers, as [`load_codes`] or [`read_code_table`] give them.

    Raises:
        InputError: an item stands there twice, there are more or fewer items than codes, or the codes do not fit the
            vocabulary.

    ```python
    >>> import numpy as np
    >>> from align3gr.scid import SCIDCatalogue, SCIDVocabulary
    >>> vocabulary = SCIDVocabulary(np.array([[10, 11], [12, 13]]), np.zeros((0, 0), dtype=np.int64))
    >>> catalogue = SCIDCatalogue(vocabulary, ["B001", "B002"], np.array([[0, 1], [1, 1]]))
    >>> catalogue.token_ids(["B002"]).tolist()
    [[11, 13]]
    >>> catalogue.items([[10, 13], [10, 12]])
    [['B001'], []]

    ```
    """

    def __init__(self, vocabulary: SCIDVocabulary, item_ids: Sequence[str] | pl.Series, codes: np.ndarray) -> None:
        self.vocabulary = vocabulary
        self._item_ids = list(item_ids)
        if len(self._item_ids) != len(codes):
            raise InputError(f"item_ids: got {len(self._item_ids)} for {len(codes)} rows of codes; give one a row")
        self._row = {item_id: row for row, item_id in enumerate(self._item_ids)}
        if len(self._row) != len(self._item_ids):
            twice = next(item_id for row, item_id in enumerate(self._item_ids) if self._row[item_id] != row)
            raise InputError(f"item_ids: {twice!r} stands there twice; each item has one row of codes")
        self._tokens = vocabulary.item_ids(codes)
        self._named: dict[tuple[int, ...], list[str]] = {}
        for item_id, tokens in zip(self._item_ids, self._tokens.tolist(), strict=True):
            self._named.setdefault(tuple(tokens), []).append(item_id)

    def token_ids(self, item_ids: Sequence[str]) -> np.ndarray:
        """The tokens of items. Shape: `(items, levels)` int64.

        Raises:
            InputError: an item is not in the table.
        """
        unknown = next((item_id for item_id in item_ids if item_id not in self._row), None)
        if unknown is not None:
            raise InputError(f"item_ids: {unknown!r} is not among the {len(self._row):,} items of the code table")
        return self._tokens[[self._row[item_id] for item_id in item_ids]]

    def items(self, token_ids: np.ndarray | Sequence[Sequence[int]]) -> list[list[str]]:
        """The items that each row of token ids names: none, one, or all that share the SCID.

        Shape: `token_ids` `(rows, levels)`.
        """
        return [self._named.get(tuple(row), []) for row in np.asarray(token_ids).tolist()]


def _token_table(found: dict[tuple[int, int], int]) -> np.ndarray:
    if not found:
        return np.zeros((0, 0), dtype=np.int64)
    levels = max(level for level, _ in found) + 1
    size = max(code for _, code in found) + 1
    table = np.full((levels, size), -1, dtype=np.int64)
    for (level, code), token_id in found.items():
        table[level, code] = token_id
    for level, row in enumerate(table):
        present = np.flatnonzero(row >= 0)
        if len(present) == 0 or present[-1] + 1 != len(present):
            raise InputError(
                f"the tokenizer's SCID tokens of level {level} have gaps; it was not made by SCIDTokenizer"
            )
    return table


def _lookup(table: np.ndarray, codes: np.ndarray, family: str) -> np.ndarray:
    codes = np.asarray(codes)
    levels = table.shape[0]
    if codes.shape[-1] != levels:
        raise InputError(f"codes: the last dimension is {codes.shape[-1]}, the tokenizer has {levels} {family} levels")
    if codes.size and (codes.min() < 0 or codes.max() >= table.shape[1]):
        raise InputError(f"codes: values must lie in [0, {table.shape[1]}), got {codes.min()} to {codes.max()}")
    ids = table[np.arange(levels), codes]
    if codes.size and ids.min() < 0:
        raise InputError(f"codes: a {family} code exceeds the size of its level's codebook")
    return ids
