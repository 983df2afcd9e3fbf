"""Films of any length by a model of whole clips, one side given: each clip begins with the end of the one before."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.text import NULL_TEXT
from pipeline.avcodec import ClipCodec
from pipeline.clips import ClipPipeline
from pipeline.sources import Source

OVERLAP = 0.25  # of a clip, at least, which the next one begins with
FADE = 0.02  # seconds from the sound of one clip to that of the next, in the middle of their overlap


class Joined:
    """A film that grows by a clip at a time, in constant memory.

    Of a clip after the first, what overlaps with the one before is given: the same tokens of sound, or the latents of
    the same pictures. Where a decoder knows neither past nor future it errs at the ends of a clip, so the sound passes
    from one clip to the next in the middle of their overlap.

    Args:
        source: of the given side. given: which it is. frames: of a clip.
    Attributes:
        number: of the next clip. first: its first frame.
    """

    def __init__(self, pipe: ClipPipeline, source: Source, given: str, frames: int):
        self.pipe, self.source, self.given, self.frames = pipe, source, given, frames
        self.number, self.first = 0, 0
        self._unit, self._media, self._tokens = pipe.codec.unit, None, None

    @property
    def ended(self) -> bool:
        """Whether there is no next clip."""
        return self.first >= self.source.frames

    @property
    def _overlap(self) -> int:
        """Frames that the next clip has in common with the one before."""
        return 0 if self._media is None else len(self._media)

    def shown(self) -> Tensor:
        """Latents (1,...) of the given side for the next clip."""
        return self.source.clip(self.first, self.frames)

    def beginning(self) -> Tensor:
        """Latents (K,...) that the made side of the next clip begins with, (0,...) of the first one."""
        codec = self.pipe.codec
        if self._media is None:
            return torch.zeros(0)
        if self.given == "picture":
            return self._tokens[: self._tokens_of(self._overlap)]
        pixels = self._media.movedim(-1, 1).float() / 127.5 - 1
        return codec.frames.encode(pixels[None].to(self.pipe.device))[0][0]

    def add(self, media: Tensor, tokens: Tensor) -> Tensor:
        """The part of the film that is now done: frames uint8 (t,H,W,3), or sound by frames (t,samples_per_frame).

        Args:
            media: of the next clip, likewise. tokens: latents of its made side.
        """
        joined = media if self._media is None else self._join(self._media, media)
        left = self.source.frames - self.first
        if left <= self.frames:
            self.first, self._media = self.source.frames, None
            return joined[:left]
        step = next_start(self.first, self.frames, self.source.frames, self._unit) - self.first
        self._media, self._tokens = joined[step:], tokens[self._tokens_of(step) :]
        self.first, self.number = self.first + step, self.number + 1
        return joined[:step]

    def _tokens_of(self, frames: int) -> int:
        """How many tokens of sound are whole in so many frames."""
        return frames * self.pipe.spec.samples_per_frame // self.pipe.codec.sound.hop

    def _join(self, before: Tensor, after: Tensor) -> Tensor:
        """A clip whose beginning is the end of the one before: its pictures, or its sound until it passes over."""
        overlap = len(before)
        if self.given == "sound":
            return torch.cat([before, after[overlap:]])
        samples, fade = before.numel(), round(FADE * self.pipe.spec.sample_rate)
        way = (torch.arange(samples) - samples / 2) / fade + 0.5  # 0 to 1 in the middle
        weight = torch.sin(way.clamp(0, 1) * torch.pi / 2).square().view_as(before)
        return torch.cat([before + weight * (after[:overlap] - before), after[overlap:]])


def next_start(first: int, clip: int, frames: int, unit: int) -> int:
    """First frame of the clip after that at `first`: three quarters on, or where the last one ends with the film.

    Args:
        clip: frames of each. frames: of the film. unit: frames by which clips can be moved.
    """
    last = -(-(frames - clip) // unit) * unit  # less than a unit of it is beyond the end
    return min(first + int((1 - OVERLAP) * clip) // unit * unit, last)


def check_joined(codec: ClipCodec, frames: int, clip: int) -> None:
    """Raise a ValueError if clips of `clip` frames are too short to overlap in a film of `frames`."""
    if frames > clip and next_start(0, clip, frames, codec.unit) == 0:
        raise ValueError(f"clips of {clip} frames cannot overlap where they move by {codec.unit}; give --video-length "
                         f"{clip}, for the first of each input")  # fmt: skip


def next_clips(
    films: Sequence[tuple[int, int | None, Joined]], seed: int, how: tuple[int, float, str]
) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
    """The next clip of each of some films, made together: how many frames are done, and these, or their wave.

    Args:
        films: number of the sample, its label or None, and the film. how: as of `ClipPipeline.sample`.
    """
    numbers, labels, joined = zip(*films)
    pipe, given = joined[0].pipe, joined[0].given
    beginnings = [film.beginning() for film in joined]
    counts = torch.tensor([len(x) for x in beginnings])
    begun = (torch.nn.utils.rnn.pad_sequence(_like_longest(beginnings), True), counts) if counts.any() else None
    made = pipe.sample(
        numbers,
        joined[0].frames,
        torch.tensor([NULL_TEXT if y is None else y for y in labels]),
        seed,
        *how,
        given={given: torch.cat([film.shown() for film in joined])},
        begun=begun,
        clip=[film.number for film in joined],
    )
    for row, film in enumerate(joined):
        if given == "picture":
            done = film.add(made.wave[row].cpu().unflatten(0, (-1, pipe.spec.samples_per_frame)), made.a[row])
            yield len(done), None, done.flatten()
        else:
            done = film.add(made.frames[row].cpu(), made.v[row])
            yield len(done), done, None


def _like_longest(rows: Sequence[Tensor]) -> list[Tensor]:
    """Rows (K,...) of which those of no length take the others' shape."""
    longest = max(rows, key=len)
    return [longest[:0] if not len(x) else x for x in rows]
