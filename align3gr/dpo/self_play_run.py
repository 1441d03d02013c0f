"""A self-play run put together: where candidates come from, rows of a stage, validation between the stages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.integrations import is_deepspeed_zero3_enabled

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.recommender import Recommender
from align3gr.decoding.search import ConstrainedSearch
from align3gr.decoding.stochastic_beams import StochasticBeamSearch
from align3gr.dpo.curriculum import stage_seed
from align3gr.dpo.curriculum_stage import CurriculumStage
from align3gr.dpo.difficulty import buckets_of, item_vectors
from align3gr.dpo.self_play import PreferenceRows, self_play_rows
from align3gr.dpo.self_play_arguments import SelfPlayArguments
from align3gr.evaluation import evaluate_policy, sample_users
from align3gr.scid.code_table import load_codes

MAIN_COLUMN = "seen_allowed"


class SelfPlay:
    """The rows of self-play stages, for `run_curriculum`.

    Args:
        recommender: Prompts and catalogue of the model.
        split: Its train split is played at; nothing else of it is looked at.
        scid: Folder of the token level.
        arguments: How candidates are generated and sorted.
        num_rejected: Most rejected a row.
        folder: Candidates are kept below it, in `candidates/<name of the stage>`.
        progress: Show progress bars.

    Raises:
        InputError: The codes do not belong to the data or to the model, or have no vectors where the difficulty needs
            some.
    """

    def __init__(
        self,
        recommender: Recommender,
        split: Split,
        scid: Path,
        arguments: SelfPlayArguments,
        num_rejected: int,
        folder: Path,
        progress: bool = True,
    ):
        self.recommender, self.arguments, self.num_rejected = recommender, arguments, num_rejected
        self.folder, self.progress = folder, progress
        self._sequences = split.train_sequences()
        self._item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        recommender.check_catalogue(split.items[ITEM_ID], self._item_codes)
        self._user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        measured_by_vectors = arguments.difficulty_measure == "cosine"
        self._vectors = item_vectors(scid, self._item_codes) if measured_by_vectors else None

    def check(self, stages: Sequence[CurriculumStage]) -> None:
        """Refuse a difficulty that does not exist, before any work.

        Raises:
            InputError: A stage has one.
        """
        for stage in stages:
            buckets_of(stage.difficulty, self._item_codes.shape[1], self.arguments.difficulty_measure)

    def generate(self, policy: Any, stages: Sequence[CurriculumStage], seed: int) -> None:
        """Generate the candidates of all stages with one policy, at the places where each stage will play.

        The offline pool: against a run without it only the policy that generates is another one.

        Args:
            policy: The model that the first stage starts from.
            stages: All stages of the run.
            seed: That of the run.
        """
        for number, stage in enumerate(stages):
            # What is generated stays on disk, where the stage will find it; the rows follow from it at once.
            self.make_rows(policy, stage, stage_seed(seed, number))

    def make_rows(self, policy: Any, stage: CurriculumStage, seed: int) -> PreferenceRows:
        """The rows of a stage; candidates that are on disk already are not generated again."""
        arguments = self.arguments
        return self_play_rows(
            self._search(policy, seed),
            self.recommender.prompt_builder,
            self._sequences,
            self._item_codes,
            self._user_codes,
            stage.difficulty,
            stage.num_prompts,
            np.random.default_rng(seed),
            num_rejected=self.num_rejected,
            exclude_known_positives=arguments.exclude_known_positives,
            batch_size=arguments.decode_batch_size,
            vectors=self._vectors,
            folder=self.folder / "candidates" / stage.name,
            part_prompts=arguments.part_prompts,
            distributed=processes_differ(),
            progress=self.progress,
        )

    def _search(self, policy: Any, seed: int) -> ConstrainedSearch:
        arguments = self.arguments
        catalogue = self.recommender.search.trie, self.recommender.prompt_builder.vocabulary.item_tokens
        if arguments.candidates_by == "beam":
            return ConstrainedBeamSearch(policy, *catalogue, arguments.candidates)
        return StochasticBeamSearch(policy, *catalogue, arguments.candidates, arguments.temperature, seed)


def policy_validation(
    recommender: Recommender,
    split: Split,
    scid: Path,
    users: int = 0,
    num_beams: int = 20,
    batch_size: int = 64,
    seed: int = 0,
) -> Callable[[Any], dict[str, float]]:
    """Recall and NDCG of a policy on validation targets, for `run_curriculum`.

    Args:
        recommender: Prompts and catalogue of the model.
        split: Its validation targets are recommended.
        scid: Folder of the token level.
        users: Size of a fixed sample of users; 0 takes all.
        num_beams: Beams of the search.
        batch_size: Prompts in one search.
        seed: Of the sample.

    Returns:
        A function of the policy. It gives the metrics of the column `seen_allowed` under their names, `recall@10`, and
        those of the others with their column, `discoveries/recall@10`; in a launch the same in every process.
    """
    questions = sample_users(split.histories("validation"), users, seed)
    item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
    user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
    prompts = recommender.prompt_builder

    def validate(policy: Any) -> dict[str, float]:
        search = ConstrainedBeamSearch(policy, recommender.search.trie, prompts.vocabulary.item_tokens, num_beams)
        columns = evaluate_policy(
            search, prompts, questions, item_codes, user_codes, batch_size=batch_size, distributed=processes_differ()
        )
        return {
            metric if column == MAIN_COLUMN else f"{column}/{metric}": value
            for column, metrics in columns.items()
            for metric, value in metrics.items()
        }

    return validate


def processes_differ() -> bool:
    """Whether processes may do different work: while ZeRO-3 divides a model, every forward is one of all of them."""
    return not is_deepspeed_zero3_enabled()
