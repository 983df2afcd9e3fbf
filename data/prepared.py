"""Videos that prepare.py encoded once: a safetensors file each, and an index. Clips are read as slices of them.

ROOT/prepared.json, ROOT/SPLIT/[class/]NAME.EXT.safetensors with float16 `mean`, `std` (F,C,h,w) and `mel` (F,S,M).
"""

import json
import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.clips import ClipDataset

INDEX = "prepared.json"
VERSION = 1  # of the index and the files
OPEN_FILES = 1024  # of a process at a time; they are mapped, so none keeps a file descriptor


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
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run prepare.py again") from None
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}, not {VERSION}; prepare the videos anew in another folder")
    return index


def latent_path(folder: Path, video: str) -> Path:
    """Where the latents of a video lie; both paths are relative to their split's folder."""
    return folder / f"{video}.safetensors"


def read_metadata(path: Path) -> dict[str, str] | None:
    """What `LatentWriter` noted on a file; None if it is missing, cut or not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except (OSError, SafetensorError):
        return None


class LatentWriter:
    """Writes the tensors of one file block by block, in constant memory; the file appears whole or not at all.

    Its metadata get the `Moments` of `mean` by channel and of `mel` as `moments_mean` and `moments_mel`.

    Args:
        path: of the file. frames: F, all that will be written.
        latent_shape: (C,h,w). mel_shape: (S,M). metadata: what else to note.
    """

    def __init__(self, path: Path, frames: int, latent_shape: tuple, mel_shape: tuple, metadata: dict[str, str]):
        self.path, self.part = path, path.with_name(f".{path.name}.{os.getpid()}.part")
        self.frames, self.metadata = frames, metadata
        self.shapes = {"mean": latent_shape, "std": latent_shape, "mel": mel_shape}
        self.moments = {"mean": Moments(latent_shape[0]), "mel": Moments(1)}
        self.written, self._at, end = 0, {}, 0
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
        noted = self.metadata | {f"moments_{name}": str(moments) for name, moments in self.moments.items()}
        text = json.dumps({"__metadata__": noted, **tensors}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def write(self, **tensors: Tensor) -> None:
        """Append the next frames of every tensor, (T, ...).

        Raises:
            OSError: the disk is full, or the like.
        """
        for name, x in tensors.items():
            x = x.to("cpu", torch.float16).contiguous()
            if name in self.moments:
                self.moments[name].add(x)
            self._put(self._first + self._at[name] + 2 * self.written * math.prod(self.shapes[name]), x.numpy())
        self.written += len(x)

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
        return "".join(f"{x:25.16e}" for x in self.table.flatten().tolist())

    @staticmethod
    def table_of(text: str) -> Tensor:
        """(4,C) of the text that `str` gave."""
        return torch.tensor([float(x) for x in text.split()], dtype=torch.float64).unflatten(0, (4, -1))


@dataclass(frozen=True)
class PreparedEntry:
    """What the index says of one file."""

    path: str  # of the latents, relative to the split's folder
    frames: int
    problem: str = ""  # why there are none
    sha256: str = ""  # of the video
    bytes: int = 0  # of the latents


class PreparedDataset(ClipDataset):
    """Every clip of `clip_frames` frames in a folder that prepare.py wrote, in the order of `ClipDataset`.

    Item: as of `data.latents.LatentDataset`: `mean`, `std` (T,C,h,w), `a` (T,S,M) in float32, `y`, `path`, `start`.
    Files are mapped into memory, not read, and each process opens its own.

    Args:
        root: with prepared.json. audio_scale: of the mel; the one that prepare.py measured if not given.
    Attributes:
        facts: what decided the encoding, such as image_size, n_mels and codec.
        class_names, entries (usable files), skipped: [(path, reason)], as of ClipDataset.
    Raises:
        FileNotFoundError, ValueError: there is no sound index, or no file of this split is long enough; from an item,
            its file is missing or not the one that the index means.
    """

    def __init__(self, root: str | Path, split: str = "train", clip_frames: int = 10, audio_scale: float | None = None):
        index = load_prepared(root)
        if split not in index["splits"]:
            raise ValueError(
                f"{root} has no split {split!r} (found: {', '.join(index['splits'])}); "
                f"run prepare.py again with videos in {split}/"
            )
        self.folder, self.split, self.clip_frames = Path(root) / split, split, clip_frames
        self.facts, self.class_names = index["facts"], tuple(index["class_names"])
        self.audio_scale = index["audio_scale"] if audio_scale is None else audio_scale
        self._open_files: tuple[int, OrderedDict] = (0, OrderedDict())  # of this process, last used last
        self._select(_entries(index["splits"][split]))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open_files": (0, OrderedDict())}

    def _read(self, entry: PreparedEntry, start: int, count: int) -> dict[str, Any]:
        file, cut = self._open(entry), slice(start, start + count)
        mean, std, mel = (file.get_slice(name)[cut].float() for name in ("mean", "std", "mel"))
        label = self.class_names.index(Path(entry.path).parts[0]) if self.class_names else -1
        path = str(self.folder / entry.path)
        return {"mean": mean, "std": std, "a": self.audio_scale * mel, "y": label, "path": path, "start": start}

    def _open(self, entry: PreparedEntry):
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
    usable = [PreparedEntry(f"{e['path']}.safetensors", e["frames"], "", e["sha256"], e["bytes"])
              for e in split["files"]]  # fmt: skip
    return usable + [PreparedEntry(e["path"], 0, e["reason"]) for e in split["skipped"]]


def _open(path: Path, entry: PreparedEntry):
    """A mapped file, checked against the index."""
    try:
        file = safe_open(path, framework="pt")
        found = file.metadata()["sha256"], [file.get_slice(name).get_shape()[0] for name in ("mean", "std", "mel")]
    except (OSError, SafetensorError, LookupError, TypeError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise ValueError(f"{path} is {reason}; run prepare.py again") from None
    if found != (entry.sha256, [entry.frames] * 3):
        raise ValueError(f"{path} is not the file that {INDEX} means; run prepare.py again")
    return file
