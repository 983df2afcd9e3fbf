"""Where the weights of a model lie: a folder, or a snapshot of the hub."""

from pathlib import Path

from huggingface_hub import snapshot_download

FILES = ("config.json", "model.safetensors")


def checkpoint_folder(model_id: str, **hub) -> Path:
    """The local folder of a model's config and weights: `model_id` itself, or its snapshot.

    Args:
        hub: as of `snapshot_download`.
    Raises:
        FileNotFoundError: a file is missing.
    """
    folder = Path(model_id)
    if not folder.is_dir():
        folder = Path(snapshot_download(model_id, allow_patterns=list(FILES), **hub))
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give a folder that train.py exported, or a hub id")
    return folder
