"""Moments, as a person writes them, to timestamps of the data."""

from datetime import UTC, date, datetime

import numpy as np

from align3gr.errors import InputError

# The largest timestamp below which a unit is assumed, and its units a second: 1e11 seconds is the year 5138.
UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6), (float("inf"), 10**9))
Moment = str | int | float | date


def boundary(timestamps: np.ndarray, moment: Moment, name: str) -> int:
    """The timestamp of a moment.

    Args:
        timestamps: (interactions,) int64, the times of the log.
        moment: a whole number is a timestamp in the unit of the data; a number between 0 and 1 the share of all
            interactions that came before; a date such as "2018-07-01" or a date with a time (UTC where it names no
            zone) needs timestamps in seconds, milli-, micro- or nanoseconds since 1970, told apart by their size.
        name: the argument, for an error.

    Raises:
        InputError: the moment has another form.

    Example:
        >>> boundary(np.array([10, 20, 30, 40]), 0.5, "test_from")
        30
        >>> boundary(np.array([1_500_000_000_000]), "2018-07-01", "test_from")
        1530403200000
    """
    text = str(moment).strip()
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        share = float(text)
    except ValueError:
        pass
    else:
        if not 0 < share < 1:
            raise InputError(f"{name}: got {text}, expected a share between 0 and 1, a whole timestamp or a date")
        # The interaction behind the first `share` of them; sorting is not needed for one order statistic.
        place = min(int(share * len(timestamps)), len(timestamps) - 1)
        return int(np.partition(timestamps, place)[place])
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"{name}: got {text!r}, expected a date such as 2018-07-01, a whole timestamp or a share between 0 and 1"
        ) from None
    seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    largest = np.abs(timestamps).max()
    return int(seconds * next(factor for limit, factor in UNITS if largest < limit))
