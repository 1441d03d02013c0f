"""The folders of one stage, of which a kill at any moment leaves nothing that is half done.

sft               the finished result, with its manifest
sft.partial       what is worked on now, or what an interrupted run left
sft.aside-<hash>  trained so far with other settings or inputs, of which the hash is made; goes on when these come
                  again
sft.old           the result that is being replaced, for the moment between two renamings
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align3gr.errors import InputError
from align3gr.finite_loss import NONFINITE

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_RESUMED = ("sft", "sp_dpo", "rf_dpo")  # stages that go on from their last checkpoint
_NAMED = 5  # differences that a message names


@dataclass(frozen=True)
class StageFolders:
    """The folders of a stage, for what it is to be made from now.

    Args:
        final: where the finished result stands.
        made_from: stage, settings, inputs and seed; all JSON.
    """

    final: Path
    made_from: Mapping[str, Any]

    @property
    def partial(self) -> Path:
        return self.final.with_name(self.final.name + ".partial")

    @property
    def finished(self) -> bool:
        """Whether the result is there already."""
        return _matches(self.final, self.made_from)

    @property
    def interrupted(self) -> Path | None:
        """What an interrupted run with the same settings and inputs left, None where there is nothing."""
        return next(
            (path for path in (self.partial, self._aside(self.made_from)) if _matches(path, self.made_from)), None
        )

    def settle(self) -> None:
        """Ends what a kill cut off between two renamings."""
        old = self.final.with_name(self.final.name + ".old")
        if _matches(self.partial, {**self.made_from, "finished": True}):
            self.put_in_place()
        elif self.final.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.replace(self.final)

    def check_free(self) -> None:
        """Refuses to touch what another process is writing.

        Raises:
            InputError: one is at work in the folder.
        """
        if self.partial.exists():
            with self.held():
                pass

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out of the folder that is worked on; the system lets go however this one ends.

        Raises:
            InputError: another process holds it.
        """
        descriptor = os.open(self.partial, os.O_RDONLY) if fcntl else None
        try:
            if descriptor is not None:
                with suppress(OSError):  # a file system without locks
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        raise InputError(
                            f"{self.partial}: another process is at work in it, perhaps one that outlived its "
                            "launcher; wait for it or stop it, or choose another run_dir"
                        ) from None
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def check_launch(self, launch: str) -> None:
        """Refuses to go on from the checkpoints of another launch: its batches were others.

        Raises:
            InputError: they are not those of this one.
        """
        folder = self.interrupted
        if folder is None or next(folder.rglob("checkpoint-*"), None) is None:
            return
        before = _read(folder).get("launch", launch)
        if before != launch:
            raise InputError(
                f"{folder}: its checkpoints are those of a launch with {before}, this one has {launch}; launch as "
                "before, or remove the folder to start again"
            )

    def begin(self, launch: str) -> None:
        """Takes up what was interrupted, or makes a fresh folder; what other settings have trained is put aside.

        Raises:
            InputError: the folder cannot be written.
        """
        interrupted = self.interrupted
        try:
            if interrupted != self.partial:
                self._clear()
                if interrupted is None:
                    self.partial.mkdir(parents=True)
                else:
                    interrupted.replace(self.partial)
            self._write_manifest({"launch": launch})
        except OSError as error:
            raise InputError(
                f"run_dir: cannot write {self.partial}: {error.strerror}; choose another run_dir"
            ) from error

    def finish(self, measured: Mapping[str, Any]) -> None:
        """Writes the manifest and gives the folder its name."""
        self._write_manifest({**measured, "finished": True})
        self.put_in_place()

    def put_in_place(self) -> None:
        """Gives a finished folder its name; after a kill in between, the next run does it."""
        old = self.final.with_name(self.final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.final.exists():
            self.final.replace(old)
        self.partial.replace(self.final)
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Removes what wrong input left behind, and the run folder if nothing else is in it; work stays."""
        if _has_work(self.partial):
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        with suppress(OSError):
            self.partial.parent.rmdir()

    def _clear(self) -> None:
        """Makes room for a fresh folder."""
        if not self.partial.exists():
            return
        before, aside = _read(self.partial), None
        if before.get("stage") in _RESUMED and _has_work(self.partial):
            aside = self._aside(before)
            shutil.rmtree(aside, ignore_errors=True)
            self.partial.replace(aside)
        else:
            shutil.rmtree(self.partial)
        if before:
            logger.warning(
                "%s: an interrupted run with other %s %s",
                self.partial,
                _differences(before, self.made_from),
                "left nothing to go on from and is removed"
                if aside is None
                else f"is put aside as {aside.name}; it goes on when these come again, delete it if they do not",
            )

    def _aside(self, made_from: Mapping[str, Any]) -> Path:
        kept = {name: made_from.get(name) for name in self.made_from}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
        return self.final.with_name(f"{self.final.name}.aside-{digest}")

    def _write_manifest(self, further: Mapping[str, Any]) -> None:
        path = self.partial / MANIFEST
        temporary = path.with_suffix(".tmp")
        text = json.dumps({**self.made_from, **further}, indent=2, sort_keys=True)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)


def _read(folder: Path) -> dict[str, Any]:
    """The manifest in a folder; empty where there is none, or none that can be read."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _matches(folder: Path, made_from: Mapping[str, Any]) -> bool:
    manifest = _read(folder)
    return all(manifest.get(name) == value for name, value in made_from.items())


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names of the settings and inputs that differ, and of what else does."""
    names = [name for name in now if before.get(name) != now[name] and not isinstance(now[name], Mapping)]
    for part in (name for name, value in now.items() if isinstance(value, Mapping)):
        one, other = before.get(part) or {}, now[part]
        names += sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    return ", ".join(names[:_NAMED]) + (" and more" if len(names) > _NAMED else "")


def _has_work(partial: Path) -> bool:
    """Whether a stage has left training to go on from, or a batch to look at."""
    return any(any(partial.rglob(name)) for name in ("checkpoint-*", "curriculum.json", f"{NONFINITE}*.json"))
