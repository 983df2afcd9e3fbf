"""Captions of a folder of videos, as hubs lay them out: what each file shows, in the words of one or more people."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from data.folders import nearest, printable
from data.lines import parsed

LAYOUT = (
    "metadata.jsonl or metadata.csv with file_name and caption (or captions, a list) in the folder of the split, or "
    "clip.txt beside clip.mp4"
)


class NoCaptionsError(ValueError):
    """No file of a folder has a caption."""


@dataclass(frozen=True)
class Captions:
    """Captions of the files of a split.

    texts: the distinct ones, sorted. of_file: path relative to the split -> positions in `texts`, () for none.
    strays: file names that the metadata have and the folder has not.
    """

    texts: tuple[str, ...]
    of_file: dict[str, tuple[int, ...]]
    strays: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for a log."""
        bare = sum(not found for found in self.of_file.values())
        lost = f", {len(self.strays)} of files that are not there{self._nearest()}" if self.strays else ""
        return f"{len(self.texts)} captions, {bare} of {len(self.of_file)} files without{lost}"

    def _nearest(self) -> str:
        return f" (the first is {self.strays[0]}{nearest(self.strays[0], self.of_file)})"


def read_captions(folder: Path, files: Iterable[str]) -> Captions:
    """Captions of these files of a split; what metadata say comes before what lies beside a file.

    Args:
        folder: ROOT/SPLIT. files: paths relative to it, with any separators.
    Raises:
        ValueError: metadata are damaged, told by line. NoCaptionsError: no file has a caption.
    """
    said: dict[str, list[str]] = {printable(file): [] for file in files}
    strays = []
    for name, captions in _metadata(folder):
        known = printable(Path(name).as_posix())
        said[known].extend(captions) if known in said else strays.append(name)
    for file, found in said.items():
        beside = (folder / file).with_suffix(".txt")
        if not found and beside.is_file():
            found.append(beside.read_text(encoding="utf-8", errors="replace"))
    said = {file: [one for one in (" ".join(text.split()) for text in found) if one] for file, found in said.items()}
    texts = sorted({text for found in said.values() for text in found})
    if not texts:
        raise NoCaptionsError(f"{folder} has no caption for any of its videos; give {LAYOUT}")
    place = {text: i for i, text in enumerate(texts)}
    of_file = {file: tuple(dict.fromkeys(place[text] for text in found)) for file, found in said.items()}
    return Captions(tuple(texts), of_file, tuple(strays))


def _metadata(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(file name, captions) of metadata.jsonl and metadata.csv."""
    for path, rows in ((folder / "metadata.jsonl", _json_rows), (folder / "metadata.csv", _csv_rows)):
        if path.is_file():
            for number, row in rows(path):
                yield _captions_of(row, f"{path}, line {number}")


def _json_rows(path: Path) -> Iterator[tuple[int, dict]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, parsed(line, f"{path}, line {number}")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield rows.line_num, row


def _captions_of(row: dict, where: str) -> tuple[str, list[str]]:
    """File name and captions of a row of metadata."""
    name = row.get("file_name") if isinstance(row, dict) else None
    captions = row.get("captions", row.get("caption")) if name else None
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(name, str) or not isinstance(captions, list) or not all(isinstance(x, str) for x in captions):
        raise ValueError(f"{where} has no file_name and caption (or captions, a list of texts); mend that line")
    return name, captions


class Captioned(Dataset):
    """Clips whose label `y` is (K,): the positions of their file's captions, then -1.

    Args:
        clips: of items with `path`. captions: of the files, by what their paths are relative to `folder`.
    """

    def __init__(self, clips: Dataset, captions: Captions, folder: Path):
        self.clips, K = clips, max(1, *map(len, captions.of_file.values()))
        self._labels = {
            printable(str(folder / file)): torch.tensor([*found, *[-1] * (K - len(found))])
            for file, found in captions.of_file.items()
        }

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.clips[index]
        return {**item, "y": self._labels[printable(item["path"])]}
