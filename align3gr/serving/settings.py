"""Options of the server."""

from dataclasses import dataclass, field
from typing import Any, Literal

from align3gr.errors import InputError

# Ticks of a second.
TIME_UNITS = {"s": 1, "ms": 10**3, "us": 10**6}
_LEAST = {"port": 0, "max_wait_ms": 0, "max_batch_size": 1, "max_waiting": 1, "max_body_bytes": 1}
_LEAST |= {"rotate_events": 1, "rotate_seconds": 1}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ServerSettings:
    """Options of the server, by the names of the command line, which shows their help.

    Raises:
        InputError: a value is out of range.
    """

    model: str = field(metadata={"help": "model folder, such as runs/yelp/sp_dpo/model, or a Hub id"})
    host: str = _option("127.0.0.1", "address to listen at; 0.0.0.0 for all of the machine")
    port: int = _option(8000, "port to listen at; 0 takes any that is free")
    num_beams: int | Literal["all"] = _option(20, "beams, and the longest list; all scores every item")
    history_cache: float | None = _option(
        None, "mean share of the user's own history in the lists (default: the model's)"
    )
    max_batch_size: int = _option(32, "requests in one search")
    max_wait_ms: float = _option(5.0, "milliseconds that a request waits for others")
    max_waiting: int = _option(1024, "requests that may wait; more are refused with status 503")
    max_body_bytes: int = _option(2**20, "largest body of a request; more is refused with status 413")
    event_log: str | None = _option(None, "folder for the log of events (default: no log)")
    rotate_events: int = _option(100_000, "events in a file of the log")
    rotate_seconds: float = _option(300.0, "age at which a file of the log is closed")
    time_unit: str = _option("us", "unit of the log's timestamps, that of the run's data: s, ms or us")
    scid: str | None = _option(None, "folder scid of the run: gives users with a profile but no SCID one")
    device: str | None = _option(None, "such as cpu or cuda:1 (default: a GPU if there is one)")

    def __post_init__(self) -> None:
        for name, bound in _LEAST.items():
            if getattr(self, name) < bound:
                raise InputError(f"--{name}: got {getattr(self, name)}, expected at least {bound}")
        if self.port > 65535:
            raise InputError(f"--port: got {self.port}, expected 0 to 65535")
        if self.num_beams != "all" and self.num_beams < 1:
            raise InputError(f"--num_beams: got {self.num_beams}, expected at least 1, or all")
        if self.time_unit not in TIME_UNITS:
            raise InputError(f"--time_unit: got {self.time_unit!r}, choose from {', '.join(TIME_UNITS)}")
