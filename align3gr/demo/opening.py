"""From what is named on the command line to a session: the folder of a run, of a model, or a model of the Hub."""

from pathlib import Path

import torch

from align3gr.data import Split
from align3gr.decoding.recommender import ITEM_CODES_FILE, Recommender
from align3gr.demo.session import DemoSession
from align3gr.errors import InputError
from align3gr.pipeline import stage_folder

_NAMES = {"sft": "SFT", "sp_dpo": "SP-DPO", "rf_dpo": "RF-DPO"}
_AFTER = ("sp_dpo", "rf_dpo", "sft")  # whose model a run shows, the first that is finished


def open_demo(
    model: str | Path,
    before: str | Path | None = None,
    data: str | Path | None = None,
    num_beams: int = 20,
    device: str | torch.device | None = None,
) -> DemoSession:
    """Load what the page compares.

    Args:
        model: folder of a run, folder of a model, or a Hub id. Of a run it is the model of `sp_dpo`, else of `rf_dpo`,
            else of `sft`.
        before: a second model to show on its left; for a run the model of `sft` where it is None.
        data: folder of prepared data, for users to choose from; that of the run where it is None and `model` is a run
            or lies in one.
        num_beams: beams of the search, and the longest list.
        device: where to run; a GPU if there is one.

    Raises:
        InputError: a run without a model, a model or data that cannot be read, models or data that do not fit.
    """
    if num_beams < 1:
        raise InputError(f"--num_beams {num_beams}: expected at least 1")
    run = _run_folder(model)
    if data is None and run is not None and stage_folder(run, "prepare").is_dir():
        data = stage_folder(run, "prepare")
    if run is not None and not _is_model(model):
        stages = [name for name in _AFTER if _is_model(stage_folder(run, name) / "model")]
        if not stages:
            raise InputError(
                f"{model}: none of {', '.join(_AFTER)} is finished there; run one, or give a model folder"
            )
        model = stage_folder(run, stages[0]) / "model"
        if before is None and stages[0] != "sft" and "sft" in stages:
            before = stage_folder(run, "sft") / "model"
    shown = [path for path in (before, model) if path is not None]
    names = [_name(path) for path in shown]
    if len(set(names)) < len(names):
        names = [f"before: {before}", f"after: {model}"]
    split = None if data is None else Split.load(Path(data))
    models = {
        name: Recommender.from_pretrained(path, device=device, num_beams=num_beams)
        for name, path in zip(names, shown, strict=True)
    }
    return DemoSession(models, split)


def _run_folder(model: str | Path) -> Path | None:
    """The run that is named, or that the folder of a model lies in."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    if not _is_model(folder):
        return folder
    stage = folder.resolve().parent
    return stage.parent if stage.name in _NAMES else None


def _is_model(folder: str | Path) -> bool:
    return (Path(folder) / ITEM_CODES_FILE).is_file() and (Path(folder) / "prompt.json").is_file()


def _name(model: str | Path) -> str:
    path = Path(model)
    stage = path.parent.name if path.name == "model" else path.name
    return _NAMES.get(stage, stage)
