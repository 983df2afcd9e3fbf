"""Folders of videos as a data set of clips: root/train/[class/]file.mp4, root/test/[class/]file.mp4."""

import json
import math
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.av import Channels, Gap, MediaError, iter_frames, probe, read_audio
from data.captions import Captions, read_captions
from data.folders import Skipped, by_reason, class_of, scan
from data.frames import Resize, fit
from data.loudness import PEAK, SILENCE, lost_in_mono, peak_of
from data.past import first_needed, with_past

LONGEST_GAP = 2  # s; without a new picture or without sound for longer, a clip of a second would show no event
VERSION = 3  # of the index file
MOST_FRAMES = 2**31  # of one file: seven years at 10 fps
KEEP = 3  # s between two writings of the index while it is made, longer if writing takes more than a 20th of that


@dataclass(frozen=True)
class Entry:
    """What the index remembers of one file."""

    path: str  # relative to the split's folder
    size: int  # bytes
    mtime_ns: int  # with `size`, tells whether the file is still the one that was examined
    frames: int  # on the data set's grid
    peak: float  # largest absolute sample of the sound that belongs to these frames
    problem: str  # why the file cannot be used, as "reason" or "reason: details"; "" if it can


def examine(folder: Path, file: Path, fps: int, sample_rate: int, channels: Channels) -> Entry:
    """Measure one file; what is wrong with it goes into `problem`. Packets are counted, pictures are not decoded."""
    stat = (folder / file).stat()
    frames, peak, problem = 0, 0.0, ""
    try:
        info = probe(folder / file)
        frames = info.frames(fps)
        problem = _too_long(info.gaps) if info.has_audio else "no sound track"
        if not problem:
            how = dict(sample_rate=sample_rate, channels=channels, samples=frames * sample_rate // fps)
            peak = peak_of(folder / file, **how)
            problem = lost_in_mono(folder / file, peak, **how) or ("" if peak > SILENCE else "silent")
    except MediaError as error:
        problem = f"unreadable: {error}"
    return Entry(file.as_posix(), stat.st_size, stat.st_mtime_ns, frames, peak, problem)


def _too_long(gaps: dict[str, Gap]) -> str:
    """What is wrong with the gaps of a file, "" if none is too long."""
    for kind, missing in (("video", "new picture"), ("audio", "sound")):
        if kind in gaps and (gap := gaps[kind]).seconds > LONGEST_GAP:
            return f"too long gaps: no {missing} for {gap.seconds:.1f} s from {gap.at:.1f} s on"
    return ""


def load_index(
    root: Path,
    split: str,
    files: list[Path],
    fps: int,
    sample_rate: int,
    channels: Channels,
    progress: Callable | None = None,
) -> list[Entry]:
    """Entries of `files`, from the JSON kept in `root`; new and changed files are examined, and the JSON is rewritten.

    What was examined is kept every few seconds, and when the work is broken off: the next call goes on from there.

    Args:
        progress: wraps the work, if there is any, as tqdm does: progress(iterable, total=n).
    """
    cache = root / f".index-{split}-{fps}fps-{sample_rate}hz-{channels}.json"
    known = _load_cache(cache)
    stale = [file for file in files if _outdated(known.get(file.as_posix()), root / split / file)]
    if stale:
        with ThreadPoolExecutor() as pool:
            fresh = pool.map(lambda file: examine(root / split, file, fps, sample_rate, channels), stale)
            with closing(fresh):  # what has not begun is cancelled when the work is broken off
                _collect(progress(fresh, total=len(stale)) if progress else fresh, known, cache)
        _save_cache(cache, [known[file.as_posix()] for file in files])
    return [known[file.as_posix()] for file in files]


def _collect(fresh: Iterable[Entry], known: dict[str, Entry], cache: Path) -> None:
    """Take in entries as they come, and keep them on disk; writing all again each time must stay a small share."""
    due = time.monotonic() + KEEP
    try:
        for entry in fresh:
            known[entry.path] = entry
            if (began := time.monotonic()) >= due:
                _save_cache(cache, list(known.values()))
                due = time.monotonic() + max(KEEP, 20 * (time.monotonic() - began))
    except BaseException:  # Ctrl-C, too
        _save_cache(cache, list(known.values()))
        raise


def _outdated(entry: Entry | None, path: Path) -> bool:
    stat = path.stat()
    return entry is None or (entry.size, entry.mtime_ns) != (stat.st_size, stat.st_mtime_ns)


def _load_cache(cache: Path) -> dict[str, Entry]:
    """Sound entries by path; none if there is no cache, or it is of another version: it is only a cache."""
    try:
        saved = json.loads(cache.read_text())
        entries = [Entry(**e) for e in saved["entries"]] if saved["version"] == VERSION else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {entry.path: entry for entry in entries if _is_sound(entry)}


def _is_sound(entry: Entry) -> bool:
    """Whether `examine` could have made this entry."""
    typed = all(type(getattr(entry, field.name)) is field.type for field in fields(Entry))
    return typed and 0 <= entry.frames < MOST_FRAMES and (bool(entry.problem) or SILENCE < entry.peak < math.inf)


def _save_cache(cache: Path, entries: list[Entry]) -> None:
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps({"version": VERSION, "entries": [vars(e) for e in entries]}))
        os.replace(part, cache)
    except OSError:
        part.unlink(missing_ok=True)  # a read-only data folder: the index lives in memory


class ClipDataset(Dataset):
    """Every clip of `clip_frames` frames in a folder of videos, one starting at each frame of each file.

    Item: `frames` float32 (T,3,size,size) in about [-1,1], `wave` float32 (T * sample_rate / fps + 2 * context,),
    `y` class index (-1 without classes), `path` of the file, `start` frame of the clip in the file.

    Args:
        context: samples of sound added on both sides, so that the mel of a clip equals the slice of its file's mel.
            Beyond the ends of the file the sound is reflected, as a centred STFT of the whole file does.
        normalise: peak 0.95 for the "file" or for each "clip" (released; loudness then jumps from clip to clip).
        progress: wraps the making of the index as tqdm does: progress(iterable, total=n).
        ages: of the frames of a memory, which come before those of the clip (`data.past.with_past`); the sound is then
            that of all frames from the oldest on, zeros before the file begins.
    Attributes:
        class_names, entries (usable files), skipped: [(path, reason)].
    Raises:
        ValueError: the folder is not laid out as `data.folders.scan` wants it, or no file in it can be used.
        MediaError: from an item, when its file cannot be read any more.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        clip_frames: int = 10,
        image_size: int = 256,
        fps: int = 10,
        sample_rate: int = 16000,
        context: int = 0,
        normalise: Literal["file", "clip"] = "file",
        channels: Channels = "mean",
        resize: Resize = "pad",
        progress: Callable | None = None,
        ages: Sequence[int] = (),
    ):
        if sample_rate % fps:
            raise ValueError(
                f"{sample_rate} Hz is not a whole number of samples per frame at {fps} fps; "
                f"choose an fps that divides {sample_rate}"
            )
        if normalise not in ("file", "clip"):
            raise ValueError(f"normalise is {normalise!r}, expected 'file' or 'clip'")
        if context >= clip_frames * sample_rate // fps:
            raise ValueError(
                f"context of {context} samples is not shorter than a clip of {clip_frames} frames; "
                f"use longer clips or less context"
            )
        self.folder, self.split = Path(root) / split, split
        self.clip_frames, self.image_size, self.fps, self.sample_rate = clip_frames, image_size, fps, sample_rate
        self.context, self.normalise, self.channels, self.resize = context, normalise, channels, resize
        self.ages = ages
        files, self.class_names, skipped = scan(root, split)
        entries = load_index(Path(root), split, files, fps, sample_rate, channels, progress)
        self._select(entries + [Entry(path, 0, 0, 0, 0.0, reason) for path, reason in skipped])

    def _select(self, entries: list[Entry]) -> None:
        """Sort the files into usable and skipped ones."""
        short = f"shorter than {self.clip_frames} frames"
        reasons = [e.problem or (short if e.frames < self.clip_frames else "") for e in entries]
        self.skipped: Skipped = [(str(self.folder / e.path), reason) for e, reason in zip(entries, reasons) if reason]
        self.entries = [e for e, reason in zip(entries, reasons) if not reason]
        self._ends = list(accumulate(map(self._clips, self.entries)))
        if not self.entries:
            raise ValueError(
                f"{self.folder} has no usable video: {by_reason(self.skipped)} "
                f"(the first is {self.skipped[0][0]}); add videos with picture and sound"
            )

    def _clips(self, entry: Entry) -> int:
        """How many clips a file has: one from each frame on that is followed by enough others."""
        return entry.frames - self.clip_frames + 1

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def chosen_classes(self, num_classes: int | None) -> tuple[str, ...]:
        """Names of the classes that --num-classes asks for: all if None, none if 0.

        Raises:
            ValueError: it is another number than there are class folders.
        """
        if num_classes not in (None, 0, self.num_classes):
            raise ValueError(
                f"--num-classes {num_classes} contradicts the {self.num_classes} class folders of {self.folder}; "
                "leave it out, or give 0 to ignore them"
            )
        return () if num_classes == 0 else self.class_names

    def captions(self) -> Captions:
        """Captions of the usable files.

        Raises:
            ValueError: there are none, or they cannot be read.
        """
        return read_captions(self.folder, [entry.path for entry in self.entries])

    def summary(self) -> str:
        """One line for a log: what there is, and what was skipped for which reason."""
        return (
            f"{self.split}: {len(self)} clips in {len(self.entries)} files, {self.num_classes} classes, "
            f"skipped {by_reason(self.skipped)}"
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry, start = self._locate(index)
        if not self.ages:
            return self._read(entry, start, self.clip_frames)
        first = first_needed(start, self.ages)
        item = self._read(entry, first, start + self.clip_frames - first)
        return self._with_past({**item, "start": start}, start - first)

    def _with_past(self, item: dict[str, Any], before: int) -> dict[str, Any]:
        """An item whose clip comes after `before` frames of the past, as a model with a memory takes it."""
        missing = (max(self.ages) - before) * (self.sample_rate // self.fps)
        frames = with_past(item["frames"], item["start"], self.ages)
        return {**item, "frames": frames, "wave": torch.nn.functional.pad(item["wave"], (missing, 0))}

    def path(self, index: int) -> str:
        """File of a clip."""
        return str(self.folder / self._locate(index)[0].path)

    def _locate(self, index: int) -> tuple[Entry, int]:
        """File of a clip and the frame at which it starts there."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} does not exist; there are {len(self)}")
        i = bisect_right(self._ends, index)
        return self.entries[i], index - (self._ends[i - 1] if i else 0)

    def file(self, i: int) -> dict[str, Any]:
        """The whole usable file `i` in the form of an item, for callers that encode files once and cut clips later."""
        return self._read(self.entries[i], 0, self.entries[i].frames)

    def _read(self, entry: Entry, start: int, count: int) -> dict[str, Any]:
        path = self.folder / entry.path
        frames = [fit(frame[None], self.image_size, self.resize) for frame in iter_frames(path, self.fps, start, count)]
        label = self.class_names.index(class_of(entry.path)) if self.class_names else -1
        return {
            "frames": torch.cat(frames),
            "wave": self._wave(entry, start, count),
            "y": label,
            "path": str(path),
            "start": start,
        }

    def _wave(self, entry: Entry, start: int, count: int) -> Tensor:
        """Normalised sound of frames start..start+count-1 with its context: float32 (N,)."""
        how = dict(fps=self.fps, sample_rate=self.sample_rate, context=self.context, channels=self.channels)
        wave = clip_sound(self.folder / entry.path, start, count, entry.frames, **how)
        middle = slice(self.context, len(wave) - self.context)
        peak = entry.peak if self.normalise == "file" else wave[middle].abs().max().item()
        return wave * (PEAK / peak) if peak else wave  # a silent clip stays silent


def clip_sound(
    path: Path, start: int, count: int, total: int, fps: int, sample_rate: int, context: int, channels: Channels
) -> Tensor:
    """Sound of frames start..start+count-1 of a file with `context` samples on both sides: float32 (N,).

    The file's sound is that of its `total` frames; the context beyond its ends is its reflection, as in an STFT of it.
    """
    per_frame = sample_rate // fps
    first, last = start * per_frame - context, (start + count) * per_frame + context
    begin, stop = max(first, 0), min(last, total * per_frame)
    wave = read_audio(path, begin, stop - begin, sample_rate, channels)
    return torch.from_numpy(np.pad(wave.numpy(), (begin - first, last - stop), mode="reflect"))
