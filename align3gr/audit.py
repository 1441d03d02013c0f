"""Leaks: is a split clean, and do artefacts depend on targets that they must not see?

Three checks, for the folders of this package and for anybody's pipeline that reads the same tables:

1. hygiene of a prepared split: events in two splits, time travel, targets in profiles;
2. manifests: which stage has read which targets;
3. permutation: the targets of a split are exchanged between users, a command makes its artefacts from the data as they
   are and from the exchanged ones, and nothing may differ. It finds leaks of any kind, whoever wrote the command.
"""

import fnmatch
import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, ITEMS, PROFILE, TIMESTAMP, TIMESTAMPS, TITLE, USER_ID
from align3gr.errors import InputError
from align3gr.pipeline import FOLDERS, MANIFEST, content_hash, read_manifest

# What may differ from run to run without depending on any target.
IGNORED = (MANIFEST, "curriculum.json", "state.json", "*.log")
SHORTEST_TITLE = 5


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        passed: whether all is well.
        message: what was looked at, and what was found.
    """

    check: str
    passed: bool
    message: str


def audit_split(split: Split) -> list[Finding]:
    """Checks of a prepared split; none needs a model."""
    return [_events_in_two_splits(split), _time_travel(split), _targets_in_profiles(split)]


def audit_manifests(run_dir: str | Path) -> list[Finding]:
    """Which targets each finished stage of a run has read: none before the preference stages may have read any."""
    findings = []
    for name in [name for name in FOLDERS if name != "prepare"]:
        folder = Path(run_dir, FOLDERS[name])
        if not (folder / MANIFEST).is_file():
            continue
        inputs = read_manifest(folder)["inputs"]
        whole = "data" in inputs  # a folder as an input is all of its files
        read = [split for split in ("validation", "test") if whole or f"data/{split}.parquet" in inputs]
        # A log's feedback reads the targets to leave these events out.
        both = ["validation", "test"]
        allowed = {"evaluate": both, "feedback": both, "sp_dpo": both[:1], "rf_dpo": both[:1]}.get(name, [])
        findings.append(
            Finding(
                f"inputs of {name}",
                set(read) <= set(allowed),
                f"read {' and '.join(read) or 'no'} targets, may read {' and '.join(allowed) or 'none'}",
            )
        )
    return findings


def permutation_check(
    data: str | Path,
    command: str,
    work: str | Path,
    split: Literal["validation", "test"] = "test",
    ignored: Sequence[str] = IGNORED,
    seed: int = 0,
) -> Finding:
    """Runs a command on the data and on data whose targets were exchanged, and compares what it made.

    Args:
        data: folder of a prepared split. It is copied, never changed.
        command: makes artefacts below `{output}` from `{output}/data`; both words are filled in. It must be
            deterministic.
        work: folder for the two runs; must not exist.
        split: whose targets are exchanged between users.
        ignored: names of files that may differ (patterns).
        seed: of the exchange.

    Raises:
        InputError: the command names no `{output}`, fails, or makes nothing.
    """
    if "{output}" not in command:
        raise InputError("--command: must name {output}, the folder below which data stands and artefacts go")
    work = Path(work)
    if work.exists():
        raise InputError(f"--work {work}: exists already; name a folder that does not")
    runs = [work / "as_is", work / "exchanged"]
    for run in runs:
        shutil.copytree(data, run / "data")
    _exchange(runs[1] / "data" / f"{split}.parquet", seed)
    made = []
    for run in runs:
        words = [word.replace("{output}", str(run)) for word in shlex.split(command)]
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"--command: ended with status {result.returncode}: {last}")
        made.append(_artefacts(run, ignored))
    if not made[0]:
        raise InputError("--command: made no file below {output}; there is nothing to compare")
    differing = sorted(name for name in made[0].keys() | made[1].keys() if made[0].get(name) != made[1].get(name))
    found = (
        f"differ: {', '.join(differing[:5])}" + (" ..." if len(differing) > 5 else "") if differing else "none differs"
    )
    return Finding(f"exchanged {split} targets", not differing, f"{len(made[0])} files compared, {found}")


def _exchange(path: Path, seed: int) -> None:
    targets = pl.read_parquet(path)
    order = np.random.default_rng(seed).permutation(targets.height)
    exchanged = targets[ITEM_ID].gather(order)
    if exchanged.equals(targets[ITEM_ID]):
        raise InputError(f"{path}: its targets are all alike or too few; an exchange changes nothing")
    targets.with_columns(exchanged).write_parquet(path)


def _artefacts(run: Path, ignored: Sequence[str]) -> dict[str, str]:
    """Hashes of what a run has made, by path."""
    return {
        path.relative_to(run).as_posix(): content_hash(path)
        for path in sorted(run.rglob("*"))
        if path.is_file()
        and path.relative_to(run).parts[0] != "data"
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored)
    }


def _train_events(split: Split) -> pl.DataFrame:
    return split.train.select(USER_ID, pl.col(ITEMS).alias(ITEM_ID), pl.col(TIMESTAMPS).alias(TIMESTAMP)).explode(
        ITEM_ID, TIMESTAMP, empty_as_null=False
    )


def _events_in_two_splits(split: Split) -> Finding:
    keys = [USER_ID, ITEM_ID, TIMESTAMP]
    train, validation, test = _train_events(split), split.validation.select(keys), split.test.select(keys)
    twice = {
        "train and validation": validation.join(train.unique(), on=keys, how="semi").height,
        "train and test": test.join(train.unique(), on=keys, how="semi").height,
        "validation and test": test.join(validation, on=keys, how="semi").height,
    }
    found = ", ".join(f"{number:,} in {where}" for where, number in twice.items() if number) or "none"
    return Finding("events in two splits", not any(twice.values()), f"same user, item and timestamp: {found}")


def _time_travel(split: Split) -> Finding:
    last = split.train.select(USER_ID, pl.col(TIMESTAMPS).list.max().alias("train"))
    times = last.join(split.validation.select(USER_ID, validation=TIMESTAMP), on=USER_ID, how="left").join(
        split.test.select(USER_ID, test=TIMESTAMP), on=USER_ID, how="left"
    )
    before = pl.max_horizontal("train", "validation")
    late = times.select(
        (pl.col("train") > pl.col("validation")).sum().alias("validation"),
        (before > pl.col("test")).sum().alias("test"),
    ).row(0, named=True)
    found = ", ".join(
        f"{number:,} users whose {name} target is older than their history" for name, number in late.items() if number
    )
    return Finding("time travel", not any(late.values()), found or "no target is older than the user's history")


def _targets_in_profiles(split: Split) -> Finding:
    """Titles of held-out items in profile texts, against titles of other users' targets in them."""
    titles = dict(zip(split.items[ITEM_ID], split.items[TITLE].str.to_lowercase(), strict=True))
    profiles = dict(zip(split.users[USER_ID], split.users[PROFILE].str.to_lowercase(), strict=True))
    seen = {user: set(items) for user, items in zip(split.train[USER_ID], split.train[ITEMS], strict=True)}
    shares, number = [], 0
    for targets in (split.validation, split.test):
        users, items = targets[USER_ID].to_list(), targets[ITEM_ID].to_list()
        fresh = [
            (u, i) for u, i in zip(users, items, strict=True) if i not in seen[u] and len(titles[i]) >= SHORTEST_TITLE
        ]
        others = np.random.default_rng(0).permutation(len(fresh))
        own = sum(titles[item] in profiles[user] for user, item in fresh)
        other = sum(titles[fresh[k][1]] in profiles[user] for k, (user, _) in zip(others, fresh, strict=True))
        shares.append((own, other))
        number += len(fresh)
    own, other = (sum(column) for column in zip(*shares, strict=True))
    # Chance is what other users' targets give; a leak stands far above it.
    passed = own <= 3 * other + max(5, 0.005 * number)
    return Finding(
        "targets in profiles",
        passed,
        f"{own:,} of {number:,} new targets have their title in the user's profile, {other:,} by chance",
    )


def findings_json(findings: Sequence[Finding]) -> str:
    """For machines."""
    return json.dumps([vars(finding) for finding in findings], indent=2)
