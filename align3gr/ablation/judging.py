"""What is measured of a trained cell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align3gr.ablation.cells import AblationArguments, Cell
from align3gr.data import Split
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.evaluation import PER_USER_FILE, FullEvaluation, judge_policies, read_curriculum, sample_users
from align3gr.evaluation.policies import LATEST_THEN, WITH_CACHE
from align3gr.pipeline import stage_folder
from align3gr.scid.code_table import load_codes

KS = (5, 10, 20)
# Statistics of a stage of preference training that are kept.
STATISTICS = ("mean_rejected", "prefix_lengths", "start_accuracy", "start_rank", "beam_share", "generated_share")


def judge(arguments: AblationArguments, cell: Cell) -> dict[str, Any]:
    """Ranks the questions with a cell's model, and writes the rank of each target beside `cell.json`.

    Args:
        arguments: of the table.
        cell: a trained one.

    Returns:
        `metrics`: for each column of `three_columns` its metrics, and under `beyond_accuracy` those of the lists with
        seen items allowed; with `history_cache` also `latest_then` and `history_cache`, those of the lists behind five
        items of the history and mixed with it. For a preference row also `curriculum` (see `curriculum_record`) and
        `last_policy`, the `metrics` of what its last stage ended with, kept or not; None where all stages were
        skipped.
    """
    from align3gr.decoding import HistoryCache, Recommender

    split = Split.load(stage_folder(cell.folder, "prepare"))
    scid = stage_folder(cell.folder, "scid")
    item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
    user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
    recommender = Recommender.from_pretrained(cell.trained / "model", num_beams=arguments.num_beams)
    questions = asked_users(arguments, split)
    ks = tuple(k for k in KS if k <= arguments.num_beams)
    evaluation = FullEvaluation(split, item_codes, ks=ks)
    curriculum, last = read_curriculum(cell.trained), f"{cell.row}, last policy"
    policies = {cell.row: (cell.trained / "model", questions)}
    if curriculum is not None and (policy := _last_policy(cell.trained, curriculum)) is not None:
        policies[last] = (policy, questions)
    cache = HistoryCache.fit(split.train_sequences(), arguments.history_cache) if arguments.history_cache else None
    judge_policies(
        evaluation,
        policies,
        recommender,
        item_codes,
        user_codes,
        max(ks),
        with_history=[cell.row] if cache else (),
        history_cache=cache,
    )
    evaluation.per_user().write_parquet(cell.folder / PER_USER_FILE)
    found: dict[str, Any] = {"metrics": _columns(evaluation.results[cell.row])}
    if cache:
        named = {"latest_then": f"{LATEST_THEN} {cell.row}", "history_cache": f"{cell.row}{WITH_CACHE}"}
        found["metrics"] |= {column: evaluation.results[name]["seen_allowed"] for column, name in named.items()}
    if curriculum is not None:
        found["curriculum"] = curriculum_record(curriculum)
        found["last_policy"] = _columns(evaluation.results[last]) if last in evaluation.results else None
    return found


def asked_users(arguments: AblationArguments, split: Split) -> EvaluationSet:
    """The questions of a table: the same users for every seed, so that rows and seeds can be compared user by user.

    Args:
        arguments: of the table.
        split: data of its run.
    """
    return sample_users(split.histories(arguments.split), arguments.users, seed=0)  # type: ignore[arg-type]


def curriculum_record(curriculum: Mapping[str, Any]) -> dict[str, Any]:
    """What of a `curriculum.json` a table shows.

    Args:
        curriculum: its contents.

    Returns:
        `metric`: what decided. `stages`: for each its `name`, `rows`, `decision` ("kept", "rolled back", "skipped", or
        "stopped at step 8, rolled back"), `before` and `after`: all validation metrics of the policy that it started
        from and of the one that it ended with, `first_loss`, `last_loss`, and of `STATISTICS` what it has.
    """
    before, stages = curriculum["initial"]["metrics"], []
    for stage in curriculum["stages"]:
        decision = stage["decision"]
        if stage.get("stopped_at") is not None:
            decision = f"stopped at step {stage['stopped_at']}, {decision}"
        entry = {"name": stage["name"], "rows": stage["rows"], "decision": decision}
        entry |= {"before": before, "after": stage.get("metrics")}
        entry |= {name: stage[name] for name in ("first_loss", "last_loss") if name in stage}
        entry |= {name: stage["statistics"][name] for name in STATISTICS if name in stage["statistics"]}
        stages.append(entry)
        if stage["decision"] == "kept":
            before = stage["metrics"]
    return {"metric": curriculum["settings"]["metric"], "stages": stages}


def _last_policy(folder: Path, curriculum: Mapping[str, Any]) -> Path | None:
    """Folder of what the last stage that was trained ended with."""
    trained = [n for n, stage in enumerate(curriculum["stages"]) if stage["decision"] != "skipped"]
    if not trained:
        return None
    return folder / f"{trained[-1]}-{curriculum['stages'][trained[-1]]['name']}" / "policy"


def _columns(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The columns of the metrics, without segments and times."""
    columns = {name: values for name, values in result.items() if name.startswith(("seen_", "discoveries"))}
    return columns | {"beyond_accuracy": result["beyond_accuracy"]["seen_allowed"]}
