"""Captions of a folder of videos, as hubs lay them out: what each file shows, in the words of one or more people."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
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
Span = tuple[float, float]  # seconds from the beginning of a file


class NoCaptionsError(ValueError):
    """No file of a folder has a caption."""


@dataclass(frozen=True)
class Captions:
    """Captions of the files of a split.

    texts: the distinct ones, sorted. of_file: path relative to the split -> positions in `texts`, () for none.
    strays: file names that the metadata have and the folder has not. spans: of a file with captions of pieces of it
    -> for each of its captions the piece, or None for the whole.
    """

    texts: tuple[str, ...]
    of_file: dict[str, tuple[int, ...]]
    strays: tuple[str, ...] = ()
    spans: dict[str, tuple[Span | None, ...]] = field(default_factory=dict)

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
    said: dict[str, list[tuple[str, Span | None]]] = {printable(file): [] for file in files}
    strays = []
    for name, captions, span in _metadata(folder):
        known = printable(Path(name).as_posix())
        said[known].extend((text, span) for text in captions) if known in said else strays.append(name)
    for file, found in said.items():
        beside = (folder / file).with_suffix(".txt")
        if not found and beside.is_file():
            found.append((beside.read_text(encoding="utf-8", errors="replace"), None))
    said = {file: list(dict.fromkeys((" ".join(text.split()), span) for text, span in found if text.strip()))
            for file, found in said.items()}  # fmt: skip
    texts = sorted({text for found in said.values() for text, _ in found})
    if not texts:
        raise NoCaptionsError(f"{folder} has no caption for any of its videos; give {LAYOUT}")
    place = {text: i for i, text in enumerate(texts)}
    of_file = {file: tuple(place[text] for text, _ in found) for file, found in said.items()}
    spans = {file: tuple(span for _, span in found) for file, found in said.items() if any(span for _, span in found)}
    return Captions(tuple(texts), of_file, tuple(strays), spans)


def _metadata(folder: Path) -> Iterator[tuple[str, list[str], Span | None]]:
    """(file name, captions, of which piece) of metadata.jsonl and metadata.csv."""
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


def _captions_of(row: dict, where: str) -> tuple[str, list[str], Span | None]:
    """File name and captions of a row of metadata, and of which piece of the file they are."""
    name = row.get("file_name") if isinstance(row, dict) else None
    captions = row.get("captions", row.get("caption")) if name else None
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(name, str) or not isinstance(captions, list) or not all(isinstance(x, str) for x in captions):
        raise ValueError(f"{where} has no file_name and caption (or captions, a list of texts); mend that line")
    return name, captions, _span(row, where)


def _span(row: dict, where: str) -> Span | None:
    """The piece of the file that a row is of: `start` and `end` in seconds; None for the whole."""
    given = [row.get("start"), row.get("end")]
    if given in ([None, None], ["", ""]):  # the latter in a csv
        return None
    try:
        start, end = map(float, given)
    except (TypeError, ValueError):
        start, end = 0.0, 0.0
    if not 0 <= start < end < inf:
        raise ValueError(f"{where} has start {given[0]} and end {given[1]}, which are no piece of a film; give both in "
                         "seconds, or neither")  # fmt: skip
    return start, end


class Captioned(Dataset):
    """Clips whose label `y` is (K,): the positions of their captions, then -1.

    They are those of the pieces of the file in which the clip has its middle; where there is none, those of the file.

    Args:
        clips: of items with `path` and `start`. captions: of the files, by what their paths are relative to `folder`.
        clip_frames, fps: of the clips.
    """

    def __init__(self, clips: Dataset, captions: Captions, folder: Path, clip_frames: int, fps: int):
        self.clips, self._width = clips, max(1, *map(len, captions.of_file.values()))
        self._middle, self._fps = clip_frames / 2, fps
        self._captions = {
            printable(str(folder / file)): list(zip(found, captions.spans.get(file, [None] * len(found))))
            for file, found in captions.of_file.items()
        }

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.clips[index]
        found, middle = self._captions[printable(item["path"])], (item["start"] + self._middle) / self._fps
        of_piece = [place for place, span in found if span and span[0] <= middle < span[1]]
        chosen = of_piece or [place for place, span in found if span is None]
        return {**item, "y": torch.tensor([*chosen, *[-1] * (self._width - len(chosen))])}
