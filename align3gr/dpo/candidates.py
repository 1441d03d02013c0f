"""What the policy would recommend at places of the train split: the raw material of self-play.

Generation is the long part of a stage. It runs in parts of a fixed size, each made of batches that do not depend on
how many processes there are, so a killed generation goes on from its last part, in as many processes as one likes, to
the same candidates.

    <folder>/settings.json   what the candidates were generated from
             000000.npy      items of the first prompts, best (or first drawn) first; (prompts, candidates) int32
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate.utils import broadcast_object_list

from align3gr.decoding.rankings import generate_rankings
from align3gr.decoding.search import ConstrainedSearch
from align3gr.errors import InputError
from align3gr.processes import in_shares, launched
from align3gr.progress import ProgressBar
from align3gr.scid.prompts import PromptBuilder

logger = logging.getLogger(__name__)

# The work that a kill can cost; enough that batches of like lengths can be made.
PART_PROMPTS = 512
SETTINGS_FILE = "settings.json"


class TrainPositions(NamedTuple):
    """Places in train sequences to predict: item `positions[i]` of the sequence `user_rows[i]`; both (prompts,)."""

    user_rows: np.ndarray
    positions: np.ndarray


def sample_train_positions(
    train_sequences: Sequence[np.ndarray], num_prompts: int, rng: np.random.Generator, min_history: int = 1
) -> TrainPositions:
    """Draw positions of train sequences without repetition, each equally likely; all of them if there are fewer.

    Args:
        train_sequences: Item indices of each user's train split, in time order. Nothing else is ever looked at.
        num_prompts: Positions to draw.
        rng: Source of randomness.
        min_history: Items that must stand before a position.
    """
    lengths = np.array([max(len(sequence) - min_history, 0) for sequence in train_sequences], dtype=np.int64)
    total = int(lengths.sum())
    drawn = rng.choice(total, size=min(num_prompts, total), replace=False)
    ends = np.cumsum(lengths)
    user_rows = np.searchsorted(ends, drawn, side="right")
    return TrainPositions(user_rows, drawn - (ends - lengths)[user_rows] + min_history)


def generate_candidates(
    search: ConstrainedSearch,
    prompts: Sequence[Sequence[int]],
    batch_size: int = 16,
    folder: str | Path | None = None,
    part_prompts: int = PART_PROMPTS,
    distributed: bool = False,
    progress: bool = True,
) -> np.ndarray:
    """Items that the policy gives for each prompt: the beams of a beam search, or the draws of a stochastic one.

    In a launch of several processes all must make the call; each gets all candidates.

    Args:
        search: The search with the policy; the length of its lists is the number of candidates.
        prompts: Token ids of each prompt.
        batch_size: Prompts in one search.
        folder: Keeps what is generated, part by part, and goes on from what is there; seen by all processes.
        part_prompts: Prompts in one part.
        distributed: Share the batches out over the processes. Otherwise each generates everything, as it must while
            ZeRO-3 divides the model, where a forward is one of all processes.
        progress: Show a progress bar with the time left, in the first process.

    Returns:
        (prompts, candidates) int64 item indices, -1 where there are fewer.

    Raises:
        InputError: The folder holds candidates of another call.
    """
    process = launched()
    about = _about(search, prompts, batch_size, part_prompts)
    done = 0 if folder is None else _open(Path(folder), about, process)
    parts = [range(start, min(start + part_prompts, len(prompts))) for start in range(0, len(prompts), part_prompts)]
    generated = []
    sharing = process.num_processes if distributed else 1
    known, shown = sum(map(len, parts[:done])), progress and process.is_main_process
    with ProgressBar(len(prompts), "self-play", "prompt", shown, known) as bar:
        for number, part in enumerate(parts):
            path = None if folder is None else Path(folder) / f"{number:06d}.npy"
            if number < done:
                generated.append(np.load(path))  # type: ignore[arg-type]  # parts are done in a folder only
                continue
            generated.append(_part(search, [prompts[row] for row in part], batch_size, distributed, bar, sharing))
            if path is not None and process.is_main_process:
                _write(path, generated[-1])
    process.wait_for_everyone()
    return np.concatenate([np.empty((0, search.num_beams), np.int32), *generated]).astype(np.int64)


def _part(
    search: ConstrainedSearch,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    distributed: bool,
    bar: Any,
    sharing: int,
) -> np.ndarray:
    """Candidates of the prompts of one part, (prompts, candidates) int32; batches hold prompts of like lengths."""
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def rank(rows: np.ndarray) -> np.ndarray:
        ranked = generate_rankings(
            search, [prompts[row] for row in rows], batch_size, k=search.num_beams, progress=False
        ).seen_allowed.astype(np.int32)
        bar.update(len(rows) * sharing)  # the other processes are about as far
        return ranked

    ranked = in_shares(batches, rank) if distributed else [rank(rows) for rows in batches]
    items = np.empty((len(prompts), search.num_beams), dtype=np.int32)
    items[np.concatenate(batches)] = np.concatenate(ranked)
    return items


def _about(
    search: ConstrainedSearch, prompts: Sequence[Sequence[int]], batch_size: int, part_prompts: int
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(np.asarray([len(prompt), *prompt], dtype=np.int64).tobytes())
    about = {"prompts": digest.hexdigest(), "batch_size": batch_size, "part_prompts": part_prompts}
    about |= {"search": type(search).__name__, "candidates": search.num_beams, "widths": list(search.widths)}
    about["normalizer"] = search.normalizer
    # Of a search by draws.
    return about | {name: getattr(search, name) for name in ("temperature", "seed") if hasattr(search, name)}


def _open(folder: Path, about: dict[str, Any], process: Any) -> int:
    """Makes the folder or takes it up; gives the number of parts that are done, the same in every process."""
    found: list[Any] = [None]
    if process.is_main_process:
        path = folder / SETTINGS_FILE
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if before is None:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, (json.dumps(about, indent=2) + "\n").encode())
        for left in folder.glob("*.partial"):
            left.unlink()
        done = 0
        while (folder / f"{done:06d}.npy").is_file():
            done += 1
        changed = [name for name in about if before is not None and before.get(name) != about[name]]
        found = [(done, changed)]
    done, changed = broadcast_object_list(found)[0]
    if changed:
        raise InputError(
            f"{folder}: holds candidates of another call (other {', '.join(changed)}); repeat that call, or remove it"
        )
    if done:
        logger.info("%s: going on with %d parts", folder, done)
    return done


def _write(path: Path, items: np.ndarray) -> None:
    # Under a name of this process first: a worker that outlives its killed launch spoils no part of the next one.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, items)
    partial.replace(path)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def prompts_of(
    builder: PromptBuilder,
    user_codes: np.ndarray | None,
    item_codes: np.ndarray,
    user_rows: Sequence[int] | np.ndarray,
    histories: Sequence[np.ndarray],
) -> list[list[int]]:
    """Prompts of users with their histories, as item indices; without users where `user_codes` is None."""
    return [
        builder.prompt(None if user_codes is None else user_codes[user], item_codes[history])
        for user, history in zip(user_rows, histories, strict=True)
    ]


def in_first_order(values: np.ndarray) -> np.ndarray:
    """Distinct values in the order of their first appearance.

    >>> in_first_order(np.array([3, 1, 3, 2, 1])).tolist()
    [3, 1, 2]
    """
    return values[np.sort(np.unique(values, return_index=True)[1])]
