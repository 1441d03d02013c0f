"""Codes of rows that have their own: a training of the token level that rows of the same options share.

A row says `scid:` with the options that differ from the table's file, or with another file. What the training depends
on names its folder, `<table>/_codes/<key>`, so rows that differ in later stages only
share it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from align3gr.data.schema import USER_ID
from align3gr.errors import InputError
from align3gr.pipeline import (
    MANIFEST,
    changed_input,
    content_hash,
    lineage_hash,
    named_files,
    options_hash,
    public_settings,
    read_manifest,
    stage_folder,
)
from align3gr.scid.code_table import load_codebook_sizes, read_code_table
from align3gr.scid.quality import measure_quality
from align3gr.stage_processes import link_stage, run_stage

logger = logging.getLogger(__name__)

# Option of a row, and name of the stage.
SCID = "scid"
# Below the folder of a table; no row's folder begins with an underscore.
CODES_FOLDER = "_codes"
SHARED_STAGES = ("prepare", "embed")


@dataclass(frozen=True)
class RowCodes:
    """One training of the token level.

    Attributes:
        config: its YAML file.
        options: what differs from the file.
        seed: of the training.
        folder: a run folder with data, embeddings and, once trained, codes.
        key: hash of all that they depend on.
    """

    config: str
    options: Mapping[str, Any]
    seed: int
    folder: Path
    key: str

    def __hash__(self) -> int:
        return hash(self.key)

    def train(self, run_dir: Path) -> None:
        """Makes the codes from the run's data and embeddings; what is finished already stays.

        Raises:
            InputError: the training ended with an error; its message was printed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in SHARED_STAGES:
            link_stage(stage_folder(self.folder, name), stage_folder(run_dir, name))
        made = stage_folder(self.folder, SCID)
        if (made / MANIFEST).is_file() and changed_input(made) is None:
            return  # under this key nothing else can stand here
        logger.info("codes %s, seed %d: %s", self.folder.name, self.seed, dict(self.options) or self.config)
        if status := run_stage(SCID, self.config, self.folder, {"seed": self.seed} | dict(self.options)):
            raise InputError(f"{self.folder}: the training of codes ended with status {status}; its message is above")


def row_codes(table: Path, inputs: Sequence[str], base: Callable[[], str], own: Any, seed: int) -> RowCodes:
    """The codes that a row asks for.

    Args:
        table: folder of the table.
        inputs: see `code_inputs`.
        base: gives the file that the rows' options differ from.
        own: what the row says of its codes: options that differ, or the path of another file.
        seed: of the cell; the options may name another.

    Raises:
        InputError: a file is missing.
    """
    config, own = (own, {}) if isinstance(own, str) else (base(), own)
    options = {name: value for name, value in own.items() if name != "seed"}
    seed = own.get("seed", seed)
    merged = read_options(config) | options
    parts = [*inputs, options_hash(Path(config)), public_settings(options), seed, _content(merged.get("item_codes"))]
    parts += [lineage_hash(path) for path in named_files(merged)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return RowCodes(config, options, seed, table / CODES_FOLDER / key[:12], key)


def codes_record(folder: Path) -> dict[str, Any]:
    """What a table says of the codes in a folder `scid`.

    Args:
        folder: of a finished stage.

    Returns:
        `sizes`: codes that each level has. `used`, `perplexity`: of each level, see `LevelUsage`. `shared_before`:
        share of the items whose codes were another item's too, before they were made unique; `shared_after`. `lift`:
        how much more often items of one history share the first code than any two do. `auc`: of held-out train pairs,
        None where users have no vectors. `user_codes`: distinct SCIDs of users, 0 without, `users`: how many users.
        `seconds`: of the training, None where the stage was not run (a copy).
    """
    table = read_code_table(folder / "item_codes.parquet")
    codes, (sizes, user_sizes) = table.codes, load_codebook_sizes(folder / "codebooks.json")
    users = read_code_table(folder / "user_codes.parquet", USER_ID).codes
    quality = measure_quality(codes, codebook_sizes=sizes)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    auc = report.get("auc") or [None]
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    return {
        "sizes": sizes,
        "used": [level.used for level in quality.levels],
        "perplexity": [level.perplexity for level in quality.levels],
        "shared_before": report["item_collisions"]["collided"] / len(codes),
        "shared_after": quality.collisions.items / len(codes),
        "lift": report.get("prefix_lift"),  # not there in a stage of an earlier version
        "auc": auc[-1],
        "user_codes": len(np.unique(users, axis=0)) if user_sizes else 0,
        "users": len(users),
        "seconds": manifest.get("seconds"),
        "settings": public_settings(manifest.get("settings")),
    }


def check_codes(name: str, own: Any, base: Callable[[], str]) -> None:
    """Refuses what a row says of its codes where it cannot be meant.

    Args:
        name: of the row.
        own: what it says.
        base: gives the file that options differ from, or says that there is none.

    Raises:
        InputError: `own` is neither a path nor options.
    """
    if isinstance(own, str):
        return
    if not isinstance(own, dict):
        raise InputError(
            f"rows: {name}: scid {own!r}, expected options of the stage that differ, such as '{{sides: item}}', or "
            "the path of a YAML file"
        )
    base()


def code_inputs(run_dir: Path) -> list[str]:
    """Hashes of what a run's codes may be made from: of the data's content, and of what made the embeddings.

    Raises:
        InputError: the run has no data or no embeddings.
    """
    data, embeddings = (stage_folder(run_dir, name) for name in SHARED_STAGES)
    tables = [data / f"{name}.parquet" for name in ("items", "users", "train")]
    for path in (*tables, embeddings):
        if not path.exists():
            raise InputError(f"{path}: not found; rows with codes of their own need it, run the stages up to embed")
    return [*map(content_hash, tables), lineage_hash(embeddings)]


def read_options(config: str) -> dict[str, Any]:
    """Options of a stage's YAML file.

    Raises:
        InputError: there is no such file.
    """
    path = Path(config)
    if not path.is_file():
        raise InputError(f"{path}: not found; name an existing YAML file of a stage")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _content(imported: str | None) -> str | None:
    """Of a table of ready codes; where it cannot be found, the stage itself says so."""
    path = None if imported is None else Path(os.path.expandvars(imported))
    return content_hash(path) if path is not None and path.is_file() else public_settings(imported)
