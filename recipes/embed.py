"""Frozen encoders: semantic vectors from texts, collaborative vectors from the train split."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, PROFILE, TEXT, USER_ID
from align3gr.encoders import (
    Embeddings,
    EncoderSettings,
    cluster_lift,
    collaborative_encoder,
    load_vectors,
    text_encoder,
)
from align3gr.pipeline import stage, stage_folder
from align3gr.recipe import expand, parse, run_recipe


@dataclass
class EmbedArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the vectors appear in its folder embeddings."})


def embed(encoders: EncoderSettings, split: Split, folder: Path) -> tuple[Embeddings, Embeddings, dict[str, Any]]:
    """Vectors of items and users, and the report; the encoders are saved beside them."""
    items, users = Embeddings(), Embeddings()
    report: dict[str, Any] = {}
    texts, sequences = split.items[TEXT].to_list(), split.train_sequences()
    if encoders.semantic in ("tfidf", "sentence-transformers"):
        semantic = text_encoder(encoders)
        semantic.fit(texts)
        items.semantic, users.semantic = semantic.encode(texts), semantic.encode(split.users[PROFILE].to_list())
        semantic.save(folder / "semantic_encoder")
    if encoders.collaborative not in ("column", "none"):
        collaborative = collaborative_encoder(encoders)
        collaborative.fit(sequences, len(split.items))
        items.collaborative, users.collaborative = collaborative.item_vectors, collaborative.encode_users(sequences)
        collaborative.save(folder / "collaborative_encoder")
        if auc := getattr(collaborative, "auc", None):
            report["auc"] = auc
    chosen = [kind for kind in ("semantic", "collaborative") if getattr(encoders, kind) == "column"]
    for kind in chosen:
        # A table with both kinds names them.
        columns = (kind, "vector") if len(chosen) == 1 else (kind,)
        setattr(items, kind, load_vectors(expand(encoders.item_vectors), ITEM_ID, split.items[ITEM_ID], columns))
        setattr(users, kind, load_vectors(expand(encoders.user_vectors), USER_ID, split.users[USER_ID], columns))
    for kind in ("semantic", "collaborative"):
        for name, table in (("items", items), ("users", users)):
            if (vectors := getattr(table, kind)) is not None:
                report[f"{kind}_{name}"] = {"dim": vectors.shape[1], "zero": int((~vectors.any(1)).sum())}
        if (vectors := getattr(items, kind)) is not None and math.isfinite(lift := cluster_lift(vectors, sequences)):
            report[f"{kind}_cluster_lift"] = round(lift, 3)
    return items, users, report


def main() -> None:
    arguments, encoders = parse([EmbedArguments, EncoderSettings])
    data = stage_folder(arguments.run_dir, "prepare")
    # The split's targets are no input: nothing here may depend on them.
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train")]
    # What leaves the vectors as they are is no setting; a changed file is seen by its content, not by its name.
    no_settings = ("num_processes", "batch_size", "cache", "item_vectors", "user_vectors")
    settings = {k: v for k, v in asdict(encoders).items() if k not in no_settings and encoders.uses(k)}
    if encoders.semantic == "sentence-transformers" and expand(encoders.semantic_model).is_dir():
        inputs.append(expand(encoders.semantic_model))
    inputs += [expand(path) for path in (encoders.item_vectors, encoders.user_vectors) if path]
    with stage(arguments.run_dir, "embed", settings, inputs, encoders.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        items, users, report = embed(encoders, split, work.folder)
        items.save(work.folder / "items.parquet", ITEM_ID, split.items[ITEM_ID])
        users.save(work.folder / "users.parquet", USER_ID, split.users[USER_ID])
        (work.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_recipe(main)
