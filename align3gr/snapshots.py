"""A folder of this machine, or the same files from the Hub."""

from pathlib import Path

from align3gr.errors import InputError


def local_folder(path_or_hub_id: str | Path, revision: str | None = None, kind: str = "model") -> Path:
    """The folder itself, or where the files of a Hub repository lie after they were fetched.

    Args:
        path_or_hub_id: a folder, or a repository on the Hub.
        revision: branch, tag or commit on the Hub.
        kind: of the repository, "model" or "dataset".

    Raises:
        InputError: there is neither such a folder nor a repository that the Hub gives.
    """
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_hub_id), revision=revision, repo_type=kind))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"{path_or_hub_id}: no such folder, and no repository that the Hub gives ({type(error).__name__})"
        ) from error
