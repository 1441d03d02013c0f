"""The built-in market: a shop whose next purchase is drawn from a known distribution.

Because the distribution is known, so is the best Recall and NDCG that any model can reach, and a result can be read as
a share of it. Nothing is downloaded, and one seed makes everything.

The next item of a user depends on the user's taste (one of a few clusters, with liked categories and brands), on the
category of the last item (each leads on to a few others, one way), on its brand (users tend to stay with it), and on
the history, from which items are bought again, the latest the likeliest.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import scipy.sparse as sp

from align3gr.data.schema import ITEM_ID, PROFILE, RATING, REVIEW, TEXT, TIMESTAMP, TITLE, USER_ID
from align3gr.data.synthetic_texts import CATEGORIES, item_texts, user_profiles, write_reviews
from align3gr.data.tables import EvaluationSet, Tables
from align3gr.errors import InputError

CONFIG_NAME = "market.json"

# Users whose distributions are held at once: 1,024 x 500 items is 4 MB.
BATCH_SIZE = 1024
FIRST_TIMESTAMP = 1_600_000_000
MEAN_SECONDS_BETWEEN = 86_400


@dataclass(frozen=True)
class SyntheticMarketConfig:
    """Size and dynamics of a market.

    Args:
        num_users: users.
        num_items: items; the average category holds num_items / num_categories.
        num_categories: categories, at most 24 (they have names).
        num_brands: brands, at most 64; every category sells all of them, where it has the items.
        num_tastes: clusters of users who share a taste.
        min_interactions: shortest sequence of a user.
        max_interactions: longest sequence; lengths are uniform between the two.
        taste_strength: spread of the log-preferences for categories and brands; 0 makes all users alike.
        loyalty: factor by which the brand of the last item is preferred.
        repeat_probability: share of purchases that repeat an item of the history.
        repeat_decay: weight of a history item against the one after it when repeating.
        noise: share of purchases that are uniform over the catalogue.
        seed: the one seed of everything.
    """

    num_users: int = 2000
    num_items: int = 500
    num_categories: int = 20
    num_brands: int = 10
    num_tastes: int = 8
    min_interactions: int = 12
    max_interactions: int = 25
    taste_strength: float = 1.0
    loyalty: float = 4.0
    repeat_probability: float = 0.1
    repeat_decay: float = 0.7
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "num_users": (1, None),
            "num_items": (self.num_categories, None),
            "num_categories": (2, len(CATEGORIES)),
            "num_brands": (1, 64),
            "num_tastes": (1, None),
            "min_interactions": (1, None),
            "max_interactions": (self.min_interactions, None),
            "taste_strength": (0, None),
            "loyalty": (1, None),
            "repeat_probability": (0, 1),
            "repeat_decay": (0, 1),
            "noise": (0, 1),
            "seed": (0, None),
        }
        for name, (lowest, highest) in limits.items():
            value = getattr(self, name)
            if value < lowest or (highest is not None and value > highest):
                expected = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
                raise InputError(f"{name}: got {value}, expected {expected}")


class BestMetrics(NamedTuple):
    """The expected metrics of a ranking by the true probabilities; no model can be expected to do better."""

    recall: float
    ndcg: float


class SyntheticMarket:
    """A market drawn from one seed.

    Args:
        config: size and dynamics.

    Attributes:
        categories: (items,) int64 category of each item.
        brands: (items,) int64 brand of each item.
        tastes: (users,) int64 taste cluster of each user.

    Example:
        >>> market = SyntheticMarket(SyntheticMarketConfig(num_users=3, num_items=40))
        >>> market.tables().items.height
        40
        >>> float(market.next_item_probabilities(0, [5, 7]).sum().round(9))
        1.0
    """

    def __init__(self, config: SyntheticMarketConfig) -> None:
        self.config = config
        rng = self._rng(0)
        items, users = np.arange(config.num_items), np.arange(config.num_users)
        # Round robin, then shuffled: every category and brand gets its share.
        self.categories = rng.permutation(items % config.num_categories)
        self.brands = rng.permutation(items % config.num_brands)
        self.tastes = rng.permutation(users % config.num_tastes)
        self.popularity = np.exp(rng.normal(0.0, 0.3, config.num_items))
        # Log-preferences of each taste: (tastes, categories) and (tastes, brands).
        self.category_preferences = config.taste_strength * rng.normal(size=(config.num_tastes, config.num_categories))
        self.brand_preferences = config.taste_strength * rng.normal(size=(config.num_tastes, config.num_brands))
        self.transitions = _transitions(config.num_categories, rng)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "SyntheticMarket":
        """The market whose `market.json` stands in `folder`.

        Raises:
            InputError: the file is missing, is not JSON, or has other settings than `SyntheticMarketConfig`.
        """
        path = Path(folder) / CONFIG_NAME
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            return cls(SyntheticMarketConfig(**settings))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; only folders of a synthetic market have it") from None
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{path}: not the settings of a synthetic market ({error}); make it again") from None

    def save_config(self, folder: str | Path) -> None:
        """Write `market.json`, from which `from_folder` rebuilds the market, distribution and all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(dataclasses.asdict(self.config), indent=2)
        (folder / CONFIG_NAME).write_text(settings + "\n", encoding="utf-8")

    def save(self, folder: str | Path) -> None:
        """Write the tables and `market.json`."""
        self.tables().save(folder)
        self.save_config(folder)

    def next_item_probabilities(self, user_row: int, history: Sequence[int] | np.ndarray) -> np.ndarray:
        """The distribution from which the user's next item is drawn.

        Args:
            user_row: row of the user.
            history: indices of all items so far, oldest first; may be empty.

        Returns:
            (items,) float64, adding up to 1.
        """
        return self._probabilities(np.array([user_row]), [np.asarray(history, dtype=np.int64)])[0]

    def best_recall(self, evaluation_set: EvaluationSet, k: int = 10) -> BestMetrics:
        """Expected Recall@k and, despite the name, NDCG@k of ranking by the true probabilities, seen items allowed.

        Args:
            evaluation_set: questions of a split that kept every user and item of this market.
            k: length of the list.

        Raises:
            InputError: the split does not have this market's users and items, so rows and indices would not match.
        """
        expected = (self.config.num_users, self.config.num_items)
        if (evaluation_set.num_users, evaluation_set.num_items) != expected:
            raise InputError(
                f"evaluation_set: has {evaluation_set.num_users} users and {evaluation_set.num_items} items, the "
                f"market {expected[0]} and {expected[1]}; split with min_interactions=0, which removes none"
            )
        discounts = 1.0 / np.log2(np.arange(k) + 2.0)
        recall, ndcg = 0.0, 0.0
        for start in range(0, len(evaluation_set), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            probabilities = self._probabilities(evaluation_set.user_rows[rows], evaluation_set.histories[rows])
            best = -np.sort(-probabilities, axis=1)[:, :k]  # (batch, k)
            recall += best.sum()
            ndcg += (best * discounts[: best.shape[1]]).sum()
        return BestMetrics(float(recall) / len(evaluation_set), float(ndcg) / len(evaluation_set))

    def tables(self) -> Tables:
        """The market's log: interactions with rating and review, items, and users with a profile."""
        width = len(str(max(self.config.num_users, self.config.num_items)))
        user_ids = np.array([f"user_{row:0{width}}" for row in range(self.config.num_users)])
        item_ids = np.array([f"item_{row:0{width}}" for row in range(self.config.num_items)])
        titles, texts = item_texts(self.categories, self.brands, self._rng(1))
        profiles = user_profiles(
            self.category_preferences[self.tastes], self.brand_preferences[self.tastes], self._rng(2)
        )
        users, items = self.sequences
        rng = self._rng(4)
        steps = 60 + rng.exponential(MEAN_SECONDS_BETWEEN, len(users)).astype(np.int64)
        ratings = self._ratings(users, items, rng)
        interactions = pl.DataFrame(
            {
                USER_ID: user_ids[users],
                ITEM_ID: item_ids[items],
                TIMESTAMP: steps,
                RATING: ratings,
                REVIEW: write_reviews(ratings, self.categories[items], self.brands[items], rng),
            }
        )
        return Tables(
            interactions=interactions.with_columns(pl.col(TIMESTAMP).cum_sum().over(USER_ID) + FIRST_TIMESTAMP),
            items=pl.DataFrame({ITEM_ID: item_ids, TITLE: titles, TEXT: texts}),
            users=pl.DataFrame({USER_ID: user_ids, PROFILE: profiles}),
            source="synthetic market",
        )

    @cached_property
    def sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """(users, items): user row and item index of every interaction, by user, oldest first."""
        config, rng = self.config, self._rng(3)
        lengths = rng.integers(config.min_interactions, config.max_interactions + 1, config.num_users)
        # Everyone takes the longest walk and is cut to length after it: the draw of one step is one array.
        draws = rng.random((config.num_users, config.max_interactions))
        walks = np.empty((config.num_users, config.max_interactions), dtype=np.int64)
        for start in range(0, config.num_users, BATCH_SIZE):
            rows = np.arange(start, min(start + BATCH_SIZE, config.num_users))
            for step in range(config.max_interactions):
                cumulative = self._probabilities(rows, list(walks[rows, :step])).cumsum(axis=1)
                # The last entry is 1 but for rounding; the minimum keeps a draw above it inside.
                drawn = (cumulative < draws[rows, step, None]).sum(axis=1)
                walks[rows, step] = np.minimum(drawn, config.num_items - 1)
        kept = np.arange(config.max_interactions) < lengths[:, None]
        return np.nonzero(kept)[0], walks[kept]

    @cached_property
    def _taste_weights(self) -> np.ndarray:
        """(tastes, items): how much each taste is drawn to each item, whatever came before."""
        log_weights = self.category_preferences[:, self.categories] + self.brand_preferences[:, self.brands]
        return np.exp(log_weights) * self.popularity

    def _probabilities(self, user_rows: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(users, items): see `next_item_probabilities`."""
        config = self.config
        fresh = self._taste_weights[self.tastes[user_rows]]  # (users, items), a copy
        started = np.array([len(history) > 0 for history in histories])
        if started.any():
            last = np.array([history[-1] for history in histories if len(history)])
            fresh[started] *= self.transitions[self.categories[last]][:, self.categories]
            fresh[started] *= np.where(self.brands == self.brands[last, None], config.loyalty, 1.0)
        fresh /= fresh.sum(axis=1, keepdims=True)
        share = np.where(started, config.repeat_probability, 0.0)[:, None]
        mixed = share * self._repeats(histories) + (1.0 - share) * fresh
        return config.noise / config.num_items + (1.0 - config.noise) * mixed

    def _repeats(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(users, items): distribution over the history, each item weighed by repeat_decay to the steps back."""
        lengths = np.array([len(history) for history in histories])
        rows = np.repeat(np.arange(len(histories)), lengths)
        # Position in the flat array against that of the row's last item.
        steps = np.cumsum(lengths)[rows] - 1 - np.arange(len(rows))
        weights = self.config.repeat_decay ** steps.astype(np.float64)
        weights /= np.bincount(rows, weights, minlength=len(histories))[rows]
        shape = (len(histories), self.config.num_items)
        return sp.csr_matrix((weights, (rows, np.concatenate(histories))), shape=shape).toarray()

    def _ratings(self, users: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(interactions,) float64 in 1..5: how well the item fits the user's taste, and some chance."""
        fit = self.category_preferences[:, self.categories] + self.brand_preferences[:, self.brands]
        fit = (fit - fit.mean(axis=1, keepdims=True))[self.tastes[users], items]
        return np.clip(np.rint(2.6 + 0.8 * fit + rng.normal(0.0, 0.6, len(users))), 1.0, 5.0)

    def _rng(self, stream: int) -> np.random.Generator:
        """An own generator for each part, so that a change in what one part draws leaves the others as they are."""
        return np.random.default_rng([self.config.seed, stream])


def _transitions(num_categories: int, rng: np.random.Generator) -> np.ndarray:
    """(categories, categories): weight of going from a row's category to a column's.

    Each category leads on to up to three others along random cycles through all of them. A cycle runs one way, which
    is what a model of co-occurrence, blind to order, cannot see.
    """
    transitions = np.full((num_categories, num_categories), 0.02)
    for weight in (0.6, 0.3, 0.1):
        cycle = rng.permutation(num_categories)
        transitions[cycle, np.roll(cycle, -1)] += weight
    return transitions
