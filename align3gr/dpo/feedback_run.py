"""A run of RF-DPO put together: the feedback of a run, and the rows of its stages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.recommender import Recommender
from align3gr.dpo.curriculum_stage import CurriculumStage
from align3gr.dpo.feedback_arguments import RealFeedbackArguments
from align3gr.dpo.feedback_rows import build_feedback_rows, rejected_levels
from align3gr.dpo.self_play import PreferenceRows
from align3gr.dpo.self_play_run import processes_differ
from align3gr.scid.code_table import load_codes

LIKED_METRIC = "seen_allowed_liked/recall@10"


class RealFeedback:
    """The rows of feedback stages, for `run_curriculum`.

    Args:
        recommender: Prompts and catalogue of the model.
        split: Its train split is learnt from; nothing else of it is looked at.
        scid: Folder of the token level.
        arguments: Where feedback comes from, and how much of it is used.
        num_rejected: Most rejected a row.
        folder: What the policy generates is kept below it, in `candidates/<name of the stage>`.
        progress: Show progress bars.

    Attributes:
        report: Entries of each level, and how scores agree with stars; see `FeedbackSettings.read`.

    Raises:
        InputError: The codes do not belong to the data or to the model, or there is no feedback.
    """

    def __init__(
        self,
        recommender: Recommender,
        split: Split,
        scid: Path,
        arguments: RealFeedbackArguments,
        num_rejected: int,
        folder: Path,
        progress: bool = True,
    ):
        self.recommender, self.arguments, self.num_rejected = recommender, arguments, num_rejected
        self.folder, self.progress = folder, progress
        self._feedback, self.report = arguments.read(split)
        self._sequences = split.train_sequences()
        self._item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        recommender.check_catalogue(split.items[ITEM_ID], self._item_codes)
        self._user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])

    @staticmethod
    def check(stages: Sequence[CurriculumStage]) -> None:
        """Refuse a stage that does not exist, before any work.

        Raises:
            InputError: There is one.
        """
        for stage in stages:
            rejected_levels(stage.difficulty)

    def make_rows(self, policy: Any, stage: CurriculumStage, seed: int) -> PreferenceRows:
        """The rows of a stage; what is generated on disk already is not generated again."""
        trie, prompts = self.recommender.search.trie, self.recommender.prompt_builder
        return build_feedback_rows(
            ConstrainedBeamSearch(policy, trie, prompts.vocabulary.item_tokens, self.arguments.candidates),
            prompts,
            self._sequences,
            self._item_codes,
            self._user_codes,
            self._feedback,
            stage.difficulty,
            stage.num_prompts,
            np.random.default_rng(seed),
            num_rejected=self.num_rejected,
            batch_size=self.arguments.decode_batch_size,
            folder=self.folder / "candidates" / stage.name,
            part_prompts=self.arguments.part_prompts,
            distributed=processes_differ(),
            progress=self.progress,
        )


def deciding_metric(wanted: str, split: Split) -> str:
    """What decides about a stage: the metric that is asked for, or for "auto" Recall@10 of liked validation targets,
    of all where no target is rated.

    Args:
        wanted: a metric, or "auto".
        split: whose validation targets decide.
    """
    if wanted != "auto":
        return wanted
    return LIKED_METRIC if split.histories("validation").ratings is not None else "recall@10"
