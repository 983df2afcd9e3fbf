"""What is uploaded to the Hugging Face hub, and that the hub would take it."""

import logging
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

log = logging.getLogger("train")


def check_login(repo: str) -> None:
    """Raise a ValueError if the hub would not take an upload, before anything is made for it."""
    try:
        HfApi().whoami()
    except (OSError, HfHubHTTPError) as error:  # offline mode and a missing token are OSErrors too
        raise ValueError(
            f"cannot log in to upload to {repo} ({_first_line(error)}); run `hf auth login`, or upload export/ later"
        ) from None


def push(repo: str, folders: Mapping[str, Path]) -> None:
    """Upload folders, by their places in the repository, as far as they exist; all stay here if that fails."""
    try:
        HfApi().create_repo(repo, exist_ok=True)
        for place, folder in folders.items():
            if folder.is_dir():
                HfApi().upload_folder(repo_id=repo, folder_path=folder, path_in_repo=place)
    except (OSError, HfHubHTTPError) as error:
        first = next(iter(folders.values()))
        log.warning("%s was not uploaded (%s); try `hf upload %s %s`", first, _first_line(error), repo, first)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
