"""Folders of videos as the clips that are compared: which windows of which files, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import file_digest
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from data.av import MediaError, iter_frames, probe, read_audio, read_frames
from data.choice import choose
from data.folders import SPLITS, SUFFIXES, Skipped, walk

FPS = 10  # grid on which all videos are compared; a file of another rate is read by time
FRAMES = 16  # of a clip
SLOWEST = 1  # fps of a file; at fewer its frames last so long that its clock is damaged
SILENT = "no sound track"  # a problem where sound is needed
SHOWN = 3  # problems in an error
RULE = "hash of the content, classes in proportion"  # of the choice of fewer than all


@dataclass(frozen=True)
class Video:
    """A file that can be used: its content's hash, its length on the grid, its own size and rate, whether it sounds."""

    path: Path
    sha256: str
    frames: int
    width: int
    height: int
    fps: float
    has_sound: bool


@dataclass(frozen=True)
class Clip:
    """`frames` frames of a video from frame `start` on, with their sound; both count frames at `fps`."""

    video: Video
    start: int
    frames: int = FRAMES
    fps: int = FPS

    @property
    def key(self) -> str:
        """The same for the same content, whatever the file is called; its length stands in the extractor's facts."""
        return f"{self.video.sha256}:{self.start}"

    def __str__(self) -> str:
        return f"{self.video.path} from frame {self.start}"

    def picture(self) -> Tensor:
        """uint8 (frames,H,W,3), as large as the file has them."""
        return read_frames(self.video.path, self.start, self.frames, self.fps)

    def sound(self, sample_rate: int) -> Tensor:
        """float32 (frames / fps * sample_rate,), mono; zeros where the track is shorter than the picture."""
        start, end = (frame * sample_rate // self.fps for frame in (self.start, self.start + self.frames))
        return read_audio(self.video.path, start, end - start, sample_rate)


@dataclass(frozen=True)
class Still:
    """`count` pictures of a whole video: those in the middle of as many equal parts of its frames."""

    video: Video
    count: int

    @property
    def key(self) -> str:
        """The same for the same content."""
        return f"{self.video.sha256}:{self.count} of {self.video.frames}"

    def __str__(self) -> str:
        return str(self.video.path)

    def picture(self) -> Tensor:
        """uint8 (count,H,W,3), as large as the file has them, decoded in one pass."""
        chosen = [(2 * i + 1) * self.video.frames // (2 * self.count) for i in range(self.count)]
        frames = enumerate(iter_frames(self.video.path, FPS, 0, chosen[-1] + 1))
        return torch.stack([frame for i, frame in frames if i in chosen])


@dataclass(frozen=True)
class Folder:
    """The usable videos of a folder, sorted, what is wrong with the others: (path, reason), and the seed of choices."""

    path: Path
    videos: list[Video]
    problems: Skipped
    seed: int = 0

    def facts(self) -> dict:
        """For the record: how many videos, of which sizes and rates, and what is wrong with the others."""
        sizes = sorted({f"{video.width}x{video.height}" for video in self.videos})
        rates = sorted({round(video.fps, 3) for video in self.videos})
        return {"path": str(self.path), "videos": len(self.videos), "sizes": sizes, "fps": rates,
                "resampled_by_time": rates != [FPS], "problems": self.problems}  # fmt: skip

    def choose(self, num: int, frames: int = FRAMES) -> list[Video]:
        """Up to `num` of the videos of at least `frames` frames, by the rule of `data.choice`."""
        long = [video for video in self.videos if video.frames >= frames]
        return choose(long, num, self.seed, lambda video: video.sha256, self.class_of)

    def class_of(self, video: Video) -> str:
        """Its first folder; "" for one beside the class folders."""
        *folders, _ = video.path.parts[len(self.path.parts) :]  # relative_to() takes a second for 20,000 videos
        return folders[0] if folders else ""

    def clips(self, num: int, frames: int = FRAMES, fps: int = FPS) -> list[Clip]:
        """Up to `num` clips, `frames` frames at `fps`: the first window of every video, then every second one, then on.

        Where not all are asked for, the videos of the last round are chosen. Windows of a video do not overlap.
        """
        clips, start = [], 0
        while len(clips) < num and (videos := self.choose(num - len(clips), ceil((start + frames) * FPS / fps))):
            clips += [Clip(video, start, frames, fps) for video in videos]
            start += frames
        return clips

    def stills(self, num: int, count: int) -> list[Still]:
        """`count` pictures of each of up to `num` videos."""
        return [Still(video, count) for video in self.choose(num)]

    @property
    def sounds(self) -> bool:
        """Whether any video has a sound track."""
        return any(video.has_sound for video in self.videos)

    def heard(self) -> Folder:
        """With videos without a sound track among the problems; itself where none has one."""
        silent = [(str(video.path), SILENT) for video in self.videos if not video.has_sound]
        heard = [video for video in self.videos if video.has_sound]
        return replace(self, videos=heard, problems=self.problems + silent) if heard else self

    def chosen(self, num: int) -> dict:
        """For the record: the file of each of `num` clips, and what chose them."""
        files = [clip.video.path.relative_to(self.path).as_posix() for clip in self.clips(num)]
        return {"chosen_by": f"{RULE}, seed {self.seed}", "chosen": files}


def find_videos(path: Path, split: str, sound: bool, progress: Callable | None = None, seed: int = 0) -> Folder:
    """Look at every video of a folder, or of the split of a data set, in all its folders that are not hidden.

    Args:
        sound: whether videos without a sound track are a problem.
        progress: wraps the work as tqdm does: progress(iterable, total=n).
        seed: of the choice of fewer than all.
    Raises:
        ValueError: there is none that can be used, or it is a data set without that split.
    """
    root = _root(path, split)
    found, skipped = walk(root)
    files = [root / file for file in found]
    if not files:
        raise ValueError(f"{root} has no videos ({', '.join(sorted(SUFFIXES))}); give a folder that has some")
    with ThreadPoolExecutor() as pool:
        looked = pool.map(lambda file: _look(file, sound), files)
        looked = list(progress(looked, total=len(files)) if progress else looked)
    videos = [found for found in looked if isinstance(found, Video)]
    problems = [(str(file), found) for file, found in zip(files, looked) if isinstance(found, str)]
    problems += [(str(root / file), reason) for file, reason in skipped]
    if not videos:
        raise ValueError(f"{root} has no usable video: {told(problems)}; replace them")
    return Folder(root, videos, problems, seed)


def _root(path: Path, split: str) -> Path:
    """The split's folder in a data set, else the folder itself."""
    if (path / split).is_dir():
        return path / split
    if others := [name for name in SPLITS if (path / name).is_dir()]:
        raise ValueError(f"{path} has no folder {split!r}, but {' and '.join(others)}; give --split, or one of them")
    return path


def told(problems: list[tuple[str, str]]) -> str:
    """The first problems in a few words."""
    shown = "; ".join(f"{Path(path).name}: {reason}" for path, reason in problems[:SHOWN])
    return shown + (f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")


def _look(path: Path, sound: bool) -> Video | str:
    """A video, or why it cannot be used. Its packets are read to the end, so a false header is found out."""
    try:
        info = probe(path)
    except MediaError as error:
        return str(error).removeprefix(f"{path} ").partition(";")[0]
    if info.fps < SLOWEST:
        return f"damaged clock: {info.fps:.2g} frames a second"
    if sound and not info.has_audio:
        return SILENT
    if (frames := info.frames(FPS)) < FRAMES:
        return f"fewer than {FRAMES} frames at {FPS} fps: {frames}"
    return Video(path, sha256_of(path), frames, info.width, info.height, info.fps, info.has_audio)


def sha256_of(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
