"""Cards written from what was run: data, metrics, health of the code books, lineage of the stages."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from httpx2 import HTTPError  # of huggingface_hub, whose own errors derive from it
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from peft import PeftConfig
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from align3gr.decoding.recommender import ITEM_CODES_FILE
from align3gr.pipeline import MANIFEST, STAGES, public_settings, read_manifest, stage_folder

LINEAGE_FILE = "lineage.json"
TAGS = ["recommendation", "generative-recommendation", "semantic-ids"]
# The policy of a stage in the tables of the evaluation, and what stands beside it.
POLICIES = {
    "sft": "SFT",
    "sp_dpo": "SP-DPO, best stage on validation",
    "rf_dpo": "RF-DPO, best stage on validation",
}
BASELINES = ("popularity", "history, latest first", "item-kNN", "five latest, then item-kNN")
_COLUMNS = {"seen items allowed": "seen_allowed", "seen items masked": "seen_masked"}
_METRICS = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}


def lineage(run_dir: str | Path, folder: str | Path) -> dict[str, Any]:
    """Settings, seed, hashes of the inputs and versions of the stages up to the one that made `folder`.

    Paths of the machine are cut to their names, and settings that are secrets are left out.

    Args:
        run_dir: the run.
        folder: a folder of it.
    """
    run_dir = Path(run_dir)
    last = next((at for at, name in enumerate(STAGES) if _is_within(folder, run_dir, name)), STAGES.index("rf_dpo"))
    found = {}
    for name in STAGES[: last + 1]:
        if (stage_folder(run_dir, name) / MANIFEST).is_file():
            manifest = read_manifest(stage_folder(run_dir, name))
            found[name] = {
                key: public_settings(manifest.get(key)) for key in ("settings", "inputs", "seed", "versions")
            }
            found[name]["seconds"] = manifest.get("seconds")
    return found


def card(
    run_dir: str | Path,
    repo_id: str,
    artefact: str,
    folder: str | Path,
    with_users: bool = False,
    license: str | None = None,
) -> ModelCard | DatasetCard:
    """The page of a repository that [`push_run`] makes.

    Args:
        run_dir: folder of the run.
        repo_id: where it will stand.
        artefact: `recommender`, `scid` or `items`.
        folder: of the model, or of the token level.
        with_users: whether the SCIDs of users are there.
        license: of what is pushed; that of the base model where it is None and known.
    """
    run_dir, folder = Path(run_dir), Path(folder)
    stage = next((name for name in POLICIES if _is_within(folder, run_dir, name)), None)
    base = _base_model(run_dir, folder) if artefact == "recommender" else None
    published = None if base is None or _is_local(base) else base
    license = license or (None if published is None else _license(published))
    rows = _results(run_dir, stage)
    lines = [f"# {repo_id.split('/')[-1]}", "", *_what_it_is(run_dir, artefact, folder, base, with_users)]
    lines += ["", "```python", *_use(repo_id, artefact), "```", "", *_data(run_dir)]
    if artefact == "recommender" and rows:
        lines += ["", *_result_lines(run_dir, rows)]
    lines += ["", *_code_books(run_dir), "", *_lineage_lines(lineage(run_dir, folder))]
    if license is None:
        lines += ["", "No licence is stated. That of the data and of a base model applies to what is made from them."]
    content = "\n".join(lines) + "\n"
    if artefact == "items":
        files = [{"config_name": "default", "data_files": "items.parquet"}]
        data = DatasetCardData(license=license, tags=TAGS, configs=files)
        return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{content}")
    measured = _eval_results(repo_id, rows.get(POLICIES.get(stage or "", ""), {})) if artefact == "recommender" else []
    metadata = ModelCardData(
        library_name="align3gr",
        license=license,
        tags=TAGS,
        base_model=published,
        model_name=repo_id.split("/")[-1] if measured else None,
        eval_results=measured or None,
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{content}")


def _is_within(folder: str | Path, run_dir: Path, stage: str) -> bool:
    return Path(folder).resolve().is_relative_to(stage_folder(run_dir, stage).resolve())


def _base_model(run_dir: Path, folder: Path) -> str | None:
    """Hub id or folder of the pretrained model behind a recommender; None for one that was trained from scratch."""
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    elif (stage_folder(run_dir, "sft") / MANIFEST).is_file():
        name = read_manifest(stage_folder(run_dir, "sft"))["settings"].get("base_model")
    else:
        return None
    return None if name is None else str(name)


def _is_local(base: str) -> bool:
    """Whether a base model is a folder, be it that of another machine."""
    return Path(base).is_absolute() or Path(base).is_dir()


def _license(base: str) -> str | None:
    try:
        data = HfApi().model_info(base).card_data
    except (HTTPError, HFValidationError, OfflineModeIsEnabled, OSError):
        return None
    return None if data is None else data.get("license")


def _what_it_is(run_dir: Path, artefact: str, folder: Path, base: str | None, with_users: bool) -> list[str]:
    if artefact == "items":
        return ["Items of a catalogue with their titles and semantic-collaborative IDs (SCIDs), one code a level."]
    if artefact == "scid":
        return [
            "The token level of [align3gr](https://pypi.org/project/align3gr): encoders and residual quantisers that "
            "give items and users semantic-collaborative IDs (SCIDs), and the SCIDs of a catalogue. New items and new "
            "users get theirs from the same files."
        ]
    items = pl.scan_parquet(folder / ITEM_CODES_FILE).select(pl.len()).collect().item()
    made = "A language model trained from scratch"
    if base is not None:
        # A folder of this machine means nothing to others, but its name may.
        made = f"A local copy of {Path(base).name}" if _is_local(base) else f"[{base}](https://huggingface.co/{base})"
    adapter = ", as a LoRA adapter" if (folder / ADAPTER_CONFIG_NAME).is_file() else ""
    users = "" if with_users else " The SCIDs of known users are not part of it."
    return [
        f"{made}{adapter} that recommends the {items:,} items of its catalogue: it reads a history of items as "
        "semantic-collaborative IDs (SCIDs) and writes the SCID of the next one; the search lets it write none that "
        f"does not exist. Made with [align3gr](https://pypi.org/project/align3gr).{users}"
    ]


def _use(repo_id: str, artefact: str) -> list[str]:
    if artefact == "items":
        return ["from datasets import load_dataset", "", f'items = load_dataset("{repo_id}", split="train")']
    if artefact == "scid":
        return [
            "from align3gr.scid import SCIDAssigner",
            "",
            f'assigner = SCIDAssigner.from_pretrained("{repo_id}")',
            'codes = assigner.add_items(["new-item"], ["title and description of the new item"])',
        ]
    return [
        "from align3gr import Recommender",
        "",
        f'recommender = Recommender.from_pretrained("{repo_id}")',
        'history = recommender.items["item_id"].head(3).to_list()  # oldest first',
        "for item in recommender.recommend([history], k=10)[0]:",
        "    print(item.item_id, item.title, item.score)",
    ]


def _data(run_dir: Path) -> list[str]:
    path = stage_folder(run_dir, "prepare") / "statistics.json"
    if not path.is_file():
        return []
    statistics = json.loads(path.read_text(encoding="utf-8"))
    names = ("users", "items", "interactions", "train_interactions", "validation_users", "test_users")
    known = [f"| {name.replace('_', ' ')} | {statistics[name]:,} |" for name in names if name in statistics]
    split = read_manifest(stage_folder(run_dir, "prepare"))["settings"].get("split", "")
    return ["## Data", "", "| | |", "|---|---:|", *known, f"| split | {str(split).replace('_', ' ')} |"]


def _results(run_dir: Path, stage: str | None) -> dict[str, Any]:
    """Rows of the run's evaluation: the policy of this stage and what it is compared with."""
    path = stage_folder(run_dir, "evaluate") / "results.json"
    if stage is None or not path.is_file():
        return {}
    results = json.loads(path.read_text(encoding="utf-8"))
    return {name: results[name] for name in (*BASELINES, POLICIES[stage]) if name in results}


def _result_lines(run_dir: Path, rows: Mapping[str, Any]) -> list[str]:
    seed = read_manifest(stage_folder(run_dir, "evaluate")).get("seed")
    heads = [f"{label}, {name}" for name in _COLUMNS for label in _METRICS.values()]
    lines = ["## Results", "", f"Test split, ranked among all items, one training (seed {seed}).", ""]
    lines += [f"| | {' | '.join(heads)} | users |", "|---|" + "---:|" * (len(heads) + 1)]
    for name, columns in rows.items():
        values = [f"{columns[column][metric]:.4f}" for column in _COLUMNS.values() for metric in _METRICS]
        lines.append(f"| {name} | {' | '.join(values)} | {columns['seen_allowed']['users']:,} |")
    return lines


def _eval_results(repo_id: str, columns: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="recommendation",
            dataset_type=repo_id,
            dataset_name=f"test split, {name}",
            dataset_config=column,
            metric_type=metric,
            metric_value=round(columns[column][metric], 4),
        )
        for name, column in _COLUMNS.items()
        if column in columns
        for metric in _METRICS
    ]


def _code_books(run_dir: Path) -> list[str]:
    path = stage_folder(run_dir, "scid") / "report.json"
    if not path.is_file():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    lines = ["## Code books", ""]
    for side in ("item", "user"):
        if used := report.get(f"{side}_utilisation"):
            perplexity = ", ".join(f"{value:.1f}" for value in report[f"{side}_perplexity"])
            lines.append(
                f"- {side}s: {', '.join(f'{share:.0%}' for share in used)} of the codes used, perplexity {perplexity}"
            )
    if collisions := report.get("item_collisions"):
        lines.append(f"- items that share a SCID: {collisions['remaining']:,}, after {collisions['strategy']}")
    if (lift := report.get("prefix_lift")) is not None:
        lines.append(f"- prefix lift on the train split: {lift:.1f}")
    return lines


def _lineage_lines(stages: Mapping[str, Any]) -> list[str]:
    lines = ["## How it was made", "", "| stage | seed | seconds | inputs (SHA-256) |", "|---|---:|---:|---|"]
    for name, facts in stages.items():
        inputs = ", ".join(f"{path} {digest[:12]}" for path, digest in facts["inputs"].items()) or "-"
        lines.append(
            f"| {name} | {facts['seed'] if facts['seed'] is not None else '-'} | {facts['seconds']} | {inputs} |"
        )
    versions = list(stages.values())[-1]["versions"] if stages else {}
    lines += ["", f"All settings: [{LINEAGE_FILE}]({LINEAGE_FILE}). Versions: "]
    lines[-1] += ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
    return lines
