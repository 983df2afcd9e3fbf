"""A film on show: what of it was shown in the last two minutes, as pieces for the page, and its history."""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.av import MediaError, Writer
from pipeline import StreamState
from pipeline.film import RealClip
from pipeline.spec import AVSpec
from pipeline.streams import Chunk
from serving.fragments import Fragments
from serving.given import Given, faded
from serving.history import History

KEPT = 120  # s that can be recorded and gone back to
BLOCK = 64  # frames that are written at once
PLACES = 0.5  # s from one place that a fork can begin at to the next


@dataclass(frozen=True)
class Shown:
    """A frame that was shown: uint8 (H,W,3), its samples, and the state before it where a fork may begin."""

    index: int
    pixels: Tensor
    wave: Tensor
    state: StreamState | None


def record(shown: tuple[Shown, ...], path: Path, spec: AVSpec) -> None:
    """Write frames that were shown as an mp4, piece by piece."""
    with Writer(path, spec.image_size, spec.image_size, spec.fps, spec.sample_rate, wav=False) as writer:
        for first in range(0, len(shown), BLOCK):
            some = shown[first : first + BLOCK]
            writer.write(torch.stack([one.pixels for one in some]), torch.cat([one.wave for one in some]))


@dataclass(frozen=True)
class Piece:
    """Something for the page: kind "opening", "fragment" or "sound" of film `film`; frame: the newest one in it."""

    kind: str
    film: int
    frame: int
    data: bytes


class Film:
    """A film on show.

    Args:
        number: its name, never used twice. state: of its stream before the first frame shown. real: clip whose end it
            begins with. parent: number of the film that it left, and 0.
    Attributes:
        state: after the last frame shown. done: called when the clip is over. first, next: frames between which it was
            shown.
    """

    def __init__(
        self,
        number: int,
        state: StreamState,
        spec: AVSpec,
        history: History,
        real: RealClip | None = None,
        parent: int = 0,
    ):
        self.number, self.state, self.history, self.parent = number, state, history, parent
        self.spec, self.real = spec, real
        self.first = self.next = state.frame
        self.given, self._before, self.done, self._tail = None, state, _nothing, None
        self.fragments = Fragments(self.spec.image_size, self.spec.fps, self.spec.sample_rate)
        self.shown: deque[Shown] = deque(maxlen=KEPT * self.spec.fps)
        self._every = max(1, round(PLACES * self.spec.fps))

    @property
    def unbegun(self) -> bool:
        """Whether it is a new film of which nothing was shown, so that it may as well begin anew."""
        return self.next == self.first and self.history.now.begun == "new"

    def leave_clip(self) -> None:
        """The clip that it began with is over; its file is done with."""
        self.done()
        self.real, self.done = None, _nothing

    def follow(self, given: Given | None) -> None:
        """What is given from now on; the file of what was given before is done with, once its sound has faded out."""
        if self.given:
            tail = self.given.tail(self.next)
            self._tail = self._tail if tail is None else tail  # of what was heard last
            self.given.done()
        self.given = given

    def show(self, chunk: Chunk) -> list[Piece]:
        """Take in the next chunk; what there is for the page."""
        frames, wave = chunk.frames.cpu(), chunk.wave.cpu().float()
        if self.real:
            with suppress(MediaError, OSError):  # where the clip cannot be read it is shown as the model has it
                frames, wave = self.real.over(chunk.first, frames, wave)
            if chunk.first + len(frames) >= self.real.frames:
                self.leave_clip()
        if self._tail is not None:
            wave, self._tail = faded(self._tail, wave), None
        if self.given:
            frames, wave = self.given.shown(chunk.first, frames, wave)
        size = self.spec.samples_per_frame
        for i, pixels in enumerate(frames):
            place = self._before if not i and chunk.first % self._every == 0 else None
            self.shown.append(Shown(chunk.first + i, pixels, wave[i * size : (i + 1) * size], place))
        begun = bool(self.fragments.opening)
        fragments = self.fragments.add(frames, wave)
        self.next, self.state = chunk.first + len(frames), chunk.state
        self._before = chunk.state
        pieces = [Piece("sound", self.number, self.next - 1, self._heard(chunk, wave))]
        if self.fragments.opening and not begun:
            pieces.append(Piece("opening", self.number, self.first, self.fragments.opening))
        return pieces + [Piece("fragment", self.number, self.next - 1, data) for data in fragments]

    def _heard(self, chunk: Chunk, wave: Tensor) -> bytes:
        """What is drawn of a chunk: of each mel frame the level and the bins from low to high, 0 to 255 each."""
        bins = (chunk.a.flatten(0, 1).cpu().float() / self.spec.audio_scale / 2 + 0.5).clamp(0, 1)  # (t * S,M)
        level = wave.view(len(bins), -1).square().mean(1).sqrt().clamp(1e-5)
        level = (1 + level.log10() / 3).clamp(0, 1)  # 0 at -60 dB, 1 at full scale
        return (255 * torch.cat([level[:, None], bins], 1)).round().to(torch.uint8).numpy().tobytes()

    def place(self, frame: int) -> StreamState:
        """The nearest place at or before a frame, from which a fork may begin, or the first one; else the present."""
        places = [shown.state for shown in self.shown if shown.state and shown.state.frame > self.first]
        if frame >= self.next or not places:
            return self.state
        return next((state for state in reversed(places) if state.frame <= frame), places[0])

    def between(self, first: int, end: int) -> tuple[Shown, ...]:
        """What was shown from a frame on and before another, of the last two minutes.

        Raises:
            ValueError: nothing was.
        """
        shown = tuple(frame for frame in self.shown if first <= frame.index < end)
        if not shown:
            raise ValueError(f"nothing of film {self.number} is kept of frames {first} to {end}; choose another moment")
        return shown

    def close(self) -> None:
        """Let go of what belongs to it."""
        self.follow(None)
        self.leave_clip()
        self.fragments.close()


def _nothing() -> None:
    """What there is to do without a file."""
