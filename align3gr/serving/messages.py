"""What comes in and goes out over HTTP, checked at the door."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from align3gr.data.schema import EVENTS

MAX_ID = 1_000  # characters
MAX_HISTORY = 10_000
MAX_PROFILE = 20_000  # characters
MAX_EVENTS = 10_000
_INT64 = 2**63 - 1


def _text_of_integer(value: Any) -> Any:
    """Ids may come as integers, as in tables; 7.0 and true are no ids."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


# With a bound to its length a string is also checked to be Unicode: JSON can name halves of characters.
_Length = Field(min_length=1, max_length=MAX_ID)
Id = Annotated[str, _Length, BeforeValidator(_text_of_integer)]


class Message(BaseModel):
    """A body; a field that is not known is refused, not passed over."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendRequest(Message):
    """One user's question.

    Attributes:
        history: item ids, oldest first.
        user_id: the user, if known.
        profile: text for a user that the model does not know; the server needs a token level.
        k: length of the list, at most the server's `num_beams`; 10 where nothing is said.
        exclude_seen: leave out every item of the history.
        allowed: items that alone may be shown; none means all.
        denied: items that must not be shown.
        unknown_items: whether an item outside the catalogue is an error, or is skipped and named in the answer.
        log_impressions: whether the list goes into the log of events; the client reports what it showed where false.
    """

    history: list[Id] = Field(default_factory=list, max_length=MAX_HISTORY)
    user_id: Id | None = None
    profile: str | None = Field(default=None, max_length=MAX_PROFILE)
    k: int | None = Field(default=None, ge=1)
    exclude_seen: bool = False
    allowed: list[Id] | None = None
    denied: list[Id] = Field(default_factory=list)
    unknown_items: Literal["raise", "skip"] = "raise"
    log_impressions: bool = True


class RecommendedItem(BaseModel):
    """One item of a list: its place from 1, and the log-probability of its SCID."""

    rank: int
    item_id: str
    title: str
    score: float


class RecommendAnswer(BaseModel):
    """A list, best first; `skipped` are items of the request that are not in the catalogue."""

    request_id: str
    items: list[RecommendedItem]
    skipped: list[str]


class ReportedEvent(Message):
    """What a user did with an item; `request_id` and `rank` are those of the list that was shown."""

    user_id: Id
    item_id: Id
    event: Literal[EVENTS]  # type: ignore[valid-type]
    timestamp: int | None = Field(default=None, ge=-_INT64, le=_INT64)
    request_id: Id | None = None
    rank: int | None = Field(default=None, ge=1, lt=2**31)


class EventsRequest(Message):
    """Events of any users."""

    events: list[ReportedEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class EventsAnswer(BaseModel):
    """How many events are in the log now."""

    logged: int


class Health(BaseModel):
    """The server is up, and with what."""

    status: Literal["ok"]
    model: str
    items: int
    users: int
    num_beams: int
    device: str
    version: str
