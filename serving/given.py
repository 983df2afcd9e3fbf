"""A sound or a picture that a film follows from some frame on, as long as its file lasts; its own track is shown."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from data.av import MediaError
from data.frames import to_uint8
from pipeline.avcodec import AVCodec
from pipeline.conditional import SOURCES

FADE = 0.02  # s, from the model's sound to the given one and back
BEHIND = 64  # frames that can be asked for again after later ones, as when what nobody saw is made anew


class Given:
    """What is given to a film from its frame `start` on.

    Args:
        kind: "sound" or "picture". window: of the model, frames. done: called when the film does without it, to remove
            the file.
    Raises:
        MediaError: the file has no such track, or cannot be read.
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        codec: AVCodec,
        window: int,
        done: Callable[[], None] = lambda: None,
        name: str = "",
    ):
        self.kind, self.done, self.name = kind, done, name
        self._source = SOURCES[kind](path, codec, window + BEHIND)
        self.start, self.frames, self.modality = 0, self._source.frames, self._source.modality
        self._media, self._kept, self._read = self._original(), {}, 0
        self._fade, self.over = round(FADE * codec.spec.sample_rate), "has ended"  # why it ends, in words

    @property
    def end(self) -> int:
        """First frame of the film after it."""
        return self.start + self.frames

    def latents(self, frame: int) -> Tensor | None:
        """Of a frame of the film, as `Streams.give` asks; None where nothing is given."""
        return self._readable(self._source, frame - self.start) if self.start <= frame < self.end else None

    def _readable(self, read: Callable[[int], Tensor], number: int) -> Tensor | None:
        """What is read for a frame of the file; where that is damaged the file ends, and there is nothing."""
        try:
            return read(number)
        except (MediaError, OSError, StopIteration):
            self.frames, self.over = min(self.frames, number), f"of {self.name} cannot be read any further"
            return None

    def tail(self, frame: int) -> Tensor | None:
        """Samples with which a sound that is left before a frame of the film fades out; None where there is none."""
        if self.kind != "sound" or not self.start < frame < self.end:
            return None
        given = self._readable(self._frame, frame - self.start)
        return None if given is None else given[: self._fade]

    def shown(self, first: int, frames: Tensor, wave: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk, frames uint8 (t,H,W,3) and wave (t * samples_per_frame,), with the given track in place."""
        size = len(wave) // len(frames)
        for i in range(len(frames)):
            if not self.start <= first + i < self.end:
                continue
            given = self._readable(self._frame, first + i - self.start)
            if given is None:
                break
            if self.kind == "picture":
                frames = torch.cat([frames[:i], given[None], frames[i + 1 :]])
            else:
                here = slice(i * size, (i + 1) * size)
                faded = self._faded(first + i, wave[here], given)
                wave = torch.cat([wave[: here.start], faded, wave[here.stop :]])
        return frames, wave

    def _faded(self, frame: int, made: Tensor, given: Tensor) -> Tensor:
        """The sound of a frame: at the first and the last one it passes from one to the other within 20 ms."""
        if frame == self.start:
            given = faded(made[: self._fade], given)
        if frame == self.end - 1:
            given = torch.cat([given[: -self._fade], faded(given[-self._fade :], made[-self._fade :])])
        return given

    def _frame(self, number: int) -> Tensor:
        """The track of a frame of the file, which is read once, forward."""
        while self._read <= number:
            self._kept[self._read] = next(self._media)
            self._kept.pop(self._read - BEHIND, None)
            self._read += 1
        return self._kept[number]

    def _original(self) -> Iterator[Tensor]:
        """The file's own track by frames: samples as loud as they are, or a picture uint8 (H,W,3)."""
        if self.kind == "picture":
            return (to_uint8(picture).movedim(0, -1) for picture in self._source.track())
        return islice(self._source.track(), self.frames)


def faded(tail: Tensor, wave: Tensor) -> Tensor:
    """A wave (N,) into which the sound passes that went on as `tail`, which is no longer."""
    share = torch.arange(len(tail), 0, -1) / len(tail)
    return torch.cat([share * tail + (1 - share) * wave[: len(tail)], wave[len(tail) :]])
