"""Generative systems in the study: stages of our own pipeline with the files of one paper, in folders of the study.

A fit is a chain of stages, such as `scid`, `sft`, each run by its recipe in a process of its own with the YAML file
that the study names for it. A stage's folder is named by a hash of all that it depends on, so trials that differ in
options of a later stage share the earlier ones, and a killed study goes on inside a fit, from the last checkpoint.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml

from align3gr.data import Split
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.errors import InputError
from align3gr.pipeline import (
    MANIFEST,
    changed_input,
    content_hash,
    lineage_hash,
    named_files,
    options_hash,
    read_manifest,
    stage_folder,
)
from align3gr.scid.code_table import load_codes
from align3gr.stage_processes import link_stage, run_stage

logger = logging.getLogger(__name__)

# What a fit may consist of; the stages before are those of the prepared run, shared by all.
TRAINED_STAGES = ("scid", "sft", "sp_dpo", "rf_dpo")
SHARED_STAGES = ("prepare", "embed")
DATA_FILES = ("items", "users", "train", "validation", "reviews")
# The stage whose options stand in a setting without the name of a stage in front.
DEFAULT_STAGE = "sft"
SECONDS_FILE = "cpu_seconds.json"
# Options that a system itself adds to a stage; it may write files into the folder that it is given.
StageOptions = Callable[[str, Path], Mapping[str, Any]]


@dataclass(frozen=True)
class StageChain:
    """The stages of one generative system, and where they run.

    Args:
        split: the data.
        run_dir: a prepared run, whose folders `data` and `embeddings` all fits share.
        files: YAML file of each stage; `scid` and `sft` are there.
        folder: where the stages run; of this system alone.
        accelerate_config: launches the stages that can run in several processes through accelerate with this.

    Raises:
        InputError: a stage of the prepared run is not there.
    """

    split: Split
    run_dir: Path
    files: Mapping[str, Path]
    folder: Path
    accelerate_config: str | None = None

    def __post_init__(self) -> None:
        for name in SHARED_STAGES:
            if not (folder := stage_folder(self.run_dir, name)).is_dir():
                raise InputError(f"{folder}: not found; generative systems share it, run the stage '{name}' first")

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Hash of all that a fit may read: of the data's content, of what made the embeddings, of the files' options.

        Nothing of the test split is among it.
        """
        return self._shared_inputs | {f"{stage}.yaml": self._file_hash(path) for stage, path in self.files.items()}

    @staticmethod
    def _file_hash(path: Path) -> str:
        """Hash of a stage's options; of what they name, too, where they name files."""
        named = named_files(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        if not named:
            return options_hash(path)
        return hashlib.sha256("\n".join([options_hash(path), *map(lineage_hash, named)]).encode()).hexdigest()

    @cached_property
    def _shared_inputs(self) -> dict[str, str]:
        data, embeddings = (stage_folder(self.run_dir, name) for name in SHARED_STAGES)
        paths = {f"{name}.parquet": data / f"{name}.parquet" for name in DATA_FILES}
        hashes = {name: content_hash(path) for name, path in paths.items() if path.exists()}
        return hashes | {"embeddings": lineage_hash(embeddings)}

    def train(self, setting: Mapping[str, Any], seed: int, added: StageOptions) -> "TrainedChain":
        """Runs what is not finished yet.

        Args:
            setting: options that differ from the files; those of a stage other than `sft` as `stage.option`.
            seed: of all stages.
            added: further options of a stage.

        Raises:
            InputError: a stage ended with an error; its message was printed.
        """
        options = by_stage(setting)
        key, seconds, memory = json.dumps(self._shared_inputs, sort_keys=True), 0.0, 0
        finished = {name: stage_folder(self.run_dir, name) for name in SHARED_STAGES}
        for stage in (name for name in TRAINED_STAGES if name in self.files):
            parts = [key, stage, options.get(stage, {}), seed, self.inputs[f"{stage}.yaml"]]
            key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
            run_dir = self.folder / f"{stage}-{key}"
            run_dir.mkdir(parents=True, exist_ok=True)
            for name, source in finished.items():
                link_stage(stage_folder(run_dir, name), source)
            if not _is_finished(run_dir, stage):
                self._run(stage, run_dir, options.get(stage, {}) | dict(added(stage, run_dir)), seed)
            finished[stage] = stage_folder(run_dir, stage)
            seconds += json.loads((run_dir / SECONDS_FILE).read_text(encoding="utf-8"))[stage]
            memory = max(memory, read_manifest(finished[stage])["peak_memory_mb"])
        return TrainedChain(run_dir, finished[stage] / "model", seconds, memory)

    def _run(self, stage: str, run_dir: Path, options: Mapping[str, Any], seed: int) -> None:
        before = children_seconds()
        if status := run_stage(
            stage, self.files[stage], run_dir, {"seed": seed} | dict(options), self.accelerate_config
        ):
            raise InputError(f"{run_dir}: stage '{stage}' ended with status {status}; its message is above")
        seconds = round(children_seconds() - before, 2)
        (run_dir / SECONDS_FILE).write_text(json.dumps({stage: seconds}) + "\n", encoding="utf-8")

    def drop(self) -> None:
        """Removes all that the fits of this system left."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class TrainedChain:
    """A finished fit.

    Attributes:
        run_dir: a run folder with all stages of the fit.
        model: the model folder of the last stage.
        seconds: CPU seconds of the stages; where a stage was killed and taken up, of its last part.
        peak_memory_mb: of the largest stage.
    """

    run_dir: Path
    model: Path
    seconds: float
    peak_memory_mb: int


class GenerativeSystem:
    """A language model over SCIDs, trained by a chain of stages; its lists come from the constrained beam search.

    Args:
        chain: the stages.
        seed: of all stages.
        num_beams: beam of the search, at least the length of the lists.
        setting: options of the stages that differ from their files.
    """

    def __init__(self, chain: StageChain, seed: int, num_beams: int = 20, **setting: Any) -> None:
        self.chain, self.seed, self.num_beams, self.setting = chain, seed, num_beams, setting

    def stage_options(self, stage: str, run_dir: Path) -> Mapping[str, Any]:
        """Options that a system itself adds to a stage; it may write files that they name into `run_dir`."""
        return {}

    def fit(
        self, train_sequences: Sequence[np.ndarray], num_items: int, validate: Callable[[], float] | None = None
    ) -> Self:
        """Runs the stages.

        Args:
            train_sequences: for each user the int64 item indices; the stages read the same from the prepared run.
            num_items: size of the catalogue.
            validate: not asked here; how long a stage trains is an option of the stage. [`BIGRec`] asks it.
        """
        self.trained = self.chain.train(self.setting, self.seed, self.stage_options)
        return self

    def chosen(self) -> dict[str, Any]:
        """What the fit itself chose on validation."""
        return {}

    def lists(self, questions: EvaluationSet, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`(questions, k)` item indices, best first, with items of the history and without, from one search."""
        from align3gr.decoding import Recommender
        from align3gr.evaluation import rank_policy

        split, scid = self.chain.split, stage_folder(self.trained.run_dir, "scid")
        item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        recommender = Recommender.from_pretrained(self.trained.model, num_beams=max(self.num_beams, k))
        prompts = recommender.prompt_builder
        ranked = rank_policy(recommender.search, prompts, questions, item_codes, user_codes, k)
        return ranked.seen_allowed, ranked.seen_masked


def by_stage(setting: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A setting's options by stage.

    >>> by_stage({"learning_rate": 0.001, "scid.codebook_dim": 16})
    {'sft': {'learning_rate': 0.001}, 'scid': {'codebook_dim': 16}}
    """
    options: dict[str, dict[str, Any]] = {}
    for name, value in setting.items():
        stage, _, option = name.rpartition(".")
        options.setdefault(stage or DEFAULT_STAGE, {})[option] = value
    return options


def stage_chains(
    split: Split, data: Path, generative: Mapping[str, Any], folder: Path, accelerate_config: str | None = None
) -> dict[str, StageChain]:
    """The chain of each generative system of a study.

    Args:
        split: the data.
        data: its folder, `data` of a run whose embeddings all systems share.
        generative: for each system the files of its stages; see `StudySettings.generative`.
        folder: where the chains run, each in a folder of its own.
        accelerate_config: see [`StageChain`].

    Raises:
        InputError: the folder of the data is not that of a run, or a file is not there.
    """
    run_dir = data.parent
    if generative and stage_folder(run_dir, "prepare") != data:
        raise InputError(f"data: got {data}, expected the folder data of a run, beside which its embeddings stand")
    chains = {}
    for name, entry in generative.items():
        files = {stage: Path(entry[stage]) for stage in TRAINED_STAGES if stage in entry}
        for stage, path in files.items():
            if not path.is_file():
                raise InputError(f"generative: {name}, {stage}: {path} not found; give the path of a YAML file")
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        chains[name] = StageChain(split, run_dir, files, folder / slug, accelerate_config)
    return chains


def _is_finished(run_dir: Path, stage: str) -> bool:
    """Whether the stage is there, made from the very files that it would be made from now."""
    folder = stage_folder(run_dir, stage)
    return (run_dir / SECONDS_FILE).is_file() and (folder / MANIFEST).is_file() and changed_input(folder) is None


def children_seconds() -> float:
    """CPU seconds of the processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system
