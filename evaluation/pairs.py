"""Who is compared with whom: a film's sound with its prompt, or with the sound of the real video that it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from torch import Tensor

from data.av import read_audio
from data.captions import NoCaptionsError, read_captions
from data.folders import printable
from data.lines import parsed
from evaluation.videos import FPS, Folder, Video

SAMPLES = "samples.jsonl"  # what scripts that sample leave beside their films
FEWEST = 2  # pairs; an interval takes as many


@dataclass(frozen=True)
class Sounding:
    """The beginning of a video's sound, `frames` frames of the grid long."""

    video: Video
    frames: int

    @property
    def key(self) -> str:
        """The same for the same content."""
        return f"{self.video.sha256}:0+{self.frames}"

    def __str__(self) -> str:
        return str(self.video.path)

    def sound(self, sample_rate: int) -> Tensor:
        """float32 (frames / FPS * sample_rate,), mono, resampled; zeros where the track is shorter than the picture."""
        return read_audio(self.video.path, 0, self.frames * sample_rate // FPS, sample_rate)


def beginnings(videos: list[Video], seconds: int) -> list[Sounding]:
    """The whole sound of each video, or its first `seconds`."""
    return [Sounding(video, min(video.frames, seconds * FPS)) for video in videos]


@dataclass(frozen=True)
class Pairs:
    """Videos of a folder, the text or video that belongs to each, by what rule, and how many videos there are."""

    videos: list[Video]
    others: list
    rule: str
    of: int

    def __len__(self) -> int:
        return len(self.videos)

    def __str__(self) -> str:
        return self.rule if len(self) == self.of else f"{self.rule}, for {len(self)} of {self.of} videos"


def prompts(folder: Folder, num: int) -> Pairs:
    """Up to `num` videos with the text of each: its prompt in samples.jsonl or, where none has any, its first caption.

    Raises:
        ValueError: a line of samples.jsonl or of captions is damaged. NoCaptionsError: fewer than 2 have a text.
    """
    names = {_name(folder, video): video for video in folder.videos}
    said = {name: row["prompt"] for name, row in _records(folder.path).items() if row.get("prompt", "").strip()}
    texts, rule = {name: said[name] for name in names if name in said}, f"prompts of {SAMPLES}"
    if not texts:
        try:
            captions = read_captions(folder.path, names)
        except NoCaptionsError as error:
            where = f"{SAMPLES}, where sample.py leaves prompts, has none either"
            raise NoCaptionsError(f"{error} ({where})") from None
        first = {name: found[0] for name, found in captions.of_file.items() if found}
        texts, rule = {name: captions.texts[first[name]] for name in names if name in first}, "captions"
    if len(texts) < FEWEST:
        raise NoCaptionsError(f"{folder.path} has {rule} for {len(texts)} of {len(names)} videos, and a score needs "
                              f"{FEWEST}; give more")  # fmt: skip
    return _chosen(folder, {names[name]: text for name, text in texts.items()}, rule, num)


def partners(fake: Folder, real: Folder, num: int) -> Pairs:
    """Up to `num` generated videos with the real one of each.

    That is the input which samples.jsonl names (V2A), or the video of the same name; where no name is known, and
    nothing was skipped, the one at the same place in the order of names if there are as many.

    Raises:
        ValueError: fewer than 2 have a partner, or a line of samples.jsonl is damaged.
    """
    records, find = _records(fake.path), _finder(real)
    named = [records.get(_name(fake, video), {}).get("input") or _name(fake, video) for video in fake.videos]
    found = {video: partner for video, name in zip(fake.videos, named) if (partner := find(name))}
    rule = "real videos of the same name or input"
    if not found and len(fake.videos) == len(real.videos) and not fake.problems and not real.problems:
        found, rule = dict(zip(fake.videos, real.videos)), "real videos at the same place in the order of names"
    if len(found) < FEWEST:
        raise ValueError(
            f"{len(found)} of {len(fake.videos)} videos of {fake.path} have a partner in {real.path} by their input in "
            f"{SAMPLES} or by name (as {fake.videos[0].path.name}, {real.videos[0].path.name}), and a comparison needs "
            f"{FEWEST}; name them alike, or give as many of either in the same order"
        )
    return _chosen(fake, found, rule, num)


def _chosen(folder: Folder, others: dict[Video, object], rule: str, num: int) -> Pairs:
    videos = replace(folder, videos=list(others)).choose(num)
    return Pairs(videos, [others[video] for video in videos], rule, len(folder.choose(num)))


def _name(folder: Folder, video: Video) -> str:
    return printable(video.path.relative_to(folder.path).as_posix())


def _finder(real: Folder) -> Callable[[str], Video | None]:
    """The real video that a path means: whose own path is the end of it, or else the only one of its stem."""
    ends = {_parts(_name(real, video)): video for video in real.videos}
    often = Counter(parts[-1] for parts in ends)
    stems = {parts[-1]: video for parts, video in ends.items() if often[parts[-1]] == 1}

    def find(name: str) -> Video | None:
        parts = _parts(name)
        tails = (ends.get(parts[i:]) for i in range(len(parts)))
        return next(filter(None, tails), None) or stems.get(parts[-1])

    return find


def _parts(name: str) -> tuple[str, ...]:
    """Of a path, without suffix: an A2V film may be .mkv."""
    return PurePath(name).with_suffix("").parts


def _records(folder: Path) -> dict[str, dict]:
    """File -> its line in samples.jsonl, where there is one."""
    path, found = folder / SAMPLES, {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        row = parsed(line, f"{path}, line {number}")
        texts = (row.get("file"), row.get("prompt", ""), row.get("input", "")) if isinstance(row, dict) else (None,)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}, line {number} names no file with its prompt or input as texts; mend that line")
        found[row["file"]] = row
    return found
