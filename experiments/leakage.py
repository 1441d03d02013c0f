"""What leaks are worth. NOT part of the package; no recipe has an option that does this, and its results are none.

Two leaks that a generative recommender can have without anybody noticing, each beside the same run without it:

- the token level is trained on all pairs of users and items, test targets included; in a second variant the frozen
  collaborative vectors are, too;
- the chosen items of self-play preference training are the test targets.

    python experiments/leakage.py --run_dir runs/synthetic --recipes recipes/synthetic --output runs/leakage

makes `runs/leakage/table.md` from a run that has its data and embeddings. `--leak codes` makes the one leaking stage
alone in `--run_dir`, for `align3gr audit`, which has to find it. Leaking stages write the targets that they read into
their manifests, and a file LEAKING beside them says what they are. See docs/leakage.md.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from align3gr.ablation import AblationArguments, Cell, write_table
from align3gr.ablation.judging import judge
from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, ITEMS, RATING, RATINGS, TIMESTAMP, TIMESTAMPS, USER_ID
from align3gr.decoding import Recommender
from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.dpo import (
    CurriculumStage,
    PreferenceRows,
    SelfPlayArguments,
    SoftmaxDPOConfig,
    build_preference_rows,
    generate_candidates,
    policy_validation,
    read_stages,
    run_curriculum,
)
from align3gr.errors import InputError
from align3gr.pipeline import MANIFEST, content_hash, lineage_hash, option_words, options_hash, stage, stage_folder
from align3gr.recipe import parse, run_recipe, training_settings
from align3gr.scid import load_codes

LEAKS = ("codes", "codes-and-vectors", "preferences")
ROWS: dict[str, dict[str, Any]] = {
    "honest": {},
    "codes of all pairs": {"against": "honest"},
    "codes and vectors of all pairs": {"against": "honest"},
    "SP-DPO": {"stage": "sp_dpo", "after": "honest", "against": "honest"},
    "SP-DPO, test targets chosen": {"stage": "sp_dpo", "after": "honest", "against": "SP-DPO"},
}
LEAK_OF_ROW = dict(zip([name for name in ROWS if name not in ("honest", "SP-DPO")], LEAKS, strict=True))
SPLITS = ("validation", "test")
# Name of a stage -> its YAML file.
Files = Mapping[str, Path]


def all_events(split: Split) -> Split:
    """The split with its targets behind the train items: what nothing before an evaluation may ever see."""
    train = split.train
    for name in SPLITS:
        targets = getattr(split, name).select(
            USER_ID, pl.col(ITEM_ID).alias("item"), pl.col(TIMESTAMP).alias("time"), pl.col(RATING).alias("rate")
        )
        both = train.join(targets, on=USER_ID, how="left", maintain_order="left")
        added = {ITEMS: "item", TIMESTAMPS: "time", RATINGS: "rate"}
        # A user without a target keeps the lists as they are.
        longer = [
            pl.when(pl.col("item").is_null()).then(pl.col(lists)).otherwise(pl.concat_list(lists, value)).alias(lists)
            for lists, value in added.items()
        ]
        train = both.with_columns(longer).select(USER_ID, *added)
    return replace(split, train=train, reviews=None, spool=None)


def leaking_codes(run_dir: Path, files: Files, seed: int, vectors: bool) -> None:
    """The stage `scid` as its recipe runs it, on all events in place of those of the train split."""
    data, embeddings = (stage_folder(run_dir, name) for name in ("prepare", "embed"))
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train", *SPLITS)]
    inputs += [embeddings / "items.parquet", embeddings / "users.parquet", files["scid"]]
    leak = {"leak": "codes-and-vectors" if vectors else "codes"}
    with stage(run_dir, "scid", leak, inputs, seed) as work:
        if work is None:
            return
        scratch = work.folder / "all_events"
        all_events(Split.load(data)).save(stage_folder(scratch, "prepare"))
        if vectors:
            launch("embed", files, scratch)
        else:
            # Without its manifest: it was made from the train split, which is another one here.
            shutil.copytree(embeddings, stage_folder(scratch, "embed"), ignore=shutil.ignore_patterns(MANIFEST))
        launch("scid", files, scratch, seed=seed)
        shutil.copytree(
            stage_folder(scratch, "scid"), work.folder, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True
        )
        shutil.rmtree(scratch)
        mark(work.folder)


def leaking_preferences(run_dir: Path, files: Files, seed: int) -> None:
    """The stage `sp_dpo` as its recipe runs it, with the test targets as the chosen items."""
    words = ["--config", str(files["sp_dpo"]), "--run_dir", str(run_dir), "--seed", str(seed)]
    arguments, training = parse([SelfPlayArguments, SoftmaxDPOConfig], words)
    stages = read_stages(arguments.stages, arguments.num_prompts)
    data, scid, sft = (stage_folder(run_dir, name) for name in ("prepare", "scid", "sft"))
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train", *SPLITS)]
    inputs += [scid / "item_codes.parquet", scid / "user_codes.parquet", sft / "model"]
    settings = {"leak": "preferences"} | asdict(arguments) | training_settings(training)
    del settings["run_dir"]
    with stage(run_dir, "sp_dpo", settings, inputs, seed) as work:
        if work is None:
            return
        split = Split.load(data)
        recommender = Recommender.from_pretrained(sft / "model", num_beams=arguments.num_beams, is_trainable=True)
        rows = RowsOfTargets(recommender, split, scid, arguments, training.num_rejected)
        validate = policy_validation(
            recommender,
            split,
            scid,
            arguments.validation_users,
            arguments.num_beams,
            arguments.decode_batch_size,
            seed,
        )
        run_curriculum(
            recommender.model,
            recommender.tokenizer,
            stages,
            rows,
            validate,
            work.folder,
            training,
            arguments.metric,
            arguments.min_rows,
            keep_policies=True,
            likelihood=recommender.search.likelihood,
        )
        recommender.save_pretrained(work.folder / "model")
        mark(work.folder)


class RowsOfTargets:
    """Rows of a stage of self-play at the very questions that the evaluation asks, with their answers as chosen."""

    def __init__(
        self, recommender: Recommender, split: Split, scid: Path, arguments: SelfPlayArguments, num_rejected: int
    ) -> None:
        self.recommender, self.arguments, self.num_rejected = recommender, arguments, num_rejected
        self.questions = split.histories("test")
        self.item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        self.user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])

    def __call__(self, policy: Any, stage: CurriculumStage, seed: int) -> PreferenceRows:
        rng, prompts = np.random.default_rng(seed), self.recommender.prompt_builder
        size = min(stage.num_prompts, len(self.questions))
        asked = self.questions.subset(rng.choice(len(self.questions), size, replace=False))
        texts = [
            prompts.prompt(self.user_codes[user], self.item_codes[history])
            for user, history in zip(asked.user_rows, asked.recent, strict=True)
        ]
        catalogue = self.recommender.search.trie, prompts.vocabulary.item_tokens
        search = ConstrainedBeamSearch(policy, *catalogue, self.arguments.candidates)
        rows = build_preference_rows(
            texts,
            generate_candidates(search, texts, self.arguments.decode_batch_size),
            asked.targets,
            self.item_codes,
            prompts.vocabulary.item_ids(self.item_codes),
            stage.difficulty,
            rng,
            self.num_rejected,
            asked.histories if self.arguments.exclude_known_positives else None,
            asked.recent,
        )
        for row in rows.rows:
            row["user_row"] = int(asked.user_rows[row.pop("prompt")])
        return rows


def launch(name: str, files: Files, run_dir: Path, **options: Any) -> None:
    """Runs a stage of the package, as a person would."""
    words = ["--config", str(files[name]), "--run_dir", str(run_dir), *option_words(options)]
    if status := subprocess.call([sys.executable, "-m", "align3gr.cli", name, *words], env=os.environ):
        raise InputError(f"{run_dir}: stage '{name}' ended with status {status}; its message is above")


def mark(folder: Path) -> None:
    """Says in the folder itself what it is."""
    text = "Made by experiments/leakage.py with the test targets. Nothing that is measured of it is a result.\n"
    (folder / "LEAKING").write_text(text, encoding="utf-8")


def make_leak(leak: str, run_dir: Path, files: Files, seed: int) -> None:
    """One leaking stage in a run folder with data; its embeddings are made where they are missing."""
    if leak == "preferences":
        return leaking_preferences(run_dir, files, seed)
    if not stage_folder(run_dir, "embed").exists():
        launch("embed", files, run_dir)
    leaking_codes(run_dir, files, seed, vectors=leak == "codes-and-vectors")


def run_cell(cell: Cell, arguments: AblationArguments, files: Files) -> None:
    """Trains and judges one cell in a run folder of its own."""
    run_dir, leak = Path(arguments.run_dir), LEAK_OF_ROW.get(cell.row)
    cell.folder.mkdir(parents=True, exist_ok=True)
    shared = dict.fromkeys(("prepare", "embed"), run_dir)
    if cell.after is not None:
        shared |= dict.fromkeys(("scid", "sft"), cell.after.folder)
    for name, source in shared.items():
        link = stage_folder(cell.folder, name)
        link.unlink(missing_ok=True)
        link.symlink_to(stage_folder(source, name).resolve(), target_is_directory=True)
    begun = time.perf_counter()
    for name in ("scid", "sft") if cell.after is None else ("sp_dpo",):
        if leak is not None and name != "sft":
            make_leak(leak, cell.folder, files, cell.seed)
        else:
            launch(name, files, cell.folder, seed=cell.seed)
    trained = time.perf_counter()
    found: dict[str, Any] = {"key": cell.key, "row": cell.row, "seed": cell.seed, "train_seconds": trained - begun}
    found |= judge(arguments, cell) | {"judge_seconds": time.perf_counter() - trained}
    partial = cell.folder / "cell.json.partial"
    partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    partial.replace(cell.folder / "cell.json")


def run_all(run_dir: Path, files: Files, output: Path, seeds: Sequence[int], only: Sequence[str] = ()) -> None:
    """The wanted cells that are missing, and the table after each."""
    base = {name: str(files[name]) for name in ("sft", "sp_dpo")}
    arguments = AblationArguments(str(run_dir), output.name, base, ROWS, list(seeds), split="test")
    shared = [content_hash(stage_folder(run_dir, "prepare")), lineage_hash(stage_folder(run_dir, "embed"))]
    shared += [options_hash(files[name]) for name in ("embed", "scid", "sft")]
    cells: dict[tuple[str, int], Cell] = {}
    for seed in seeds:
        for row, options in ROWS.items():
            after = cells.get((options.get("after", ""), seed))
            hashes = shared if after is None else [*shared, options_hash(files["sp_dpo"])]
            key = hashlib.sha256(json.dumps([hashes, row, seed]).encode()).hexdigest()
            folder = output / "".join(c if c.isalnum() else "-" for c in row.lower()) / f"seed-{seed}"
            cells[row, seed] = Cell(row, seed, folder, key, options.get("stage", "sft"), after)
    output.mkdir(parents=True, exist_ok=True)
    mark(output)
    for cell in cells.values():
        if cell.result is None and cell.row in (only or ROWS):
            print(f"{cell.row}, seed {cell.seed}", flush=True)
            run_cell(cell, arguments, files)
            write_table(output, arguments, list(cells.values()))
    write_table(output, arguments, list(cells.values()))
    print((output / "table.md").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description="What leaks are worth; nothing here is a result.")
    parser.add_argument("--run_dir", type=Path, required=True, help="run with data, and embeddings for the table")
    parser.add_argument(
        "--recipes", type=Path, required=True, help="folder of the stages' files, as recipes/synthetic"
    )
    parser.add_argument("--output", type=Path, help="folder of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the table (default: 0)")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=[], help="rows of the table to run now")
    parser.add_argument("--preferences", type=Path, help="another file of the stage sp_dpo")
    parser.add_argument("--leak", choices=LEAKS, help="in place of the table: make this leaking stage in run_dir")
    parser.add_argument("--seed", type=int, default=0, help="seed of that stage (default: 0)")
    arguments = parser.parse_args()
    if (arguments.leak is None) == (arguments.output is None):
        raise InputError("leakage: give --output for the table or --leak for one stage, one of them")
    files = {name: arguments.recipes / f"{name}.yaml" for name in ("embed", "scid", "sft", "sp_dpo")}
    if arguments.preferences is not None:
        files["sp_dpo"] = arguments.preferences
    if arguments.leak is not None:
        make_leak(arguments.leak, arguments.run_dir, files, arguments.seed)
    else:
        run_all(arguments.run_dir, files, arguments.output, arguments.seeds, arguments.only)


if __name__ == "__main__":
    run_recipe(main)
