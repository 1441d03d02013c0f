"""Everything that is said about a system: columns, what lies beyond accuracy, segments, lost levels, user by user."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from align3gr.data import Split
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.data.schema import (
    DISLIKED_RATING,
    FEEDBACK_LEVELS,
    FEEDBACKS,
    ITEM_ID,
    ITEMS,
    RATING,
    RATINGS,
    USER_ID,
)
from align3gr.errors import InputError
from align3gr.evaluation.beyond_accuracy import (
    catalogue_coverage,
    exposure_gini,
    prefix_diversity,
    recommendation_popularity,
    shows_disliked,
    vector_diversity,
)
from align3gr.evaluation.metrics import REPORTED_KS, is_repeat, target_ranks, three_columns
from align3gr.evaluation.per_user import ASKED, PER_USER_SCHEMA, SYSTEM, ranks_to_column
from align3gr.evaluation.segments import lost_levels, segment_metrics, segment_users


class FullEvaluation:
    """Judges the lists of one system after the other on the questions of a split.

    Args:
        split: the data; train interactions give popularity and known dislikes.
        item_codes: `(items, levels)`, for diversity and lost levels; None leaves both out.
        item_vectors: `(items, dim)`, for diversity by vectors; None leaves it out.
        ks: lengths of the lists that are judged.

    Attributes:
        results: for each system its columns ([`three_columns`]), and under `beyond_accuracy` (`seen_allowed`,
            `seen_masked`: metric -> value), `segments` (of the list with seen items allowed) and `lost_levels`
            (the same list at the longest k) what the modules of these names say.

    Example:

    ```python
    evaluation = FullEvaluation(split, item_codes)
    evaluation.add("popularity", questions, allowed, masked)
    evaluation.results["popularity"]["beyond_accuracy"]["seen_allowed"]["coverage@10"]
    evaluation.per_user().write_parquet("per_user.parquet")
    ```
    """

    def __init__(
        self,
        split: Split,
        item_codes: np.ndarray | None = None,
        item_vectors: np.ndarray | None = None,
        ks: Sequence[int] = REPORTED_KS[:3],
    ) -> None:
        num_items = len(split.items)
        for name, table in (("item_codes", item_codes), ("item_vectors", item_vectors)):
            if table is not None and len(table) != num_items:
                raise InputError(f"{name}: got {len(table)} rows, expected one for each of {num_items} items")
        self._user_ids, self._item_ids = split.users[USER_ID], split.items[ITEM_ID]
        self._codes, self._vectors, self._ks = item_codes, item_vectors, tuple(ks)
        sequences = split.train_sequences()
        train_items = np.concatenate([*sequences, np.empty(0, np.int64)])
        self._train_counts = np.bincount(train_items, minlength=num_items)
        train_users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        disliked = _disliked_in_train(split.train)
        self._dislikes = None if disliked is None else (train_users[disliked], train_items[disliked])
        self.results: dict[str, dict[str, Any]] = {}
        self._frames: dict[str, pl.DataFrame] = {}

    def add(
        self,
        name: str,
        questions: EvaluationSet,
        allowed: np.ndarray,
        masked: np.ndarray,
        seconds: float | None = None,
    ) -> None:
        """Judge one system.

        Args:
            name: its row in the tables.
            questions: the test set of the split, or a sample of it.
            allowed: (questions, k) item indices, best first, -1 where a list is shorter.
            masked: (questions, k) the same without items of the history.
            seconds: what making both lists took; with the users of a second it stands under `ranking`.

        Raises:
            InputError: see [`three_columns`].
        """
        targets = questions.targets
        columns = three_columns(allowed, masked, targets, questions.histories, self._ks, questions.ratings)
        ranks = target_ranks(allowed, targets)
        asked = self.asked(questions)
        facts = (asked[name].to_numpy() for name in ("history_length", "target_popularity", "repeat"))
        segments = segment_metrics(ranks, segment_users(*facts), self._ks)
        result: dict[str, Any] = columns | {
            "beyond_accuracy": {
                "seen_allowed": self._beyond_accuracy(allowed, questions),
                "seen_masked": self._beyond_accuracy(masked, questions),
            },
            "segments": segments,
        }
        if self._codes is not None:
            result["lost_levels"] = lost_levels(allowed[:, : max(self._ks)], targets, self._codes)
        if seconds is not None:
            result["ranking"] = {"seconds": round(seconds, 6), "users_per_second": round(len(targets) / seconds, 1)}
        self.results[name] = result
        answered = asked.with_columns(
            pl.lit(name).alias(SYSTEM),
            ranks_to_column(ranks).alias("rank_allowed"),
            ranks_to_column(target_ranks(masked, targets)).alias("rank_masked"),
            pl.lit(np.shape(allowed)[1]).alias("list_length"),
        )
        self._frames[name] = answered.select(pl.col(column).cast(kind) for column, kind in PER_USER_SCHEMA.items())

    def add_same(self, name: str, first: str) -> None:
        """Judge a system that is known to give the lists of one judged before, such as a model of the same weights.

        Args:
            name: its row in the tables.
            first: the row of the other one; `ranking` says so.
        """
        self.results[name] = copy.deepcopy(self.results[first]) | {"ranking": {"same_weights_as": first}}
        self._frames[name] = self._frames[first].with_columns(pl.lit(name).alias(SYSTEM))

    def asked(self, questions: EvaluationSet) -> pl.DataFrame:
        """One row a question: what of the per-user table is the same for every system.

        Args:
            questions: the test set of the split, or a sample of it.
        """
        targets = questions.targets
        facts = {
            USER_ID: self._user_ids.gather(questions.user_rows),
            ITEM_ID: self._item_ids.gather(targets),
            "history_length": np.array([len(history) for history in questions.histories], dtype=np.int64),
            "target_popularity": self._train_counts[targets],
            "repeat": is_repeat(targets, questions.histories),
            # Polars sorts NaN above every number: as null, an unrated target is never "4 or higher".
            RATING: pl.Series(_ratings(questions), nan_to_null=True),
        }
        return pl.DataFrame(facts, schema={name: PER_USER_SCHEMA[name] for name in ASKED})

    def per_user(self) -> pl.DataFrame:
        """One row a system and user: ids of user and target, 1-based ranks (null: not in the list), and the facts that
        segments are made of."""
        return pl.concat(self._frames.values()) if self._frames else pl.DataFrame(schema=PER_USER_SCHEMA)

    def _beyond_accuracy(self, rankings: np.ndarray, questions: EvaluationSet) -> dict[str, float | None]:
        known = self._known_dislikes(questions)
        found: dict[str, float | None] = {}
        for k in self._ks:
            lists = rankings[:, :k]
            found[f"coverage@{k}"] = catalogue_coverage(lists, len(self._item_ids))
            found[f"gini@{k}"] = _mean(np.array([exposure_gini(lists, len(self._item_ids))]))
            found[f"popularity@{k}"] = _mean(recommendation_popularity(lists, self._train_counts))
            if self._codes is not None and k > 1:
                found[f"scid_diversity@{k}"] = _mean(prefix_diversity(lists, self._codes))
            if self._vectors is not None and k > 1:
                found[f"vector_diversity@{k}"] = _mean(vector_diversity(lists, self._vectors))
            if known is not None:
                found[f"disliked@{k}"] = _mean(shows_disliked(lists, *known))
        return found

    def _known_dislikes(self, questions: EvaluationSet) -> tuple[np.ndarray, np.ndarray] | None:
        """(row of the question, item) of each dislike: of the train split, and of the target itself."""
        if self._dislikes is None and questions.ratings is None:
            return None
        asked = np.flatnonzero(_ratings(questions) <= DISLIKED_RATING)
        users, items = asked, questions.targets[asked]
        if self._dislikes is not None:
            row = np.full(questions.num_users, -1)
            row[questions.user_rows] = np.arange(len(questions))
            rows = row[self._dislikes[0]]
            users = np.append(users, rows[rows >= 0])
            items = np.append(items, self._dislikes[1][rows >= 0])
        return users, items


def _disliked_in_train(train: pl.DataFrame) -> np.ndarray | None:
    """Which of the flattened train interactions are disliked: by feedback where the data has some, else by rating.
    None where neither is known of any interaction."""
    lengths = train[ITEMS].list.len()
    for name in (FEEDBACKS, RATINGS):
        # A user's list may be null as a whole.
        if name not in train.columns or not (train[name].list.len() == lengths).fill_null(False).all():
            continue
        values = train[name].explode(empty_as_null=False)
        if values.null_count() < len(values):
            disliked = values == FEEDBACK_LEVELS[0] if name == FEEDBACKS else values <= DISLIKED_RATING
            return disliked.fill_null(False).to_numpy()
    return None


def _ratings(questions: EvaluationSet) -> np.ndarray:
    return np.full(len(questions), np.nan) if questions.ratings is None else questions.ratings


def _mean(values: np.ndarray) -> float | None:
    """Mean of the users who have a value; None, which JSON can hold, where nobody has."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
