"""Token level: SC encoders, U2I alignment and RQ-VAEs (Eqs. 1 and 2) -> codes of every user and every item."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.encoders import Embeddings
from align3gr.pipeline import stage, stage_folder
from align3gr.recipe import expand, parse, run_recipe
from align3gr.scid import (
    DualSCIDModel,
    DualSCIDTrainingConfig,
    FeatureTable,
    PinnedCodes,
    SCIDSettings,
    assign_codes,
    hashed_user_codes,
    keep_encoders,
    measure_quality,
    read_code_table,
    ready_codes,
    save_codebook_sizes,
    save_codes,
    train_dual_scid,
)
from align3gr.tracking import ReportArguments, StageTracking

logger = logging.getLogger("align3gr.scid")
KINDS = ("semantic", "collaborative")


@dataclass(kw_only=True)
class SCIDArguments(ReportArguments):
    run_dir: str = field(metadata={"help": "Folder of the run; codes and model appear in its folder scid."})


def train_codes(
    settings: SCIDSettings,
    training: DualSCIDTrainingConfig,
    split: Split,
    embeddings: Path,
    folder: Path,
    tracking: StageTracking,
) -> tuple[np.ndarray, np.ndarray | None, list[int], dict[str, Any]]:
    """Trains and saves the model; codes of items and users, the sizes of the item levels, and what is reported."""
    items, users = (
        FeatureTable.from_embeddings(Embeddings.load(embeddings / f"{name}.parquet", column, table[column]))
        for name, column, table in (("items", ITEM_ID, split.items), ("users", USER_ID, split.users))
    )
    previous = PinnedCodes()
    if settings.previous:
        earlier = expand(settings.previous)
        previous.items = read_code_table(earlier / "item_codes.parquet", ITEM_ID).lookup(split.items[ITEM_ID])
        previous.users = read_code_table(earlier / "user_codes.parquet", USER_ID).lookup(split.users[USER_ID])
    torch.manual_seed(training.seed)
    model = DualSCIDModel(settings.model_config(len(items), items.dims, users.dims))
    history = train_dual_scid(
        model,
        users,
        items,
        split.train_sequences(),
        training,
        folder / "trainer",
        previous if settings.previous else None,
        tracking,
    )
    tracking.close()
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    codes = assign_codes(model, users, items, settings.collisions, previous, settings.pin)
    model.save_pretrained(folder / "model")
    keep_encoders(embeddings, folder)
    sizes = list(model.item_rqvae.config.codebook_sizes)
    if codes.items.shape[1] > len(sizes):
        sizes.append(int(codes.items[:, -1].max()) + 1)
    report = {"auc": history.auc, "raw_auc": history.raw_auc, **codes.report(), "log": history.log}
    return codes.items, codes.users, sizes, report


def main() -> None:
    arguments, settings, training = parse([SCIDArguments, SCIDSettings, DualSCIDTrainingConfig])
    data, embeddings = (stage_folder(arguments.run_dir, name) for name in ("prepare", "embed"))
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train")]
    imported = expand(settings.item_codes) if settings.item_codes else None
    if imported is not None:
        inputs.append(imported)
    elif not settings.ready:
        inputs += [embeddings / "items.parquet", embeddings / "users.parquet"]
        inputs += [folder for kind in KINDS if (folder := embeddings / f"{kind}_encoder").is_dir()]
    if settings.previous:
        inputs += [expand(settings.previous) / f"{side}_codes.parquet" for side in ("item", "user")]
    values = settings.recorded() | asdict(training)
    with stage(arguments.run_dir, "scid", values, inputs, training.seed) as work:
        if work is None:
            return
        if idle := settings.without_effect(training):
            logger.warning("without effect on this kind of codes: %s", ", ".join(idle))
        split = Split.load(data)
        user_codes = None
        if settings.ready:
            item_codes, sizes, report = ready_codes(settings, split, imported, training.seed)
        else:
            tracking = StageTracking(arguments.report_to, arguments.run_dir, "scid", work.folder, settings=values)
            item_codes, user_codes, sizes, report = train_codes(
                settings, training, split, embeddings, work.folder, tracking
            )
        users, user_sizes = split.users[USER_ID], settings.user_codebook_sizes
        if settings.user_buckets:
            user_codes, user_sizes = hashed_user_codes(split, settings.user_buckets), [settings.user_buckets]
        save_codes(work.folder / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID], item_codes)
        save_codes(
            work.folder / "user_codes.parquet",
            USER_ID,
            users,
            np.zeros((len(users), 0), dtype=np.int64) if user_codes is None else user_codes,
        )
        save_codebook_sizes(work.folder / "codebooks.json", sizes, [] if user_codes is None else user_sizes)
        report = {"prefix_lift": measure_quality(item_codes, split.train_sequences(), sizes).prefix_lift, **report}
        (work.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_recipe(main)
