"""What goes into a recommender and what comes out, for one user."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Recommendation:
    """One item of a list.

    Attributes:
        item_id: the item.
        title: its title, empty where the catalogue has none.
        score: log-probability of its SCID given the user and the history.
    """

    item_id: str
    title: str
    score: float


@dataclass(frozen=True)
class Request:
    """One user's question.

    Attributes:
        source: where it stands, for errors, such as `"histories.parquet: row 7"`.
        history: item ids, oldest first.
        user_id: the user, or None.
        profile: the user's profile text, or None.
    """

    source: str
    history: Sequence[str]
    user_id: str | None = None
    profile: str | None = None
