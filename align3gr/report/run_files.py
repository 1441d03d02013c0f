"""The files of a run, finished or not, as its report reads them."""

import json
from pathlib import Path
from typing import Any

from align3gr.errors import InputError
from align3gr.pipeline import FOLDERS, MODEL_STAGES, STAGES, read_manifest, stage_folder
from align3gr.stage_folders import MANIFEST


class RunFiles:
    """What a run has made so far.

    Args:
        run_dir: folder of the run.

    Raises:
        InputError: it is no folder, or none of its stages is finished.
    """

    def __init__(self, run_dir: str | Path):
        self.folder = Path(run_dir)
        if not self.folder.is_dir():
            raise InputError(f"{run_dir}: no such folder; give the folder of a run, such as runs/yelp")
        self.manifests = {name: self._manifest(name) for name in STAGES if (self.stage(name) / MANIFEST).is_file()}
        if not self.manifests:
            raise InputError(
                f"{run_dir}: holds no finished stage ({', '.join(FOLDERS[name] for name in STAGES)}); "
                "give the folder of a run, such as runs/yelp"
            )

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return stage_folder(self.folder, name)

    def state(self, name: str) -> str:
        """`finished`, `interrupted`, which a stage at work is too, or `not run`."""
        if name in self.manifests:
            return "finished"
        folder = self.stage(name)
        return "interrupted" if folder.with_name(folder.name + ".partial").is_dir() else "not run"

    def json(self, stage: str, *names: str) -> Any:
        """A JSON file of a finished stage; None where there is none, as in runs of older versions.

        Raises:
            InputError: it cannot be read.
        """
        path = self.stage(stage).joinpath(*names)
        if stage not in self.manifests or not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON ({error}); run stage '{stage}' again") from None

    def last_model(self) -> tuple[str, Path] | None:
        """The last finished stage that leaves a model, and the model's folder."""
        return next(
            ((name, self.stage(name) / "model") for name in MODEL_STAGES if (self.stage(name) / "model").is_dir()),
            None,
        )

    def _manifest(self, name: str) -> dict[str, Any]:
        try:
            return read_manifest(self.stage(name))
        except ValueError as error:
            raise InputError(
                f"{self.stage(name) / MANIFEST}: not valid JSON ({error}); run stage '{name}' again"
            ) from None
