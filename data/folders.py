"""Folders of videos: what lies in them, of which class each file is, and the nearest name to a wrong one.

One rule for all: a file belongs to the class that its first folder is named after, however deep it lies.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

SUFFIXES = {".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".flv", ".wmv", ".ts", ".m2ts", ".mts"}
UNREAD = {".mpg", ".mpeg", ".vob", ".asf", ".ogv", ".ogm", ".rm", ".rmvb", ".divx", ".mxf", ".f4v", ".wma"}
SPLITS = ("train", "test")
Skipped = list[tuple[str, str]]  # (path, why it cannot be used)


def scan(root: str | Path, split: str) -> tuple[list[Path], tuple[str, ...], Skipped]:
    """Find the videos of a split.

    Returns:
        files: sorted, relative to root/split.
        class_names: sorted, of the videos of all splits, so that a class missing in one shifts no label; () without.
        skipped: what looks like a video and is not read, its path relative to root/split.
    Raises:
        ValueError: root has no such split, the split is empty, or it has files both in and beside class folders.
    """
    root, folder = Path(root), Path(root) / split
    if not root.is_dir():
        raise ValueError(f"{root} does not exist{nearest_path(root)}; give a folder with {split}/[class/]file.mp4")
    if not folder.is_dir():
        within = f"did you mean {root.parent}?" if (root.parent / split).is_dir() else _listed(root)
        raise ValueError(f"{root} has no folder {split!r} ({within}); lay it out as {split}/[class/]file.mp4")
    files, skipped = walk(folder)
    if not files:
        besides = f", but {by_reason(skipped)}" if skipped else ""
        raise ValueError(
            f"{folder} has no videos ({', '.join(sorted(SUFFIXES))}){besides}; put some there or in class folders"
        )
    loose = [file for file in files if not class_of(file)]
    if 0 < len(loose) < len(files):
        raise ValueError(
            f"{folder} has {len(loose)} videos beside its class folders (as {loose[0]}) and "
            f"{len(files) - len(loose)} in them; move all into class folders, or none"
        )
    others = (walk(root / other)[0] for other in {*SPLITS} - {split} if (root / other).is_dir() and not loose)
    names = {class_of(file) for found in (files, *others) for file in found}
    return files, tuple(sorted(names - {""})), skipped


def _listed(root: Path) -> str:
    found = sorted(path.name for path in root.iterdir())
    return f"found: {', '.join(found[:10]) or 'nothing'}"


def walk(folder: Path, suffixes: set[str] = SUFFIXES) -> tuple[list[Path], Skipped]:
    """The files with these suffixes in a folder and in all below it, sorted, and the media that are left out and why.

    Paths are relative to it. Hidden files and folders are passed over. Links are followed.
    """
    files, skipped = [], []
    for path in _below(str(folder)):
        suffix, file = os.path.splitext(path)[1].lower(), Path(path[len(str(folder)) :].lstrip(os.sep))
        if suffix not in suffixes | UNREAD:
            continue
        if not os.path.exists(path):
            skipped.append((file.as_posix(), "dead link: it leads to no file"))
        elif suffix not in suffixes:
            skipped.append((file.as_posix(), f"unread {suffix}: convert it to mp4"))
        elif os.path.isfile(path):
            files.append(file)
    return sorted(files), sorted(skipped)


def _below(folder: str, above: frozenset = frozenset()) -> Iterator[str]:
    """All that is no folder in a folder and below it; a folder that is linked into itself is not entered again."""
    here = os.stat(folder).st_dev, os.stat(folder).st_ino
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":  # which a zip from macOS brings
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                yield from _below(entry.path, above | {here})
            else:
                yield entry.path


def class_of(file: str | Path) -> str:
    """Class of a file by its path in a split: its first folder, or "" if it lies in none.

    Names are composed (NFC): macOS may store "é" as two characters, and a class is one on any machine.
    """
    parts = Path(file).parts
    return composed(parts[0]) if len(parts) > 1 else ""


def composed(name: str) -> str:
    """A class name as it is compared and stored."""
    return normalize("NFC", printable(name))


def printable(path: str) -> str:
    """A path as UTF-8, which names of files need not be: other bytes become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def by_reason(skipped: Iterable[tuple[str, str]]) -> str:
    """How many (path, reason) there are of each kind of reason, for a log: "1 silent, 2 unreadable", or "none".

    The kind is what stands before details: up to the first colon, semicolon or bracket, without the path.
    """
    kinds = (re.split(r" ?[:;(]", reason.removeprefix(f"{path} "))[0] for path, reason in skipped)
    return ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(kinds).items())) or "none"


def nearest(name: str, names: Iterable[str]) -> str:
    """ " (did you mean 'red'?)" for an error, with the nearest of `names`; "" if none is near."""
    near = _near(name, names)
    return f" (did you mean {near[0]!r}?)" if near else ""


def nearest_path(path: Path, right: Callable[[Path], bool] = Path.exists) -> str:
    """The same of a path of which one part is wrong; only a path that is `right` is proposed."""
    there = next((p for p in path.parents if p.is_dir()), None)
    if there is None or there == path:
        return ""
    wrong, *rest = path.relative_to(there).parts
    proposed = (there.joinpath(name, *rest) for name in _near(wrong, os.listdir(there)))
    return next((f" (did you mean {p}?)" for p in proposed if right(p)), "")


def _near(name: str, names: Iterable[str]) -> list[str]:
    """The nearest of these names first, capitals or not."""
    known = {composed(known).casefold(): known for known in names}
    return [known[key] for key in get_close_matches(composed(name).casefold(), known)]
