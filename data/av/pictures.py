"""Frames of a file's grid."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import torch
from torch import Tensor

from data.av.grid import grid_length, select_frames
from data.av.media import MediaError, clock_zero, frame_ticks, open_media, rate_of, stream_of
from data.av.pixels import pixels
from data.av.probe import probe


def iter_frames(path: str | Path, fps: float = 10, start: int = 0, count: int | None = None) -> Iterator[Tensor]:
    """Frames start..start+count-1 of the file's grid, one uint8 (H,W,3) at a time; to the end when `count` is None.

    Raises:
        MediaError: the file ends before the last frame asked for, or is not readable.
    """
    count = probe(path).frames(fps) - start if count is None else count
    given = 0
    for frame in islice(select_frames(_pictures(path, fps, start), fps, start), count):
        yield torch.from_numpy(pixels(frame))
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


def _pictures(path: str | Path, fps: float, start: int) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
    """(seconds, frame) from the last keyframe at or before frame `start` of the grid, then (end of the grid, None)."""
    with open_media(path) as container:
        video, zero = stream_of(container, "video"), clock_zero(container)
        shown = (frame for frame in container.decode(video) if frame.pts is not None)
        timed = ((frame.pts * video.time_base - zero, frame) for frame in shown)
        if start:
            since = start / Fraction(fps)
            container.seek(int((since + zero) / video.time_base), stream=video)
            first = next(timed, None)
            if first is None or first[0] > since:  # MPEG-TS seeks land late, or past the end
                yield from _pictures(path, fps, 0)
                return
            timed = chain([first], timed)
        frame = None
        for begin, frame in timed:
            yield begin, frame
        if frame is not None:
            end = begin + (frame.duration or frame_ticks(video)) * video.time_base
            yield grid_length(float(end), float(rate_of(video)), fps) / Fraction(fps), None
