"""One commit on the Hub for each artefact: its files, a card written from what was run, the lineage of its stages."""

import json
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import polars as pl
from httpx2 import HTTPError  # of huggingface_hub, whose own errors derive from it
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from align3gr.data.schema import ITEM_ID, TITLE
from align3gr.decoding.catalogue_tables import CODES
from align3gr.decoding.recommender import ITEM_CODES_FILE, SCID_FOLDER, USER_CODES_FILE
from align3gr.errors import InputError
from align3gr.hub.run_card import LINEAGE_FILE, card, lineage
from align3gr.pipeline import MANIFEST, MODEL_STAGES, read_manifest, stage_folder
from align3gr.scid import ENCODERS

ARTEFACTS = ("recommender", "scid", "items")
CARD_FILE, CATALOGUE_FILE = "README.md", "items.parquet"
# Nothing that could run code when it is opened.
_SAFE = {".safetensors", ".json", ".jinja", ".parquet", ".txt", ".model"}


def push_run(
    run_dir: str | Path,
    repo_id: str,
    artefact: str = "recommender",
    model: str | None = None,
    with_users: bool = False,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Puts a part of a finished run on the Hub, in one commit.

    - `recommender`: model or adapter, tokenizer, prompt, catalogue, trie, the token level in its folder `scid`; for
      `Recommender.from_pretrained(repo_id)`.
    - `scid`: the token level, model, encoders and codes; for `SCIDAssigner.from_pretrained(repo_id)`.
    - `items`: the catalogue with its codes, a data set; for `datasets.load_dataset(repo_id)`.

    Args:
        run_dir: folder of the run.
        repo_id: `name/repository`; it is made where it does not exist.
        artefact: one of `ARTEFACTS`.
        model: of a recommender: a stage (`sft`, `sp_dpo`, `rf_dpo`), or a folder, such as a merged model; the last
            finished stage where it is None.
        with_users: push the table of users and their SCIDs too. Ids of users are mostly not for others, so they stay
            behind; a recommender without them prompts without a user's SCID.
        license: of what is pushed; that of the base model where it is None and known.
        private: whether a new repository is private; as the account is set where it is None.
        revision: branch to commit to.
        create_pr: open a pull request in place of committing to the branch.

    Returns:
        Address of the commit or of the pull request.

    Raises:
        InputError: the run lacks what is asked for, holds a file that is not safe to open, its adapter stands on a
            folder of this machine, or the Hub refuses.
    """
    run_dir = Path(run_dir)
    if artefact not in ARTEFACTS:
        raise InputError(f"artefact: {artefact!r}, expected {', '.join(ARTEFACTS)}")
    if model is not None and artefact != "recommender":
        raise InputError(f"model: has no effect on the artefact {artefact}; leave it out")
    folder = _model_folder(run_dir, model) if artefact == "recommender" else stage_folder(run_dir, "scid")
    _check_base(folder)
    files = dict(_files(run_dir, folder, artefact, with_users))
    stages = lineage(run_dir, folder)
    page = card(run_dir, repo_id, artefact, folder, with_users, license)
    additions = {CARD_FILE: str(page).encode(), LINEAGE_FILE: (json.dumps(stages, indent=2) + "\n").encode()}
    if artefact == "items":
        additions[CATALOGUE_FILE] = _catalogue(run_dir)
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations += [CommitOperationAdd(name, content) for name, content in additions.items()]
    return _commit(repo_id, operations, "dataset" if artefact == "items" else "model", private, revision, create_pr)


def _model_folder(run_dir: Path, model: str | None) -> Path:
    if model is not None and model not in MODEL_STAGES:
        folder = Path(model)
        if not (folder / ITEM_CODES_FILE).is_file():
            raise InputError(
                f"model: {model} is no folder of a recommender (no {ITEM_CODES_FILE}), nor one of "
                f"{', '.join(MODEL_STAGES)}"
            )
        return folder
    for name in MODEL_STAGES if model is None else (model,):
        if (stage_folder(run_dir, name) / MANIFEST).is_file():
            return stage_folder(run_dir, name) / "model"
    raise InputError(f"run_dir: {run_dir} has no finished stage {model or ' or '.join(MODEL_STAGES)}; run it first")


def _check_base(folder: Path) -> None:
    """Refuses an adapter that opens on this machine alone.

    Raises:
        InputError: the base that it names is a folder.
    """
    path = folder / ADAPTER_CONFIG_NAME
    base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"] if path.is_file() else None
    if base and Path(base).is_absolute():
        raise InputError(
            f"model: {folder} is an adapter on {base}, a folder of this machine; write one plain model with "
            "`align3gr merge` and push that, or train on a base of the Hub"
        )


def _files(run_dir: Path, folder: Path, artefact: str, with_users: bool) -> Iterator[tuple[str, Path]]:
    """Name in the repository and place on disk of everything that is pushed as it is."""
    if artefact == "items":
        return
    if artefact == "recommender":
        yield from _safe_files(folder, folder, with_users)
    scid = stage_folder(run_dir, "scid")
    if not (scid / "model").is_dir():
        if artefact == "scid":
            raise InputError(f"{scid}: holds no model; imported codes are pushed with the recommender or as items")
        return
    read_manifest(scid)  # a stage that is finished
    below = f"{SCID_FOLDER}/" if artefact == "recommender" else ""
    for part in ("model", ENCODERS, "item_codes.parquet", "user_codes.parquet", "codebooks.json"):
        for name, path in _safe_files(scid, scid / part, with_users):
            yield below + name, path


def _safe_files(root: Path, part: Path, with_users: bool) -> Iterator[tuple[str, Path]]:
    for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
        name = path.relative_to(root).as_posix()
        if path.is_dir() or path.name == CARD_FILE or (path.name == USER_CODES_FILE and not with_users):
            continue
        if path.suffix not in _SAFE:
            raise InputError(f"{path}: only {', '.join(sorted(_SAFE))} are pushed; remove it from the folder")
        if not path.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{path}: is a link to {path.resolve()}, outside the folder; copy the file or remove it")
        yield name, path


def _catalogue(run_dir: Path) -> bytes:
    codes = pl.read_parquet(stage_folder(run_dir, "scid") / "item_codes.parquet")
    titles = pl.read_parquet(stage_folder(run_dir, "prepare") / "items.parquet", columns=[ITEM_ID, TITLE])
    buffer = BytesIO()
    titles.join(codes, on=ITEM_ID, how="left", maintain_order="left").select(ITEM_ID, TITLE, CODES).write_parquet(
        buffer
    )
    return buffer.getvalue()


def _commit(
    repo_id: str,
    operations: list[CommitOperationAdd],
    kind: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        with warnings.catch_warnings():
            # Of tables in a model's repository, where the catalogue belongs.
            warnings.filterwarnings("ignore", message=".*about to commit a data file")
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message="Pushed by align3gr",
                repo_type=kind,
                revision=revision,
                create_pr=create_pr,
            )
    except HFValidationError as error:
        raise InputError(f"repo_id: {repo_id!r} is no name/repository of the Hub: {error}") from error
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(f"repo_id: {repo_id}: {str(error).splitlines()[0]}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = (
            "log in with `hf auth login`, or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        )
        message = str(error).strip().splitlines()[0]
        raise InputError(f"repo_id: {repo_id}: the Hub answers {status}; {advice or message}") from error
    except HTTPError as error:
        raise InputError(f"repo_id: {repo_id}: the Hub cannot be reached: {error}; nothing was pushed") from error
    return str(commit.pr_url or commit.commit_url)
