"""Tuning on validation and final runs on test, cell by cell; every finished cell is a file and is not computed twice.

A cell is one fit: a trial (one system with one setting, judged on validation) or a final run (the chosen setting with
one seed, judged on test). Its file is named by a hash of everything that it depends on, so a killed study goes on
where it was, a second one computes nothing, and one with more trials, seeds or systems computes what is new.
"""

import hashlib
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from align3gr.baselines.generative import GenerativeSystem, StageChain, children_seconds
from align3gr.baselines.settings import TUNED_K, StudySettings
from align3gr.baselines.systems import draw_trials
from align3gr.baselines.vectors import VectorBaseline, rank_by_vectors
from align3gr.data import Split
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.data.schema import TEXT
from align3gr.errors import InputError
from align3gr.evaluation import FullEvaluation, reported_ks, sample_users, three_columns
from align3gr.progress import ProgressBar
from align3gr.record import CellFiles, keep_cell, make_record, restore_cell

logger = logging.getLogger(__name__)

# To be raised when a change of the code changes what cells hold.
CELL_VERSION = 1
# Seed of trials; final runs have their own.
_TRIAL_SEED = 0
_MEGABYTE = 1024


class Study:
    """Runs and remembers the cells of one data set.

    Args:
        split: the data.
        inputs: content hash of each file of the split.
        settings: which systems, and how.
        folder: where cells are kept.
        chains: the stages of each generative system of the settings.
        record: where finished cells are kept too, in small files, and looked for; None where they are not.

    Attributes:
        computed: cells that this object computed rather than found.
    """

    def __init__(
        self,
        split: Split,
        inputs: Mapping[str, str],
        settings: StudySettings,
        folder: Path,
        chains: Mapping[str, StageChain] | None = None,
        record: Path | None = None,
    ) -> None:
        self.split, self.inputs, self.settings, self.folder = split, dict(inputs), settings, folder
        self.chains, self.record = dict(chains or {}), record
        self.computed = 0

    def run(self, progress: Callable[[], None] = lambda: None) -> None:
        """Computes every cell that is missing, of the systems of `only` where it names some, one after the other.

        Args:
            progress: called after each cell that was computed.

        Raises:
            InputError: the folder cannot be made, or a system's library is not installed.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"run_dir: cannot write {self.folder}: {error.strerror}; choose another run_dir"
            ) from error
        if self.record is not None:
            make_record(self.record)
        systems = self._run_now
        with ProgressBar(self._fits(), "study, at most", "fit") as bar:

            def computed() -> None:
                bar.update()
                progress()

            for system in systems:
                while (setting := self.next_trial(system)) is not None:
                    self._compute(self._key(system, "trial", setting, _TRIAL_SEED))
                    computed()
            # Seed by seed, so that an unfinished study has a figure for every system first.
            for place in range(max(len(self.seeds(system)) for system in systems)):
                for system in systems:
                    for seed in self.seeds(system)[place : place + 1]:
                        if self.final_run(system, seed) is None:
                            self._compute(self._key(system, "final", self.chosen(system)["setting"], seed))
                            computed()

    def _fits(self) -> int:
        """Cells that are missing; fewer where the seconds for tuning end sooner."""
        missing = 0
        for system in self._run_now:
            if self.next_trial(system) is not None:
                settings = draw_trials(self.settings.system(system).space, self.settings.trials)
                missing += len(settings) - len(self.trials(system)) + len(self.seeds(system))
            else:
                missing += sum(self.final_run(system, seed) is None for seed in self.seeds(system))
        return missing

    @property
    def _run_now(self) -> list[str]:
        return [name for name in self.settings.systems if name in (self.settings.only or self.settings.systems)]

    def trials(self, system: str) -> list[dict[str, Any]]:
        """The finished trials that count: within the number and the seconds of the settings, in order."""
        found: list[dict[str, Any]] = []
        for setting in draw_trials(self.settings.system(system).space, self.settings.trials):
            if sum(cell["seconds"] for cell in found) >= self.settings.tuning_seconds:
                break
            cell = self._read(self._key(system, "trial", setting, _TRIAL_SEED))
            if cell is None:
                break
            found.append(cell)
        return found

    def next_trial(self, system: str) -> dict[str, Any] | None:
        """The setting to try next; None where tuning is finished."""
        done = self.trials(system)
        settings = draw_trials(self.settings.system(system).space, self.settings.trials)
        spent = sum(cell["seconds"] for cell in done)
        return None if len(done) == len(settings) or spent >= self.settings.tuning_seconds else settings[len(done)]

    def chosen(self, system: str) -> dict[str, Any]:
        """The best finished trial, the earliest among equals; without tuning the default setting, of value None."""
        if self.settings.trials == 0:
            return {"setting": draw_trials(self.settings.system(system).space, 1)[0], "value": None}
        return max(self.trials(system), key=lambda cell: cell["value"])

    def seeds(self, system: str) -> list[int]:
        """Seeds of the final runs; one where nothing is random."""
        return self.settings.seeds if self.settings.system(system).seeded else [_TRIAL_SEED]

    def final_run(self, system: str, seed: int) -> dict[str, Any] | None:
        """A finished final run of the chosen setting; None where it is missing or tuning is not finished."""
        if self.next_trial(system) is not None:
            return None
        return self._read(self._key(system, "final", self.chosen(system)["setting"], seed))

    def per_user(self) -> pl.DataFrame:
        """The ranks of every user in every finished final run, as the evaluation writes them."""
        found = [
            pl.read_parquet(self._path(cell, "parquet"))
            for system in self.settings.systems
            for seed in self.seeds(system)
            if (cell := self.final_run(system, seed)) is not None
        ]
        return pl.concat(found) if found else FullEvaluation(self.split).per_user()

    def missing(self) -> list[str]:
        """What has still to be computed, a line a system."""
        return [f"{system}: {line}" for system in self.settings.systems if (line := self._missing_of(system))]

    def _missing_of(self, system: str) -> str:
        if self.next_trial(system) is not None:
            return f"{len(self.trials(system))} of at most {self.settings.trials} trials done, no final run"
        seeds = [str(seed) for seed in self.seeds(system) if self.final_run(system, seed) is None]
        return f"final runs of seed {', '.join(seeds)}" if seeds else ""

    @cached_property
    def _validation(self) -> EvaluationSet:
        return sample_users(self.split.histories("validation"), self.settings.validation_users, _TRIAL_SEED)

    def _key(self, system: str, kind: str, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Everything that a cell depends on."""
        made = self.settings.system(system)
        names = ["select_on", "select_by", "validation_users"]
        names += ["max_epochs"] if made.in_epochs else []
        names += ["num_beams"] if made.generative else []
        unseen = ("test",) if kind == "trial" else ()
        protocol = {name: getattr(self.settings, name) for name in names}
        protocol |= {"k": max(self.settings.k, made.least_k)} if kind == "final" else {}
        inputs = self.inputs | (self.chains[system].inputs if made.generative else {})
        return {
            "version": CELL_VERSION,
            "system": system,
            "kind": kind,
            "setting": dict(setting),
            "seed": seed,
            "protocol": protocol,
            "inputs": {name: digest for name, digest in inputs.items() if Path(name).stem not in unseen},
        }

    @cached_property
    def _asked(self) -> pl.DataFrame:
        return FullEvaluation(self.split).asked(self.split.histories("test"))

    def _files(self, key: Mapping[str, Any], folder: Path) -> CellFiles:
        """Of a cell below the folder of the study, or that of its record."""
        result = folder / self._path(key, "json").name
        return CellFiles(result, result.with_suffix(".parquet") if key["kind"] == "final" else None)

    def _share(self, key: Mapping[str, Any]) -> None:
        """Copies a finished cell into the record, or out of it, where one of both has it."""
        if self.record is None:
            return
        cell, kept = self._files(key, self.folder), self._files(key, self.record)
        if cell.exist and not kept.exist:
            keep_cell(cell, kept)
        elif kept.exist and not cell.exist:
            restore_cell(kept, cell, self._asked)

    def _path(self, key: Mapping[str, Any], suffix: str) -> Path:
        names = ("version", "system", "kind", "setting", "seed", "protocol", "inputs")
        text = json.dumps({name: key[name] for name in names}, sort_keys=True)
        system = "".join(letter if letter.isalnum() else "-" for letter in key["system"])
        return self.folder / f"{system}-{key['kind']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.{suffix}"

    def _read(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        self._share(key)
        if not self._files(key, self.folder).exist:
            return None
        # What is missing or was damaged is computed again.
        with suppress(OSError, ValueError):
            return json.loads(self._path(key, "json").read_text(encoding="utf-8"))
        return None

    def _compute(self, key: dict[str, Any]) -> None:
        """Fits, judges, and writes the cell: its JSON file last, so that a killed one is not there."""
        system, kind = key["system"], key["kind"]
        logger.info("%s: %s %s, seed %d", system, kind, key["setting"], key["seed"])
        watched = _reset_peak_memory()
        started, before = time.process_time(), children_seconds()
        made = self.settings.system(system)
        options = {"seed": key["seed"]} if made.seeded else {}
        options |= {"epochs": self.settings.max_epochs} if made.in_epochs else {}
        options |= {"item_texts": self.split.items[TEXT].to_list()} if made.reads_texts else {}
        options |= {"chain": self.chains[system], "num_beams": self.settings.num_beams} if made.generative else {}
        baseline = made.make(**key["setting"], **options)
        cell = dict(key)
        sequences, num_items = self.split.train_sequences(), len(self.split.items)
        if isinstance(baseline, VectorBaseline | GenerativeSystem):
            baseline.fit(sequences, num_items, lambda: self._value(self._judge(baseline)))
        else:
            baseline.fit(sequences, num_items)
        stages = baseline.trained.seconds if made.generative else 0
        cell["fit_seconds"] = round(time.process_time() - started + stages, 2)
        curve = getattr(baseline, "curve", [])
        if curve:
            cell |= {"epochs": len(curve), "best_epoch": int(np.argmax(curve)) + 1, "curve": curve}
        if kind == "trial":
            cell["validation"] = self._judge(baseline)
            cell["value"] = self._value(cell["validation"])
        else:
            k = key["protocol"]["k"]
            evaluation = FullEvaluation(self.split, ks=reported_ks(k, k))
            questions = self.split.histories("test")
            name = f"{system}, seed {key['seed']}" if made.seeded else system
            evaluation.add(name, questions, *_lists(baseline, questions, k))
            cell["results"] = evaluation.results[name]
            evaluation.per_user().write_parquet(self._path(key, "parquet"))
        cell["seconds"] = round(time.process_time() - started + children_seconds() - before, 2)
        cell["peak_memory_mb"] = _peak_memory_mb(watched)
        if made.generative:
            cell["peak_memory_mb"] = max(cell["peak_memory_mb"], baseline.trained.peak_memory_mb)
            cell |= baseline.chosen()
        path = self._path(key, "json")
        path.with_suffix(".tmp").write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
        if self.record is not None:
            keep_cell(self._files(key, self.folder), self._files(key, self.record))
        self.computed += 1
        if made.generative and not self.settings.keep_models and not self._missing_of(system):
            self.chains[system].drop()

    def _judge(self, baseline: Any) -> dict[str, dict[str, float]]:
        questions = self._validation
        lists = _lists(baseline, questions, TUNED_K)
        columns = three_columns(*lists, questions.targets, questions.histories, (5, TUNED_K))
        return {name: columns[name] for name in ("seen_allowed", "seen_masked", "discoveries")}

    def _value(self, columns: Mapping[str, Mapping[str, float]]) -> float:
        return float(np.mean([columns[name][self.settings.select_by] for name in self.settings.select_on]))


def _lists(baseline: Any, questions: EvaluationSet, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of k items with items of the history, and without."""
    if isinstance(baseline, VectorBaseline):
        return rank_by_vectors(baseline, questions, k)
    if isinstance(baseline, GenerativeSystem):
        return baseline.lists(questions, k)
    allowed, masked = (baseline.rank(questions.histories, k, exclude_seen=seen) for seen in (False, True))
    return allowed, masked


def _reset_peak_memory() -> bool:
    """Starts the kernel's measurement of peak memory anew; False where it cannot (not Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return True
    return False


def _peak_memory_mb(watched: bool) -> int:
    """Peak resident memory since the reset, or of the whole process where there was none."""
    if watched:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return round(int(status.split("VmHWM:")[1].split()[0]) / _MEGABYTE)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (_MEGABYTE**2 if sys.platform == "darwin" else _MEGABYTE))
