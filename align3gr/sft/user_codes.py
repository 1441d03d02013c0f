"""The user's SCID in training: made from all train items, or without the item that is to be predicted.

In the paper a user's SCID comes from everything that the user chose in the train split. In training that includes the
very items that stand behind it as answers; in use it never includes the answer. Two other forms close this gap.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import polars as pl

from align3gr.data import Split
from align3gr.data.profiles import with_profiles
from align3gr.data.schema import ITEM_ID, ITEMS, PROFILE, USER_ID
from align3gr.errors import InputError
from align3gr.scid.assigner import SCIDAssigner

UserCodesFrom = Literal["all", "cross-fitted", "prefix"]
USER_CODES_FROM = ("all", "cross-fitted", "prefix")


class UserCodes:
    """Users' SCIDs, by the position of the item that they stand in front of.

    Args:
        full: codes made from all train items, which evaluation and the tasks without a target use.
            Shape: `(users, levels)`.
        segments: for each user `(first, end, codes)`: the positions of the train sequence that are predicted behind
            these codes. None: all of them behind `full`.

    ```python
    >>> import numpy as np
    >>> from align3gr.sft import UserCodes
    >>> codes = UserCodes(np.array([[5]]), [[(1, 3, np.array([7])), (3, 6, np.array([8]))]])
    >>> codes.at(0, 2).tolist(), codes.at(0, 3).tolist(), codes.full[0].tolist()
    ([7], [8], [5])

    ```
    """

    def __init__(
        self, full: np.ndarray, segments: Sequence[Sequence[tuple[int, int, np.ndarray]]] | None = None
    ) -> None:
        self.full = full
        self._segments = segments

    @property
    def same_everywhere(self) -> bool:
        """Whether a user's SCID is the same in front of every item."""
        return self._segments is None

    def at(self, user: int, position: int) -> np.ndarray:
        """The codes `(levels,)` in front of the item at this position of the user's train sequence."""
        return next(codes for first, end, codes in self.segments(user, position + 1) if first <= position < end)

    def segments(self, user: int, length: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Ranges `[first, end)` of positions from 1 to `length` that stand behind the same codes."""
        if self._segments is None:
            yield 1, length, self.full[user]
        else:
            yield from self._segments[user]


def user_codes_without_future(
    kind: UserCodesFrom, full: np.ndarray, split: Split, assigner: SCIDAssigner | None
) -> UserCodes:
    """The user's SCIDs for training.

    Args:
        kind: "all" gives `full` everywhere. "cross-fitted" cuts each train sequence in halves, and puts in front of
            each half the code that the model gives to the other half alone. "prefix" makes the code in front of an
            item from the items before it.
        full: `(users, levels)`, made from all train items.
        split: the data. A profile that was made from the train items is made again from those that count; a given one
            stays as it is.
        assigner: the token level, which makes the codes; not needed for "all".

    Raises:
        InputError: the kind is unknown, or needs an assigner and there is none.
    """
    if kind not in USER_CODES_FROM:
        raise InputError(f"user_codes_from: got {kind!r}, expected one of {', '.join(USER_CODES_FROM)}")
    if kind == "all":
        return UserCodes(full)
    if assigner is None:
        raise InputError(f"user_codes_from: {kind!r} needs the model of the token level; imported codes have none")
    sequences = split.train_sequences()
    parts = [
        (
            user,
            first,
            end,
            sequence[:first] if kind == "prefix" else np.concatenate([sequence[:start], sequence[end:]]),
        )
        for user, sequence in enumerate(sequences)
        for start, first, end in _cuts(len(sequence), kind)
    ]
    codes = _codes_of([(user, items) for user, _, _, items in parts], split, assigner)
    segments: list[list[tuple[int, int, np.ndarray]]] = [[] for _ in sequences]
    for (user, first, end, _), row in zip(parts, codes, strict=True):
        segments[user].append((first, end, row))
    return UserCodes(full, segments)


def _cuts(length: int, kind: UserCodesFrom) -> Iterator[tuple[int, int, int]]:
    """`(start, first, end)`: items `[start, end)` are held out, those from `first` on are predicted."""
    if kind == "prefix":
        yield from ((position, position, position + 1) for position in range(1, length))
        return
    half = (length + 1) // 2
    if half > 1:
        yield 0, 1, half
    if length > max(half, 1):
        yield half, max(half, 1), length


def _codes_of(parts: Sequence[tuple[int, np.ndarray]], split: Split, assigner: SCIDAssigner) -> np.ndarray:
    """Codes of users as if only some of their items were known. `parts` holds (user, item indices)."""
    item_ids = split.items[ITEM_ID].to_numpy()
    histories = [item_ids[items].tolist() for _, items in parts]
    users = [user for user, _ in parts]
    given = split.users[PROFILE].to_list()
    made = with_profiles(split.users.with_columns(pl.lit("").alias(PROFILE)), split.train, split.items)
    is_made = [a == b for a, b in zip(given, made[PROFILE].to_list(), strict=True)]
    ids = [str(row) for row in range(len(parts))]
    frame = pl.DataFrame({USER_ID: ids, PROFILE: ["" if is_made[user] else given[user] for user in users]})
    train = pl.DataFrame({USER_ID: ids, ITEMS: histories}, schema={USER_ID: pl.String, ITEMS: pl.List(pl.String)})
    again = with_profiles(frame, train, split.items)[PROFILE].to_list()
    # A given profile that is empty, or one that cannot be made, stays empty.
    return assigner.user_codes(again, histories)
