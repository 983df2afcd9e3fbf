"""Features of clips: computed once per content, shared among processes, kept in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.videos import FPS, FRAMES, Clip, Folder, sha256_of
from metrics import audioclip, i3d, pictures, resize, weights

RANDOM = "random features, not comparable"
SALT = "rflav:"  # of the rule that fills networks without weights
VERSION = 1  # of all that decides what a feature is, beside what `Extractor.facts` says


class Extractor:
    """A network and the way its input is made. Subclasses say what a clip's input is, and embed a batch of them.

    frames, fps: of a clip. counted: what a row of features is of, in errors.
    group: clips that are embedded together, because each depends on the others; 1 if none does.
    alone: whether a clip is embedded alone, because inputs differ in size.

    Args:
        file: of the published weights; None for the stated rule that needs none.
        device: of the network.
    Raises:
        FileNotFoundError, ValueError: the weights are missing or of another network.
    """

    name: str
    frames, fps = FRAMES, FPS
    counted = "clips"
    group = 1
    alone = False
    module: type[nn.Module]
    source: str
    prefix = ""
    protocol: str

    def __init__(self, file: Path | None, device: str = "cpu"):
        self.net = self.module()
        if file is None:
            weights.fill(self.net, SALT)
            self.weights = RANDOM
        else:
            weights.load(self.net, file, self.source, self.prefix)
            self.weights = sha256_of(file)
        self.net, self.device = self.net.eval().to(device), device

    @cached_property
    def facts(self) -> dict:
        """All that decides what a feature is: two features with equal facts can be compared."""
        return {"features": self.name, "protocol": self.protocol, "weights_sha256": self.weights, "version": VERSION}

    @property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, folder: Folder, num: int) -> list:
        """What of a folder has features, a row each: up to `num` clips."""
        return folder.clips(num, cls.frames, cls.fps)

    def read(self, clip: Clip) -> Tensor:
        """Input of one clip."""
        raise NotImplementedError

    def embed(self, batch: Tensor) -> Tensor:
        """(B, ...) inputs -> (B, d)."""
        raise NotImplementedError


class Motion(Extractor):
    """Logits of Inception-I3D, of which FVD and KVD are distances."""

    name, module, source = "i3d", i3d.I3D, i3d.SOURCE

    def __init__(self, file: Path | None, device: str = "cpu", antialias: bool = False):
        super().__init__(file, device)
        self.antialias = antialias
        self.protocol = (
            f"Inception-I3D, 400 logits; {self.frames} frames at {self.fps} fps, by time; bicubic to 64 px letterbox, "
            f"antialias {antialias}, 8-bit; round trip through [-1, 1]; bilinear to 224 px without antialias"
        )

    def read(self, clip: Clip) -> Tensor:
        return resize.i3d_input(resize.round_trip(resize.letterbox(clip.picture(), antialias=self.antialias)))

    def embed(self, batch: Tensor) -> Tensor:
        return self.net(batch)


class Motion12(Motion):
    """The same of 12 frames at 6 fps, 2 s, of which FVD12 is a distance."""

    name, frames, fps, counted = "i3d12", 12, 6, "clips of 12 frames at 6 fps"


class Pictures(Extractor):
    """Features of FID's Inception of pictures spread over each whole video, side by side in one row."""

    name, module, source, counted, each = "fid_inception", pictures.Inception, pictures.SOURCE, "videos", 8
    protocol = (
        f"Inception v3 of FID (1008 classes), 2048-d pooled features; {each} frames of each video, in the middle of "
        f"equal parts of its length at {FPS} fps; bilinear to 299x299 px whatever the shape, without antialias"
    )

    @classmethod
    def of(cls, folder: Folder, num: int) -> list:
        """Up to `num` whole videos."""
        return folder.stills(num, cls.each)

    def read(self, clip) -> Tensor:
        return resize.inception_input(clip.picture())  # (8, 3, 299, 299)

    def embed(self, batch: Tensor) -> Tensor:
        return self.net(batch.flatten(0, 1)).unflatten(0, batch.shape[:2]).flatten(1)  # (B, 8 * 2048)


class Sound(Extractor):
    """Embedding of AudioCLIP's audio branch, of which FAD is a distance; as one should take it."""

    name, module, source, prefix, mode = "audioclip", audioclip.AudioCLIP, audioclip.SOURCE, "audio.", "sound"
    protocol = (
        "AudioCLIP audio branch, 1024-d; 1.6 s mono at 44100 Hz in 16-bit units; no bin below the power of 16-bit "
        "rounding noise; eval-mode batch norm"
    )

    def read(self, clip: Clip) -> Tensor:
        return clip.sound(44100)

    def embed(self, batch: Tensor) -> Tensor:
        return self.net.embed(batch, self.mode)


class CompatSound(Sound):
    """The same as in the published protocol: a clip's features depend on the batch that it is in."""

    name, group, mode = "audioclip_compat", 8, "compat"
    protocol = (
        "AudioCLIP audio branch, 1024-d; 1.6 s mono at 44100 Hz in [-1, 1], so nearly constant after its rescaling; "
        "train-mode batch norm over fixed batches of 8 in sorted order"
    )


@dataclass(frozen=True)
class Extracted:
    """Features (n, d) in the order of the clips; how many clips were computed by all processes of this run, and the
    seconds that one of them took here."""

    features: Tensor
    computed: int
    cached: int
    seconds_per_clip: float | None
    facts: dict  # of the extractor


def extract(
    clips: list[Clip], extractor: Extractor, cache: Path, processes, batch_size: int, progress: Callable
) -> Extracted:
    """Features of clips, as `shared` shares them.

    Raises:
        MediaError: a clip cannot be decoded.
        ValueError: features are not finite, or a group is too small for the network.
    """
    groups = _in_groups(clips, extractor.group)
    if extractor.group > 1 and len(groups[-1]) == 1:
        groups.pop()  # one clip alone cannot be normalised over its batch
    together = 1 if extractor.alone else max(1, batch_size // extractor.group)
    keys = ["|".join(clip.key for clip in group) for group in groups]
    made = shared(
        groups, keys, lambda missing: _embedded(missing, extractor, together), cache / extractor.identity, processes,
        lambda total: progress(total=total, desc=extractor.name), together,
    )  # fmt: skip
    features = torch.from_numpy(np.concatenate([arrays["features"] for arrays in made.arrays]))
    computed, mine = (sum(map(len, some)) for some in (made.computed, made.mine))
    each = made.seconds / mine if mine else None
    return Extracted(features, computed, len(features) - computed, each, extractor.facts)


@dataclass(frozen=True)
class Shared:
    """The arrays of all items; which items were computed by all processes of this run, and which here, in how long."""

    arrays: list[dict[str, np.ndarray]]
    computed: list
    mine: list
    seconds: float


def shared(
    items: list, keys: list[str], compute: Callable, folder: Path, processes, progress: Callable, together: int = 1
) -> Shared:
    """What `compute` makes of items: taken from a folder where it is there, else computed, a share by each process.

    Args:
        keys: of each item, equal for equal content.
        compute: compute(missing items) yields (item, arrays by name) in any order.
        folder: that all processes see; an interrupted run goes on with what it holds.
        processes: an `accelerate.PartialState`.
        progress: makes a bar of a total.
        together: items that `compute` takes at once; they go to one process, so that it rounds as a single one would.
    Raises:
        ValueError: what another process computed is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npz" for key in keys]
    found = {file: _load(file) for file in files}
    missing = {item: file for file, item in dict(zip(files, items)).items() if found[file] is None}
    processes.wait_for_everyone()  # so that all see the same files before the first is written
    batches, began = _in_groups(list(missing), together), time.perf_counter()
    mine = [item for batch in batches[processes.process_index :: processes.num_processes] for item in batch]
    with progress(len(mine)) as bar:
        for item, arrays in compute(mine):
            _save(missing[item], arrays)
            bar.update()
    seconds = time.perf_counter() - began
    processes.wait_for_everyone()
    found |= {file: _load(file) for file in missing.values()}
    if lost := [file for file, arrays in found.items() if arrays is None]:
        raise ValueError(f"{lost[0]} was computed but is not there; give --cache a folder that all processes see")
    return Shared([found[file] for file in files], list(missing), mine, seconds)


@torch.inference_mode()
def _embedded(groups: list[tuple[Clip, ...]], extractor: Extractor, together: int) -> Iterator[tuple]:
    """(group, its features), some groups embedded at a time; the next ones are read while these are embedded."""
    for batch, x in _read_ahead(_in_groups(groups, together), extractor.read):
        parts = [x] if extractor.group == 1 else x.split(extractor.group)  # clips of a group depend on each other
        rows = torch.cat([extractor.embed(part.to(extractor.device)).cpu() for part in parts])
        clips = [clip for group in batch for clip in group]
        if broken := [clip for clip, row in zip(clips, rows) if not row.isfinite().all()]:
            raise ValueError(f"{extractor.name} features of {broken[0]} are not finite; replace that file")
        for group, features in zip(batch, rows.split([len(group) for group in batch])):
            yield group, {"features": features.float().numpy()}


def _read_ahead(batches: list[tuple], read: Callable[[Clip], Tensor]) -> Iterator[tuple]:
    """(batch of groups, the input of all its clips), one batch read in advance."""

    def inputs(batch):
        return batch, torch.stack([read(clip) for group in batch for clip in group])

    with ThreadPoolExecutor(1) as reader:
        waiting = []
        for batch in batches:
            waiting.append(reader.submit(inputs, batch))
            if len(waiting) > 1:
                yield waiting.pop(0).result()
        yield from (ahead.result() for ahead in waiting)


def _in_groups(items: list, size: int) -> list[tuple]:
    return [tuple(items[i : i + size]) for i in range(0, len(items), size)]


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The file appears complete or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


def _load(path: Path) -> dict[str, np.ndarray] | None:
    """None if there is no such file, or it is damaged: it is only a cache."""
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error):
        return None
