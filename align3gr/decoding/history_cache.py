"""Users come back to what they know: a cache over the history, mixed with the model's list.

A cache language model (Kuhn and De Mori 1990), of items:
`P(item | history) = (1 - share) * P_model(item | history) + share * P_cache(item | history)`. The cache copies a
position of the history, by how often users returned to an item so many positions back in the train split. The share
is that of the user: the mean share of the data, moved towards how often this history repeats itself, as in a
beta-binomial model whose strength is fitted on the train split by maximum likelihood.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align3gr.decoding.item_filter import ItemSets, is_by_row
from align3gr.errors import InputError

HISTORY_CACHE_FILE = "history_cache.json"
LONGEST_LAG = 50


class HistoryCache:
    """Return rates of a data set, and the share of the mixture that a history gets.

    Args:
        return_rates: how often the next item was the one at this place of the history, latest first.
            Shape: `(lags,)`.
        strength: positions of a history that count as much as the mean share; the larger, the more users are alike.
        share: mean share of the cache in the mixture, 0 to below 1; 0 leaves every list as it is. A setting to choose
            on validation: the best one is above the share of returns in the data where the model holds too little
            probability on them.

    Raises:
        InputError: `share` out of range.
    """

    def __init__(self, return_rates: np.ndarray, strength: float, share: float = 0.0):
        if not 0 <= share < 1:
            raise InputError(f"history_cache: got {share}, expected a share of 0 (off) to below 1, such as 0.1")
        self.return_rates = np.asarray(return_rates, dtype=np.float64)
        self.strength, self.share = float(strength), float(share)

    @classmethod
    def fit(cls, sequences: Sequence[np.ndarray], share: float = 0.0, longest: int = LONGEST_LAG) -> "HistoryCache":
        """Count the returns of train sequences.

        Args:
            sequences: item indices of each user's train split, oldest first.
            share: see the constructor.
            longest: places of the history that are looked at.
        """
        returned, asked = np.zeros(longest), np.zeros(longest)
        items = np.concatenate([*sequences, np.empty(0, dtype=np.int64)])
        users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        for lag in range(1, min(longest, len(items) - 1) + 1):
            same_user = users[lag:] == users[:-lag]
            returned[lag - 1] = np.count_nonzero(same_user & (items[lag:] == items[:-lag]))
            asked[lag - 1] = np.count_nonzero(same_user)
        counts = np.array([(len(sequence) - 1, repeats(sequence)) for sequence in sequences if len(sequence) > 1])
        return cls(returned / np.maximum(asked, 1), _strength(counts.reshape(-1, 2)), share)

    def with_share(self, share: float) -> "HistoryCache":
        """The same returns with another share.

        Raises:
            InputError: `share` out of range.
        """
        return HistoryCache(self.return_rates, self.strength, share)

    def shares(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Share of the cache for each history; `(users,)`, 0 where a history holds nothing to return to."""
        shares = np.zeros(len(histories))
        if self.share > 0:
            for row, history in enumerate(histories):
                if self.return_rates[: len(history)].any():
                    prior, positions = self.strength * self.share, max(len(history) - 1, 0)
                    shares[row] = (prior + repeats(history)) / (self.strength + positions)
        return shares

    def probabilities(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct items of a history and what the cache gives to them, 1 together, or all 0 where none returns."""
        latest = np.asarray(history)[::-1][: len(self.return_rates)]
        items, place = np.unique(latest, return_inverse=True)
        weights = np.bincount(place, self.return_rates[: len(latest)], minlength=len(items))
        return items, weights / (weights.sum() or 1.0)

    def mix(
        self,
        items: np.ndarray,
        scores: np.ndarray,
        histories: Sequence[np.ndarray],
        allowed: ItemSets | None = None,
        denied: ItemSets | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The lists of the mixture; what the model gives to an item outside its list counts as nothing.

        Args:
            items: the model's lists, best first, -1 where one is shorter.
                Shape: `(users, k)`.
            scores: their log-probabilities.
                Shape: `(users, k)`.
            histories: item indices of each user, oldest first.
            allowed, denied: what the lists may show and may not, as the search had it.

        Returns:
            Items and log-probabilities of the mixture. Shape: `(users, k)` each.
        """
        mixed, mixed_scores = items.copy(), scores.copy()
        shares = self.shares(histories)
        may, may_not = _rows(allowed), _rows(denied)
        for row in np.flatnonzero(shares).tolist():
            known, cached = self.probabilities(histories[row])
            shown = cached > 0
            if may is not None:
                shown &= np.isin(known, may(row))
            if may_not is not None:
                shown &= ~np.isin(known, may_not(row))
            of_model = items[row] >= 0
            together = np.concatenate([items[row][of_model], known[shown]])
            weights = np.concatenate(
                [(1 - shares[row]) * np.exp(scores[row][of_model].astype(np.float64)), shares[row] * cached[shown]]
            )
            # Equal ones stay in the order of the model's list.
            distinct, first, place = np.unique(together, return_index=True, return_inverse=True)
            summed = np.bincount(place, weights, minlength=len(distinct))
            best = np.lexsort((first, -summed))[: items.shape[1]]
            mixed[row, : len(best)] = distinct[best]
            with np.errstate(divide="ignore"):
                mixed_scores[row, : len(best)] = np.log(summed[best])
        return mixed, mixed_scores

    @property
    def settings(self) -> dict[str, Any]:
        """Everything in plain types."""
        return {"return_rates": self.return_rates.tolist(), "strength": self.strength, "share": self.share}

    def save(self, folder: str | Path) -> None:
        """Write `history_cache.json` into a folder."""
        text = json.dumps(self.settings, indent=1) + "\n"
        Path(folder, HISTORY_CACHE_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "HistoryCache":
        """Read what [`save`][HistoryCache.save] wrote.

        Raises:
            InputError: the file is not there, or is none of these.
        """
        path = Path(folder, HISTORY_CACHE_FILE)
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(np.array(content["return_rates"]), content["strength"], content["share"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: holds no return rates ({error}); fine-tune again, or give Recommender a fitted one"
            ) from error


def repeats(history: np.ndarray) -> int:
    """How many items of a history stand in it before.

    >>> repeats(np.array([3, 5, 3, 3]))
    2
    """
    return len(history) - len(np.unique(history))


def _strength(counts: np.ndarray) -> float:
    """Maximum-likelihood strength of a beta-binomial with the mean of the data; counts: `(users, 2)`, of and hits."""
    from scipy.optimize import minimize_scalar
    from scipy.special import betaln

    of, hits = counts.T
    if not hits.sum() or not (of - hits).sum():
        return 1.0  # all users are alike
    mean = hits.sum() / of.sum()

    def loss(log_strength: float) -> float:
        a, b = np.exp(log_strength) * mean, np.exp(log_strength) * (1 - mean)
        return -float((betaln(a + hits, b + of - hits) - betaln(a, b)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 9.0), method="bounded").x))


def _rows(sets: Any) -> Callable[[int], np.ndarray] | None:
    """The set of a row; one for all rows is made an array once."""
    if sets is None:
        return None
    if is_by_row(sets):
        return lambda row: np.asarray(list(sets[row]), dtype=np.int64)
    one = np.asarray(list(sets), dtype=np.int64)
    return lambda row: one
