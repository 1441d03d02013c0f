"""Training and judging the cells of a table."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from align3gr.ablation.cells import CELL_FILE, CONTROLS, AblationArguments, Cell, table_cells
from align3gr.ablation.table import write_table
from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, PROFILE, USER_ID
from align3gr.errors import InputError
from align3gr.pipeline import MANIFEST, stage_folder
from align3gr.scid.code_table import load_codes, save_codes

logger = logging.getLogger(__name__)

KS = (5, 10, 20)


def run_table(arguments: AblationArguments) -> list[Cell]:
    """Runs the cells that are missing, and writes the table after each of them."""
    table = list(table_cells(arguments))
    folder = Path(arguments.run_dir) / arguments.name
    missing = [cell for cell in table if cell.result is None and cell.row in (arguments.only or arguments.rows)]
    times: list[float] = []
    for number, cell in enumerate(missing):
        left = f", about {np.mean(times) * (len(missing) - number) / 60:.0f} minutes left" if times else ""
        logger.info("cell %d of %d: %s, seed %d%s", number + 1, len(missing), cell.row, cell.seed, left)
        started = time.perf_counter()
        _run_cell(arguments, cell)
        times.append(time.perf_counter() - started)
        write_table(folder, arguments, table)
    write_table(folder, arguments, table)
    return table


def _run_cell(arguments: AblationArguments, cell: Cell) -> None:
    options = dict(arguments.rows[cell.row])
    control = options.pop("control", None)
    options.pop("against", None)
    _share_inputs(Path(arguments.run_dir), cell, control)
    started = time.perf_counter()
    words = ["--config", arguments.base, "--run_dir", str(cell.folder), "--seed", str(cell.seed), *_words(options)]
    launcher = ["--accelerate_config", arguments.accelerate_config] if arguments.accelerate_config else []
    command = [sys.executable, "-m", "align3gr.cli", "sft", *launcher, *words]
    if status := subprocess.call(command, env=os.environ):
        raise InputError(
            f"{cell.row}, seed {cell.seed}: the training ended with status {status}; its message is above"
        )
    trained = time.perf_counter() - started
    metrics = _judge(arguments, cell)
    result = {"key": cell.key, "row": cell.row, "seed": cell.seed, "options": arguments.rows[cell.row]}
    result |= {"train_seconds": trained, "judge_seconds": time.perf_counter() - started - trained, "metrics": metrics}
    partial = cell.folder / f"{CELL_FILE}.partial"
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not arguments.keep_models:
        shutil.rmtree(stage_folder(cell.folder, "sft"))
    partial.replace(cell.folder / CELL_FILE)


def _share_inputs(run_dir: Path, cell: Cell, control: str | None) -> None:
    """Links to the run's data and codes; a control has a changed copy of one of them."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    for name in ("prepare", "scid"):
        source, target = stage_folder(run_dir, name), stage_folder(cell.folder, name)
        if target.is_symlink():
            target.unlink()
        shutil.rmtree(target, ignore_errors=True)
        if control != {"prepare": CONTROLS[1], "scid": CONTROLS[0]}[name]:
            target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=True)
            continue
        # Without its manifest the copy is nobody's stage, so nothing is compared with what made the original.
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(MANIFEST))
        _permute(target, name, np.random.default_rng(cell.seed))


def _permute(folder: Path, name: str, rng: np.random.Generator) -> None:
    """Gives each user the code, or the profile, of another one."""
    if name == "prepare":
        users = pl.read_parquet(folder / "users.parquet")
        users.with_columns(users[PROFILE].gather(rng.permutation(len(users)))).write_parquet(folder / "users.parquet")
        return
    path = folder / "user_codes.parquet"
    ids = pl.read_parquet(path)[USER_ID]
    codes = load_codes(path, USER_ID, ids)
    save_codes(path, USER_ID, ids, codes[rng.permutation(len(codes))])


def _judge(arguments: AblationArguments, cell: Cell) -> dict[str, dict[str, float]]:
    from align3gr.decoding import Recommender
    from align3gr.evaluation import PER_USER_FILE, FullEvaluation, rank_policy, sample_users

    split = Split.load(stage_folder(cell.folder, "prepare"))
    scid = stage_folder(cell.folder, "scid")
    item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
    user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
    recommender = Recommender.from_pretrained(
        stage_folder(cell.folder, "sft") / "model", num_beams=arguments.num_beams
    )
    questions = split.histories(arguments.split)  # type: ignore[arg-type]
    # The same users for every seed, so that rows and seeds can be compared user by user.
    questions = sample_users(questions, arguments.users, seed=0)
    ks = tuple(k for k in KS if k <= arguments.num_beams)
    lists = rank_policy(
        recommender.search, recommender.prompt_builder, questions, item_codes, user_codes, max(ks), progress=True
    )
    evaluation = FullEvaluation(split, item_codes, ks=ks)
    evaluation.add(cell.row, questions, *lists)
    evaluation.per_user().write_parquet(cell.folder / PER_USER_FILE)
    columns = evaluation.results[cell.row]
    return {name: columns[name] for name in ("seen_allowed", "seen_masked", "discoveries") if name in columns}


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line."""
    words: list[str] = []
    for name, value in options.items():
        values: Sequence[Any] = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
    return words
