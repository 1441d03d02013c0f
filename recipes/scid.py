"""Token level: SC encoders, U2I alignment and RQ-VAEs (Eqs. 1 and 2) -> codes of every user and every item."""

import json
import shutil
from dataclasses import asdict, dataclass, field

import torch

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.encoders import Embeddings
from align3gr.pipeline import stage, stage_folder
from align3gr.recipe import parse, run_recipe
from align3gr.scid import (
    DualSCIDConfig,
    DualSCIDModel,
    DualSCIDTrainingConfig,
    FeatureTable,
    RQVAEConfig,
    assign_codes,
    save_codes,
    train_dual_scid,
)


@dataclass
class SCIDArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; codes and model appear in its folder scid."})
    item_codebook_sizes: list[int] = field(
        default_factory=lambda: [256, 256, 256], metadata={"help": "Codes at each level of an item's SCID."}
    )
    user_codebook_sizes: list[int] = field(
        default_factory=lambda: [256, 256, 256], metadata={"help": "Codes at each level of a user's SCID."}
    )
    codebook_dim: int = field(default=32, metadata={"help": "Width of a code vector."})
    semantic_weight: float = field(
        default=0.5, metadata={"help": "Scale of the semantic features against the collaborative ones."}
    )
    hidden_dim: int = field(default=256, metadata={"help": "Width of the SC encoders' hidden layer."})
    sc_dim: int = field(default=64, metadata={"help": "Width of the unified embeddings."})


def main() -> None:
    arguments, training = parse([SCIDArguments, DualSCIDTrainingConfig])
    data, embeddings = (stage_folder(arguments.run_dir, name) for name in ("prepare", "embed"))
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train")] + [embeddings]
    settings = asdict(arguments) | asdict(training)
    del settings["run_dir"]
    with stage(arguments.run_dir, "scid", settings, inputs, training.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        items = FeatureTable.from_embeddings(
            Embeddings.load(embeddings / "items.parquet", ITEM_ID, split.items[ITEM_ID])
        )
        users = FeatureTable.from_embeddings(
            Embeddings.load(embeddings / "users.parquet", USER_ID, split.users[USER_ID])
        )
        torch.manual_seed(training.seed)
        model = DualSCIDModel(
            DualSCIDConfig(
                *items.dims,
                *users.dims,
                semantic_weight=arguments.semantic_weight,
                hidden_dim=arguments.hidden_dim,
                sc_dim=arguments.sc_dim,
                item_rqvae=RQVAEConfig(
                    codebook_sizes=arguments.item_codebook_sizes, codebook_dim=arguments.codebook_dim
                ),
                user_rqvae=RQVAEConfig(
                    codebook_sizes=arguments.user_codebook_sizes, codebook_dim=arguments.codebook_dim
                ),
            )
        )
        history = train_dual_scid(model, users, items, split.train_sequences(), training, work.folder / "trainer")
        shutil.rmtree(work.folder / "trainer", ignore_errors=True)
        codes = assign_codes(model, users, items)
        model.save_pretrained(work.folder / "model")
        save_codes(work.folder / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID], codes.items)
        save_codes(work.folder / "user_codes.parquet", USER_ID, split.users[USER_ID], codes.users)
        report = {"auc": history.auc, **codes.health, "log": history.log}
        (work.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_recipe(main)
