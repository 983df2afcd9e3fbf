"""The index that prepare.py finishes a folder with: found, read, and refused where it cannot be right."""

import json
import math
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from data.clips import MOST_FRAMES
from data.folders import class_of, composed

INDEX = "prepared.json"
VERSION = 2  # of the index and the files


def is_prepared(path: str | Path) -> bool:
    """Whether a folder was written by prepare.py, to the end."""
    return (Path(path) / INDEX).is_file()


def load_prepared(root: str | Path) -> dict:
    """The index of a prepared folder.

    Raises:
        ValueError: it is damaged or of another version. FileNotFoundError: there is none.
    """
    path = Path(root) / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{root} has no {INDEX}; run prepare.py, to its end, or choose another folder")
    try:
        index = json.loads(path.read_text())
        version = index["version"]
        sound = version != VERSION or _is_sound(index)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({shown(error)}); remove it and run prepare.py again") from None
    if version != VERSION:
        version = shown(version)
        raise ValueError(f"{path} is of version {version}, not {VERSION}; prepare the videos anew in another folder")
    if not sound:
        raise ValueError(f"{path} is damaged (a value cannot be right); remove it and run prepare.py again")
    return index


def _is_sound(index: dict) -> bool:
    """Whether prepare.py could have written this index: types, ranges, and no path that leaves its folder."""
    names, scale, splits = index["class_names"], index["audio_scale"], index["splits"].values()
    known = type(names) is list and all(type(name) is str for name in names) and type(index["facts"]) is dict
    scaled = type(scale) in (int, float) and 0 < scale < math.inf
    files = [e for split in splits for e in split["files"]]
    listed = all(_is_path(e["path"]) and type(e["sha256"]) is str for e in files) and all(
        type(e["frames"]) is type(e["bytes"]) is type(e.get("clips", 1)) is int
        and 0 < e.get("clips", 1) <= e["frames"] < MOST_FRAMES
        for e in files
    )
    classed = not names or {class_of(e["path"]) for e in files} <= set(map(composed, names))
    said = index.get("text", {})
    texts = said.get("captions", [])
    placed = all(type(i) is int and 0 <= i < len(texts) for e in files for i in e.get("captions", ()))
    spanned = all(
        len(e["spans"]) == len(e["captions"]) and all(map(_is_span, e["spans"])) for e in files if "spans" in e
    )
    told = type(texts) is list and all(type(x) is str for x in texts) and placed and spanned
    left_out = [(e["path"], e["reason"], e["sha256"]) for split in splits for e in split["skipped"]]
    return known and scaled and listed and classed and told and all(type(x) is str for row in left_out for x in row)


def _is_span(span: Any) -> bool:
    """Whether this is a piece of a file, or None for the whole."""
    return span is None or (type(span) is list and [type(x) for x in span] == [float, float] and span[0] < span[1])


def _is_path(text: str) -> bool:
    """Whether this names a file inside the folder that it is relative to."""
    path = Path(text)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in text
