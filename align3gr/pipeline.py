"""Stages: folders that appear whole or not at all, know what made them, and are not made twice.

A stage works in `<folder>.partial` and renames it when all is done. Beside its results stands `manifest.json`:
settings, the content hash of every input, seed, versions, time and peak memory. A stage whose settings and inputs are
those of the manifest is finished; a partial folder with the same settings and inputs is taken up again. One with
others is never gone on from: what it has trained is put aside, with a line that says so.
"""

import hashlib
import json
import logging
import platform
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from align3gr.errors import InputError
from align3gr.masking import words_without_tokens
from align3gr.processes import description, launched
from align3gr.stage_folders import MANIFEST, StageFolders

logger = logging.getLogger(__name__)

STAGES = ("prepare", "embed", "scid", "sft", "sp_dpo", "rf_dpo", "evaluate")
# Folder of each stage below the run folder, and of what stands beside the chain: feedback is made of a log.
FOLDERS = {
    "prepare": "data",
    "embed": "embeddings",
    "scid": "scid",
    "sft": "sft",
    "sp_dpo": "sp_dpo",
    "feedback": "feedback",
    "rf_dpo": "rf_dpo",
    "evaluate": "evaluation",
}
# Stages that can be launched in several processes.
MODEL_STAGES = ("rf_dpo", "sp_dpo", "sft")  # what leaves a model, the last one first
SEVERAL_PROCESSES = ("sft", "sp_dpo", "rf_dpo", "evaluate")
_PACKAGES = ("align3gr", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True)
class Stage:
    """A stage that is being worked on.

    Attributes:
        name: such as "sft".
        folder: where results are written now, `<final folder>.partial`.
        resumed: whether the folder holds what an interrupted run left.
    """

    name: str
    folder: Path
    resumed: bool


def stage_folder(run_dir: str | Path, name: str) -> Path:
    """Where a stage's results stand, such as `runs/yelp/sft`."""
    return Path(run_dir) / FOLDERS[name]


def start_model(run_dir: str | Path, start_from: str) -> Path:
    """The model folder that a stage of preference training starts from.

    Args:
        run_dir: folder of the run.
        start_from: name of an earlier stage, or a model folder.

    Raises:
        InputError: the folder is the result of the stage itself, which its own training would replace.
    """
    if start_from in STAGES:
        return stage_folder(run_dir, start_from) / "model"
    folder = Path(start_from)
    if folder.resolve().is_relative_to(stage_folder(run_dir, "rf_dpo").resolve()):
        raise InputError(
            f"start_from: {start_from} is what this stage made before and would replace; copy the served model to "
            "another folder and start from there"
        )
    return folder


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options of a stage as words of a command line; a dictionary, such as a stage of a curriculum, as in a file.

    >>> option_words({"tasks": ["sequential", "item_text"], "user_scid": False})
    ['--tasks', 'sequential', 'item_text', '--user_scid', 'false']

    Raises:
        InputError: an option is null, for which a command line has no word.
    """
    words: list[str] = []
    for name, value in options.items():
        if value is None:
            raise InputError(f"{name}: got null, for which a command line has no word; leave it out")
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(item) if isinstance(item, bool | dict) else str(item) for item in values)]
    return words


def named_files(options: Mapping[str, Any]) -> list[Path]:
    """Files and folders that options of a stage name as templates, base model or codes to keep; not Hub ids."""
    named = (options.get(name) for name in ("templates", "base_model", "previous"))
    return [Path(name) for name in named if isinstance(name, str) and Path(name).exists()]


@contextmanager
def stage(
    run_dir: str | Path,
    name: str,
    settings: Mapping[str, Any],
    inputs: Sequence[Path],
    seed: int | None = None,
) -> Iterator[Stage | None]:
    """Runs the block once for these settings and inputs; yields None where that has been done already.

    ```python
    with stage("runs/yelp", "embed", settings, [Path("runs/yelp/data/train.parquet")]) as work:
        if work is not None:
            ...  # write into work.folder
    ```

    Only the first process of a launch renames and writes the manifest; the others wait for it.

    Args:
        run_dir: folder of the run.
        name: one of `FOLDERS`.
        settings: everything that changes the result; must be JSON.
        inputs: files or folders that are read.
        seed: recorded in the manifest.

    Raises:
        InputError: an input does not exist, an earlier stage is out of date, the stage runs in one process only,
            the processes of the launch do not know of each other, the interrupted run was launched otherwise,
            another run is writing the stage, or the run folder cannot be made.
    """
    process = launched()
    if process.num_processes > 1 and name not in SEVERAL_PROCESSES:
        raise InputError(f"{name}: runs in one process, got {process.num_processes}; launch it without accelerate")
    run_dir = Path(run_dir)
    made_from = {
        "stage": name,
        "settings": json.loads(json.dumps(settings, default=str)),
        "inputs": dict(zip(_input_names(run_dir, inputs), map(content_hash, inputs), strict=True)),
        "seed": seed,
    }
    folders = StageFolders(stage_folder(run_dir, name), made_from)
    _check_earlier_stages(run_dir, name)
    if process.is_main_process:
        folders.check_free()
        folders.settle()
    process.wait_for_everyone()
    if folders.finished:
        logger.info("%s: finished already, nothing changed", name)
        yield None
        return
    resumed = folders.interrupted is not None
    folders.check_launch(description())
    process.wait_for_everyone()
    with ExitStack() as held:
        if process.is_main_process:
            folders.begin(description())
            held.enter_context(folders.held())
            logger.info("%s: %s", name, "goes on where it was interrupted" if resumed else "started")
        process.wait_for_everyone()
        started = time.perf_counter()
        try:
            yield Stage(name, folders.partial, resumed)
        except InputError:
            if process.is_main_process:
                folders.discard()
            raise
        process.wait_for_everyone()
        if process.is_main_process:
            folders.finish(_measured(time.perf_counter() - started, resumed, process.num_processes))
            logger.info("%s: finished in %.0f s", name, time.perf_counter() - started)
        process.wait_for_everyone()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a finished stage.

    Raises:
        InputError: the folder holds no finished stage.
    """
    path = Path(folder, MANIFEST)
    if not path.is_file():
        raise InputError(f"{folder}: holds no finished stage (no {MANIFEST}); run the stage that makes it first")
    return json.loads(path.read_text(encoding="utf-8"))


def public_settings(value: Any) -> Any:
    """Without what others must not see: secrets, and where files lie on this machine."""
    if isinstance(value, Mapping):
        return {key: public_settings(part) for key, part in value.items() if key != "hub_token"}
    if isinstance(value, list):
        return [public_settings(part) for part in value]
    if isinstance(value, str) and value.startswith(("/", "~", "../")):
        return Path(value).name
    return value


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files (manifest apart).

    Raises:
        InputError: there is nothing at the path.
    """
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST):
            digest.update(f"{file.relative_to(path)}\0{content_hash(file)}\n".encode())
        return digest.hexdigest()
    if not path.is_file():
        raise InputError(f"{path}: not found; run the stage that makes it first")
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def lineage_hash(path: Path) -> str:
    """Hash of what made a finished stage, which is the same on every machine.

    Floating-point results differ between machines in their last bits, so a hash of the content of `embeddings/` or
    `scid/` is not found again on another one. In this hash are the stage's name, settings and seed, and each input: by
    the lineage of its stage where it is a result of an earlier stage of the same run, by its content where it lies in
    `data/` or outside the run. Versions, times and paths of this machine are not. What was changed by hand after it
    was made is not seen.

    Args:
        path: folder of a stage. Of anything else, such as a copy without its manifest, it is the `content_hash`.

    Raises:
        InputError: there is nothing at the path.
    """
    if not _is_finished_stage(path):
        return content_hash(path)
    manifest, run_dir = read_manifest(path), path.resolve().parent
    made_from = {
        "stage": manifest["stage"],
        "settings": public_settings(manifest["settings"]),
        "seed": manifest.get("seed"),
        "inputs": {name: _input_lineage(run_dir, name, digest) for name, digest in manifest["inputs"].items()},
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _input_lineage(run_dir: Path, name: str, digest: str) -> str:
    """Of an input of a finished stage; the recorded hash where its stage is not there as it was then."""
    earlier = name.partition("/")[0]
    if earlier == FOLDERS["prepare"] or earlier not in FOLDERS.values() or not _is_finished_stage(run_dir / earlier):
        return digest
    path = run_dir / name
    return lineage_hash(run_dir / earlier) if path.exists() and content_hash(path) == digest else digest


def _is_finished_stage(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and read_manifest(folder).get("finished", False)


def options_hash(path: Path) -> str:
    """Hash of the options of a YAML file: comments, their order and where the run stands change nothing.

    Raises:
        InputError: there is nothing at the path.
    """
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError:  # the stage that reads it says what is wrong
        options = None
    if not isinstance(options, dict):
        return content_hash(path)
    kept = public_settings({name: value for name, value in options.items() if name != "run_dir"})
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def changed_input(folder: Path) -> Path | None:
    """An input of a finished stage that is now another one than the stage was made from; None where there is none."""
    for path, digest in read_manifest(folder)["inputs"].items():
        if (folder.parent / path).exists() and content_hash(folder.parent / path) != digest:
            return folder.parent / path
    return None


def _check_earlier_stages(run_dir: Path, name: str) -> None:
    """Refuses to build on a stage that was made from other files than those that are there now."""
    for earlier in STAGES[: STAGES.index(name)] if name in STAGES else ():
        folder = stage_folder(run_dir, earlier)
        if (folder / MANIFEST).is_file() and (changed := changed_input(folder)) is not None:
            raise InputError(f"{folder}: was made from another {changed}; run stage '{earlier}' again first")


def _input_names(run_dir: Path, paths: Sequence[Path]) -> list[str]:
    """The path below the run folder, or the name alone of what lies elsewhere, with a number where it stands twice."""
    names: list[str] = []
    for path in paths:
        name = path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else path.name
        before = sum(name == other.partition("#")[0] for other in names)
        names.append(f"{name}#{before + 1}" if before else name)
    return names


def _measured(seconds: float, resumed: bool, processes: int) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "seconds": round(seconds, 1),
        "resumed": resumed,
        "processes": processes,
        "peak_memory_mb": round(peak),
        "command": _command(sys.argv),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def _command(arguments: Sequence[str]) -> str:
    """What was typed, without secrets."""
    return shlex.join([f"recipes/{Path(arguments[0]).name}", *words_without_tokens(arguments[1:])])
