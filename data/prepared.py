"""Videos that prepare.py encoded once: a safetensors file each, and an index. Clips are read as slices of them.

ROOT/prepared.json, ROOT/SPLIT/[class/]NAME.EXT.safetensors with float16 `mean`, `std` (F,C,h,w) and `mel` (F,S,M), and
`crc` (F,): the CRC-32 of each frame. What is read is checked frame by frame, since whole files would cost a pass over
all data before training, and a clip of 10 frames costs 0.03 ms. For models of whole clips a file is a row of clips that
overlap by half, each encoded by itself: then `mean`, `std` are (F,T',C,h,w) and `mel` (F,N,M), and F counts clips.
"""

import json
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.captions import Captions, Span
from data.clips import ClipDataset
from data.folders import class_of, composed, printable
from data.index import INDEX, load_prepared
from data.past import with_past

OPEN_FILES = 1024  # of a process at a time; they are mapped, so none keeps a file descriptor
TENSORS = ("mean", "std", "mel")  # of a file, in the order of the CRC-32 of a frame
CHECKED = 256  # frames of a file in memory at once while all of it is checked


def clip_stride(frames: int) -> int:
    """Frames from start to start of whole clips of so many, which overlap by half."""
    return max(1, frames // 2)


def latent_path(folder: Path, video: str) -> Path:
    """Where the latents of a video lie; both paths are relative to their split's folder. Safetensors must be UTF-8."""
    return folder / f"{printable(video)}.safetensors"


def read_metadata(path: Path) -> dict[str, str] | None:
    """What `LatentWriter` noted on a file; None if it is missing, cut or not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except (OSError, SafetensorError):
        return None


def is_whole(path: Path) -> bool:
    """Whether each frame of a file is the one that was written; reads all of it."""
    try:
        file = LatentFile(path)
        for start in range(0, file.frames, CHECKED):
            file.read(start, min(CHECKED, file.frames - start))
    except ValueError:
        return False
    return True


class LatentFile:
    """A mapped file of `LatentWriter`, of which nothing is read that is not as it was written.

    Attributes:
        frames: F. metadata: what was noted.
    Raises:
        ValueError: the file, or from `read` a frame of it, is missing or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self.metadata = self._file.metadata() or {}
            self._parts = [self._file.get_slice(name) for name in TENSORS]
            self._crcs = self._file.get_tensor("crc").tolist()
            dtypes = {part.get_dtype() for part in self._parts}
            self.frames = self._parts[0].get_shape()[0]
        except (OSError, SafetensorError, LookupError, TypeError) as error:
            missing = isinstance(error, FileNotFoundError)
            raise self._complaint("missing" if missing else f"damaged ({shown(error)})") from None
        if dtypes != {"F16"} or self.metadata.get("crc") != _crc_of_notes(self.metadata, self._crcs):
            raise self._complaint("damaged (its header is not the one that was written)")

    def read(self, start: int, count: int) -> list[Tensor]:
        """mean, std (count,C,h,w) and mel (count,S,M) from frame `start` on, in float16."""
        cut = slice(start, start + count)
        try:
            tensors = [part[cut] for part in self._parts]
        except SafetensorError as error:
            raise self._complaint(f"damaged ({shown(error)})") from None
        if _crcs_of_frames(tensors) != self._crcs[cut]:
            raise self._complaint(f"damaged (in frames {start} to {start + count - 1})")
        return tensors

    def _complaint(self, what: str) -> ValueError:
        return ValueError(f"{self.path} is {what}; run prepare.py again")


def _crcs_of_frames(tensors: list[Tensor]) -> list[int]:
    """CRC-32 of each frame over mean, std and mel (T, ...)."""
    frames = zip(*(x.numpy() for x in tensors))
    return [reduce(lambda crc, x: zlib.crc32(x, crc), parts, 0) for parts in frames]


def _crc_of_notes(notes: dict[str, str], crcs: list[int]) -> str:
    """CRC-32 of the metadata, but for itself, and of those of all frames."""
    return f"{zlib.crc32(json.dumps([sorted({**notes, 'crc': ''}.items()), crcs]).encode()):08x}"


class LatentWriter:
    """Writes the tensors of one file block by block, in constant memory; the file appears whole or not at all.

    Its metadata get the `Moments` of `mean` by channel and of `mel` as `moments_mean` and `moments_mel`.

    Args:
        path: of the file. frames: F, all that will be written.
        latent_shape: (C,h,w), or (T',C,h,w) of clips. mel_shape: (S,M), or (N,M). metadata: what else to note.
        numbers: names of what else to note that is known at the end; fill the attribute of that name.
    """

    def __init__(
        self,
        path: Path,
        frames: int,
        latent_shape: tuple,
        mel_shape: tuple,
        metadata: dict[str, str],
        numbers: tuple[str, ...] = (),
    ):
        self.path, self.part = path, path.with_name(f".{path.name}.{os.getpid()}.part")
        self.frames, self.metadata, self.numbers = frames, metadata, dict.fromkeys(numbers, 0.0)
        self.shapes = {"mean": latent_shape, "std": latent_shape, "mel": mel_shape}
        self.moments = {"mean": Moments(latent_shape[-3]), "mel": Moments(1)}
        self.written, self._crcs, self._at, end = 0, [], {}, 4 * frames  # the CRCs lie first, where they are aligned
        for name, shape in self.shapes.items():
            self._at[name], end = end, end + 2 * frames * math.prod(shape)
        self._first = len(self._header())
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.part.open("wb")
        self._file.truncate(self._first + end)

    def _header(self) -> bytes:
        """Of the same length whatever the moments are, since the numbers in them are."""
        ends = {name: at + 2 * self.frames * math.prod(self.shapes[name]) for name, at in self._at.items()}
        tensors = {
            name: {"dtype": "F16", "shape": [self.frames, *shape], "data_offsets": [self._at[name], ends[name]]}
            for name, shape in self.shapes.items()
        }
        tensors["crc"] = {"dtype": "U32", "shape": [self.frames], "data_offsets": [0, 4 * self.frames]}
        noted = self.metadata | {f"moments_{name}": str(moments) for name, moments in self.moments.items()}
        noted |= {name: fixed(x) for name, x in self.numbers.items()}
        noted["crc"] = _crc_of_notes(noted, self._crcs)
        text = json.dumps({"__metadata__": noted, **tensors}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def write(self, **tensors: Tensor) -> None:
        """Append the next frames of mean, std and mel, (T, ...).

        Raises:
            OSError: the disk is full, or the like.
        """
        halves = [tensors[name].to("cpu", torch.float16).contiguous() for name in TENSORS]
        for name, x in zip(TENSORS, halves):
            if name in self.moments:
                self.moments[name].add(x.flatten(0, -4) if name == "mean" else x)
            self._put(self._first + self._at[name] + 2 * self.written * math.prod(self.shapes[name]), x.numpy())
        self._crcs += _crcs_of_frames(halves)
        self.written += len(halves[0])

    def _put(self, at: int, data) -> None:
        try:
            self._file.seek(at)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error  # by itself it names no file

    def __enter__(self) -> "LatentWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self.part.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self.written != self.frames:
            raise ValueError(f"{self.path} got {self.written} of {self.frames} frames; write all of them")
        if not all(moments.finite for moments in self.moments.values()):
            raise ValueError(f"{self.path} would hold numbers that float16 cannot; look at the weights of the codec")
        self._put(self._first, np.array(self._crcs, np.uint32))
        self._put(0, self._header())
        self._file.close()
        os.replace(self.part, self.path)


class Moments:
    """Sums, squares, minima and maxima (4,C) of what is added, in float64.

    As text they are 4 C numbers of 25 characters, which are read back exactly.
    """

    def __init__(self, channels: int):
        zeros, ones = torch.zeros(2, channels, dtype=torch.float64), torch.ones(1, channels, dtype=torch.float64)
        self.table = torch.cat([zeros, math.inf * ones, -math.inf * ones])  # (4,C)

    def add(self, x: Tensor) -> None:
        """Take in (T,C,...), or anything if there is one channel."""
        x = x.double()
        x = x.transpose(0, 1).flatten(1) if len(self.table[0]) > 1 else x.reshape(1, -1)  # (C,n)
        self.table[:2] += torch.stack([x.sum(1), x.square().sum(1)])
        self.table[2] = torch.minimum(self.table[2], x.amin(1))
        self.table[3] = torch.maximum(self.table[3], x.amax(1))

    @property
    def finite(self) -> bool:
        return bool(self.table.isfinite().all())

    def __str__(self) -> str:
        return "".join(map(fixed, self.table.flatten().tolist()))

    @staticmethod
    def table_of(text: str) -> Tensor:
        """(4,C) of the text that `str` gave."""
        return torch.tensor([float(x) for x in text.split()], dtype=torch.float64).unflatten(0, (4, -1))


def fixed(x: float) -> str:
    """A number as 25 characters that give it back exactly."""
    return f"{x:25.16e}"


@dataclass(frozen=True)
class PreparedEntry:
    """What the index says of one file."""

    path: str  # of the latents, relative to the split's folder
    frames: int  # of the video
    problem: str = ""  # why there are none
    sha256: str = ""  # of the video
    bytes: int = 0  # of the latents
    captions: tuple[int, ...] = ()  # positions among those of the index
    units: int = 0  # in the latents: as many as frames, or whole clips
    spans: tuple[Span | None, ...] = ()  # of captions, where some are of pieces of the video


class PreparedDataset(ClipDataset):
    """Every clip of `clip_frames` frames in a folder that prepare.py wrote, in the order of `ClipDataset`.

    Item: as of `data.latents.LatentDataset`: `mean`, `std` (T,C,h,w), `a` (T,S,M) in float32, `y`, `path`, `start`.
    In a folder of whole clips an item is one of those that were encoded, with `mean`, `std` (T',C,h,w), `a` (N,M).
    Files are mapped into memory, not read, and each process opens its own.

    Args:
        root: with prepared.json. audio_scale: of the mel; the one that prepare.py measured if not given. ages: of the
            frames of a memory, which come before those of the clip.
    Attributes:
        facts: what decided the encoding, such as image_size, n_mels and codec.
        text: encoder, source, width and captions of the texts that were prepared, None without.
        class_names, entries (usable files), skipped: [(path, reason)], as of ClipDataset.
    Raises:
        FileNotFoundError, ValueError: there is no sound index, or no file of this split is long enough; from an item,
            its file is missing, damaged or not the one that the index means.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        clip_frames: int = 10,
        audio_scale: float | None = None,
        ages: Sequence[int] = (),
    ):
        index = load_prepared(root)
        if split not in index["splits"]:
            raise ValueError(
                f"{root} has no split {split!r} (found: {', '.join(index['splits'])}); "
                f"run prepare.py again with videos in {split}/"
            )
        self.folder, self.split = Path(root) / split, split
        self.facts, self.class_names = index["facts"], tuple(map(composed, index["class_names"]))
        self.whole = self.facts.get("clip_frames", 0)  # frames of the clips that were encoded, 0 in a folder of streams
        if self.whole and clip_frames != self.whole:
            raise ValueError(f"{root} was prepared in clips of {self.whole} frames, not {clip_frames}; leave the "
                             "length out, or prepare another folder")  # fmt: skip
        self.clip_frames, self.ages = clip_frames, ages
        self.audio_scale = index["audio_scale"] if audio_scale is None else audio_scale
        self.text = index.get("text")
        self._open_files: tuple[int, OrderedDict] = (0, OrderedDict())  # of this process, last used last
        self._select(_entries(index["splits"][split]))

    def captions(self) -> Captions:
        """Captions of the usable files, as prepare.py read them.

        Raises:
            ValueError: the folder was prepared without.
        """
        if not self.text:
            raise ValueError(
                f"{self.folder.parent} was prepared without text; run prepare.py again with --text-encoder"
            )
        spans = {entry.path: entry.spans for entry in self.entries if entry.spans}
        return Captions(tuple(self.text["captions"]), {e.path: e.captions for e in self.entries}, (), spans)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open_files": (0, OrderedDict())}

    def _clips(self, entry: PreparedEntry) -> int:
        return entry.units if self.whole else super()._clips(entry)

    def _read(self, entry: PreparedEntry, start: int, count: int) -> dict[str, Any]:
        if self.whole:
            mean, std, mel = (x[0].float() for x in self._open(entry).read(start, 1))
            start *= clip_stride(count)
        else:
            mean, std, mel = (x.float() for x in self._open(entry).read(start, count))
        label = self.class_names.index(class_of(entry.path)) if self.class_names else -1
        path = str(self.folder / entry.path)
        return {"mean": mean, "std": std, "a": self.audio_scale * mel, "y": label, "path": path, "start": start}

    def _with_past(self, item: dict[str, Any], before: int) -> dict[str, Any]:
        return item | {name: with_past(item[name], item["start"], self.ages) for name in ("mean", "std", "a")}

    def _open(self, entry: PreparedEntry) -> LatentFile:
        """The open file of an entry; of too many, the one not used for the longest time is closed."""
        if self._open_files[0] != os.getpid():  # a forked worker shares none with its parent
            self._open_files = (os.getpid(), OrderedDict())
        files = self._open_files[1]
        if entry.path not in files:
            files[entry.path] = _open(self.folder / entry.path, entry)
            if len(files) > OPEN_FILES:
                files.popitem(last=False)
        files.move_to_end(entry.path)
        return files[entry.path]


def _entries(split: dict) -> list[PreparedEntry]:
    """Of the usable files, then of the others."""
    usable = [PreparedEntry(str(latent_path(Path(), e["path"])), e["frames"], "", e["sha256"], e["bytes"],
                            tuple(e.get("captions", ())), e.get("clips", e["frames"]),
                            tuple(span and tuple(span) for span in e.get("spans", ())))
              for e in split["files"]]  # fmt: skip
    return usable + [PreparedEntry(e["path"], 0, e["reason"]) for e in split["skipped"]]


def _open(path: Path, entry: PreparedEntry) -> LatentFile:
    """A mapped file, checked against the index."""
    file = LatentFile(path)
    if (file.metadata.get("sha256"), file.frames) != (entry.sha256, entry.units):
        raise ValueError(f"{path} is not the file that {INDEX} means; run prepare.py again")
    return file
