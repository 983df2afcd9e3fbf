"""Frames of a file's grid."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import torch
from torch import Tensor

from data.av.grid import grid_length, select_frames
from data.av.media import (
    REORDER,
    MediaError,
    begin_of,
    can_seek,
    clock_zero,
    frame_ticks,
    open_media,
    rate_of,
    stream_of,
    tells_decoding_only,
)
from data.av.pixels import Screen
from data.av.probe import probe

Picture = tuple[av.VideoFrame, Screen]


def iter_frames(path: str | Path, fps: float = 10, start: int = 0, count: int | None = None) -> Iterator[Tensor]:
    """Frames start..start+count-1 of the file's grid, one uint8 (H,W,3) at a time; to the end when `count` is None.

    Raises:
        MediaError: the file ends before the last frame asked for, or is not readable.
    """
    count = probe(path).frames(fps) - start if count is None else count
    given = 0
    for frame, screen in islice(select_frames(_pictures(path, fps, start), fps, start), count):
        yield torch.from_numpy(screen.pixels(frame))
        given += 1
    if given < count:
        raise MediaError(
            f"{path} gave {given} of the {count} frames asked for from frame {start} at {fps:g} fps; "
            f"ask for fewer, or replace the file if it should be longer"
        )


def read_frames(path: str | Path, start: int, count: int, fps: float = 10) -> Tensor:
    """Frames start..start+count-1 of the file's grid as uint8 (T,H,W,3); errors as in `iter_frames`."""
    if start < 0 or count < 1:
        raise ValueError(f"start is {start} and count {count}; ask for at least 1 frame from frame 0 on")
    return torch.stack(list(iter_frames(path, fps, start, count)))


def _pictures(path: str | Path, fps: float, start: int) -> Iterator[tuple[Fraction, Picture | None]]:
    """(seconds, picture) from the last keyframe before frame `start` of the grid or at it, then (its end, None)."""
    with open_media(path) as container:
        film = _Film(container)
        timed = iter(film)
        if start and can_seek(container):
            since = start / Fraction(fps)
            film.seek(since)
            first = next(timed, None)
            if first is None or first[0] > since:  # MPEG-TS seeks land late, or past the end
                yield from _pictures(path, fps, 0)
                return
            timed = chain([first], timed)
        frame, screen = None, Screen(film.video)
        for begin, frame in timed:
            yield begin, (frame, screen)
        if frame is not None:
            yield grid_length(float(film.end(begin, frame)), float(rate_of(film.video)), fps) / Fraction(fps), None


class _Film:
    """The pictures of an open file, each with the seconds on the file's clock from when on it is shown."""

    def __init__(self, container: av.container.InputContainer):
        self.video = stream_of(container, "video")
        self._container, self._tick = container, frame_ticks(self.video)
        self._zero = round(clock_zero(container) / self.video.time_base)
        self._end = 0  # ticks, of the packets so far
        self._held = None  # ticks from when a picture is decoded to when it comes out

    def seek(self, since: Fraction) -> None:
        """Go to the last keyframe at or before `since` seconds."""
        if tells_decoding_only(self.video):
            next(iter(self), None)  # the first picture tells for how long the decoder holds them
        ticks = int(since / self.video.time_base) - (self._held or 0)
        self._container.seek(ticks + self._zero, stream=self.video)

    def __iter__(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        for packet in self._container.demux(self.video):
            frames = packet.decode()
            if not packet.is_discard and (begin := begin_of(packet)) is not None:
                self._end = max(self._end, begin - self._zero + (packet.duration or self._tick))
            for ticks, frame in zip(self._shown(packet, frames), frames):
                if ticks is not None:
                    yield ticks * self.video.time_base, frame

    def _shown(self, packet: av.Packet, frames: list[av.VideoFrame]) -> list[int | None]:
        """When the frames that a packet brings out are shown.

        They come out in this order. So where a file tells only when packets are decoded, each takes the time of the
        packet that brings it out, less the constant delay of the decoder; and the last ones fill the time to the end.
        """
        if not tells_decoding_only(self.video):
            return [None if frame.pts is None else frame.pts - self._zero for frame in frames]
        if not packet.size:
            return [self._end - left * self._tick for left in range(len(frames), 0, -1)]
        if not frames or packet.dts is None:
            return [None] * len(frames)
        if self._held is None:
            self._held = packet.dts - self._zero
        return [packet.dts - self._zero - self._held] * len(frames)

    def end(self, begin: Fraction, frame: av.VideoFrame) -> Fraction:
        """Seconds at which the last frame, shown from `begin` on, has been shown: the end of the last packet, though
        its decoder may have swallowed as many pictures as it can hold."""
        last = begin + (frame.duration or self._tick) * self.video.time_base
        return max(last, min(self._end, REORDER * self._tick + last / self.video.time_base) * self.video.time_base)
