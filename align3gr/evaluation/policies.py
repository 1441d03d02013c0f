"""Saved models judged one after the other, each set of weights once."""

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align3gr.data.evaluation_set import EvaluationSet
from align3gr.decoding.batch_size import BatchSize
from align3gr.decoding.history_cache import HistoryCache
from align3gr.decoding.rankings import Rankings
from align3gr.decoding.recommender import Recommender
from align3gr.decoding.saved_model import open_model
from align3gr.evaluation.evaluator import rank_policy
from align3gr.evaluation.full_evaluation import FullEvaluation
from align3gr.processes import launched

NUM_LATEST = 5
LATEST_THEN = "five latest, then"
WITH_CACHE = " + history cache"


def read_curriculum(folder: Path) -> dict[str, Any] | None:
    """The record of a stage of preference training, None where it was not run.

    Args:
        folder: of the stage.
    """
    path = folder / "curriculum.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def stage_policies(title: str, folder: Path) -> dict[str, Path]:
    """Row of the tables -> folder of the policy: those of the parts of a preference stage, and the best of them.

    Args:
        title: such as "SP-DPO".
        folder: of the stage; nothing where it was not run.
    """
    curriculum = read_curriculum(folder)
    if curriculum is None:
        return {}
    policies = {
        f"{title} {done['name']}": folder / f"{number}-{done['name']}" / "policy"
        for number, done in enumerate(curriculum["stages"])
        if done["decision"] != "skipped"
    }
    return policies | {f"{title}, best stage on validation": folder / "model"}


def judge_policies(
    evaluation: FullEvaluation,
    policies: Mapping[str, tuple[Path, EvaluationSet]],
    recommender: Recommender,
    item_codes: np.ndarray,
    user_codes: np.ndarray | None,
    k: int,
    batch_size: BatchSize = "auto",
    with_history: Collection[str] = (),
    history_cache: HistoryCache | None = None,
) -> None:
    """Rank the questions with each policy; the processes of a launch share the users, the main one alone judges.

    A policy of the same weights as an earlier one, asked the same questions, is not run: where every preference stage
    was rolled back, the policy that is left is the fine-tuned model.

    Args:
        evaluation: takes the results, in the main process.
        policies: row of the tables -> folder of the model, and its questions.
        recommender: the model that all policies come from, with its catalogue and prompts.
        item_codes: `(items, levels)`.
        user_codes: `(users, levels)`, or None for prompts without users.
        k: length of the lists.
        batch_size: prompts in one search, or "auto"; see `generate_rankings`.
        with_history: rows beside which there is a second one, with five items of the history in front (see
            [`latest_then`]), and with `history_cache` a third one, mixed with it.
        history_cache: users' returns, with its share.
    """
    main = launched().is_main_process
    ranked: dict[tuple[str, bytes], str] = {}
    done: dict[str, tuple[Rankings, float]] = {}
    for name, (folder, questions) in policies.items():
        first = ranked.setdefault((weights_hash(folder), questions.user_rows.tobytes()), name)
        if first == name:
            begun = time.perf_counter()
            model = search = None  # the one before is let go, so that never three are in memory
            model = open_model(folder)
            model.to(recommender.model.device)
            prompts, search = recommender.prompt_builder, recommender.search.with_model(model)
            ranking = rank_policy(
                search, prompts, questions, item_codes, user_codes, k, batch_size, progress=main, distributed=True
            )
            done[name] = ranking, time.perf_counter() - begun
            if main:
                evaluation.add(name, questions, ranking.seen_allowed, ranking.seen_masked, seconds=done[name][1])
        elif main:
            evaluation.add_same(name, first)
        if main and name in with_history:
            ranking, seconds = done[first]
            unseen = ranking.seen_masked
            fused = latest_then(questions.histories, unseen, NUM_LATEST)
            evaluation.add(f"{LATEST_THEN} {name}", questions, fused, unseen, seconds=seconds)
            if history_cache is not None:
                begun = time.perf_counter()
                mixed, _ = history_cache.mix(ranking.seen_allowed, ranking.seen_allowed_scores, questions.histories)
                seconds += time.perf_counter() - begun
                evaluation.add(f"{name}{WITH_CACHE}", questions, mixed, unseen, seconds=seconds)


def latest_then(histories: Sequence[np.ndarray], unseen: np.ndarray, num_latest: int) -> np.ndarray:
    """The latest distinct items of each history, then a list without items of the history.

    Users come back to what they know; where a model does not show it, this does.

    Args:
        histories: item indices, oldest first.
        unseen: lists in which no item of the history stands, -1 where there is no further item.
            Shape: `(users, k)`.
        num_latest: items of the history at the top.

    Returns:
        Shape: `(users, k)`.
    """
    k = unseen.shape[1]
    rankings = np.full_like(unseen, -1)
    for row, history in enumerate(histories):
        latest = list(dict.fromkeys(np.asarray(history)[::-1].tolist()))[:num_latest]
        items = np.concatenate([np.array(latest, dtype=unseen.dtype), unseen[row][unseen[row] >= 0]])[:k]
        rankings[row, : len(items)] = items
    return rankings


def weights_hash(folder: str | Path) -> str:
    """Content hash of the weights in a `save_pretrained` folder, whatever lies beside them.

    Folders of one hash hold the same weights; the same weights cut into other shards have another hash.
    """
    digest = hashlib.sha256()
    folder = Path(folder)
    for file in sorted([*folder.glob("*model*.safetensors"), *folder.glob("*model*.bin")]):
        with file.open("rb") as content:
            digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
