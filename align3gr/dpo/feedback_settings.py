"""Where the feedback of RF-DPO comes from, as options."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import PartialState

from align3gr.data import Split
from align3gr.data.feedback import UNKNOWN, Feedback, RatingScale, train_levels, train_ratings, train_reviews
from align3gr.data.feedback_log import read_feedback
from align3gr.data.schema import FEEDBACK_LEVELS
from align3gr.errors import InputError


@dataclass
class FeedbackSettings:
    """Sources of feedback: the train split's ratings, its reviews, and a log that `align3gr feedback` has read.

    Raises:
        InputError: options contradict each other.
    """

    feedback: str = field(
        default="data",
        metadata={
            "help": "Levels of train interactions: the data's feedback or ratings, scores of its reviews, or none.",
            "choices": ["data", "reviews", "none"],
        },
    )
    feedback_table: str | None = field(
        default=None, metadata={"help": "Table that `align3gr feedback` wrote from a log; joins the other feedback."}
    )
    liked_from: float = field(default=4.0, metadata={"help": "Lowest rating that is liked."})
    disliked_to: float = field(default=1.0, metadata={"help": "Highest rating that is disliked."})
    scorer: str = field(
        default="vader",
        metadata={"help": "Scores reviews from 1 to 5.", "choices": ["vader", "text-classification", "causal-lm"]},
    )
    scorer_model: str | None = field(default=None, metadata={"help": "Hub id or folder of the scorer's model."})
    label_scores: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Score of each label of a text-classification model; on the command line JSON."},
    )

    def __post_init__(self) -> None:
        self.scale()
        if self.feedback == "none" and not self.feedback_table:
            raise InputError("feedback: 'none' leaves nothing to learn from; name a feedback_table")
        if self.feedback != "reviews" and (self.scorer, self.scorer_model, self.label_scores) != ("vader", None, None):
            raise InputError(f"scorer: applies to feedback 'reviews' only, got feedback '{self.feedback}'")

        if isinstance(self.label_scores, str):
            try:
                self.label_scores = json.loads(self.label_scores)
            except json.JSONDecodeError as error:
                raise InputError(f"label_scores: got {self.label_scores!r}, which is no JSON: {error}") from error
        scores = self.label_scores
        if scores is not None and not (
            isinstance(scores, dict) and scores and all(isinstance(score, int | float) for score in scores.values())
        ):
            raise InputError(f'label_scores: got {scores!r}, expected labels with scores, such as {{"POSITIVE": 5}}')

    def scale(self) -> RatingScale:
        """Where liked and disliked ratings begin."""
        return RatingScale(self.liked_from, self.disliked_to)

    def inputs(self, data: Path) -> list[Path]:
        """Files that are read beside the tables of the split."""
        reviews = [data / "reviews.parquet"] if self.feedback == "reviews" else []
        return reviews + ([Path(self.feedback_table)] if self.feedback_table else [])

    def read(self, split: Split) -> tuple[Feedback, dict[str, Any]]:
        """All feedback there is on a split.

        Args:
            split: its train part and reviews are looked at, nothing else; ratings in the scale of `scale()`.

        Returns:
            The feedback, with an entry for every train interaction, and a report: entries of each level in `train` and
            in `log`, and for reviews the `agreement` of scores and stars.

        Raises:
            InputError: nothing is liked, or nothing is disliked or neutral.
        """
        report: dict[str, Any] = {}
        levels = np.full(int(split.train["items"].list.len().sum()), UNKNOWN)
        if self.feedback == "data":
            levels = train_levels(split, self.scale())
        elif self.feedback == "reviews":
            levels, report["agreement"] = self._review_levels(split)
        parts = [Feedback.of_train(split, levels)]
        report["train"] = _counts(levels)
        if self.feedback_table:
            parts.append(Feedback.of_table(split, read_feedback(self.feedback_table), self.feedback_table))
            report["log"] = _counts(parts[1].levels)
        found = Feedback.joined(parts)
        disliked, neutral, liked = (int((found.levels == level).sum()) for level in range(3))
        if not liked or not disliked + neutral:
            raise InputError(
                f"{split.source}: has {liked} liked, {neutral} neutral and {disliked} disliked interactions in train; "
                "preferences need liked and others: prepare data with ratings or feedback, score reviews "
                "(feedback: reviews), or name a feedback_table"
            )
        return found, report

    def _review_levels(self, split: Split) -> tuple[np.ndarray, dict[str, Any]]:
        from align3gr.encoders.sentiment import agreement, load_scorer, score_texts

        places, texts = train_reviews(split)
        ratings = train_ratings(split)
        scores = np.full(len(ratings), np.nan)
        with PartialState().main_process_first():  # the others find the scores on disk
            scores[places] = score_texts(
                load_scorer(self.scorer, self.scorer_model or "", cast("dict[str, float] | None", self.label_scores)),
                texts,
            )
        return RatingScale().levels(scores), agreement(scores, ratings, self.scale())


def _counts(levels: np.ndarray) -> dict[str, int]:
    counts = {name: int((levels == level).sum()) for level, name in enumerate(FEEDBACK_LEVELS)}
    return counts | {"unknown": int((levels == UNKNOWN).sum())}
