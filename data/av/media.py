"""An open media file, and the clock that rules both of its streams.

Its zero is the start of the picture (of the sound, in a file without picture): frame j of a grid is what is shown at
j / fps seconds, sample i of the sound is heard at i / sample_rate seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal

import av
from av.stream import Disposition

Kind = Literal["video", "audio"]
REORDER = 16  # pictures that may be stored between one and the next to be shown, by the H.264 standard


class MediaError(ValueError):
    """A media file cannot be read or written as asked: one sentence with the file, what is wrong, and the remedy."""


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What FFmpeg has to say against a file becomes a MediaError."""
    try:
        yield
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); replace the file or remove it") from error


@contextmanager
def open_media(path: str | Path, formats: str | None = None) -> Iterator[av.container.InputContainer]:
    """An open file, its errors as in `reading`; of some of FFmpeg's formats alone, or of any."""
    if not Path(path).is_file():
        raise MediaError(f"{path} does not exist or is not a file; check the path")
    how = {"options": {"format_whitelist": formats}} if formats else {}
    with reading(path), av.open(str(path), metadata_errors="replace", **how) as container:  # titles of any encoding
        for stream in container.streams.video:
            if stream.codec_context:
                stream.codec_context.thread_count = 1  # 2 threads cost half as much CPU again and are not faster
        yield container


def stream_of(container: av.container.InputContainer, kind: Kind) -> av.stream.Stream:
    """First stream of a kind that a decoder is known for; the cover picture of a song is no video."""
    streams = streams_of(container, kind)
    if not streams:
        raise MediaError(f"{container.name} has no {kind} stream; choose a file that has one")
    if streams[0].codec_context is None:
        raise MediaError(f"{container.name} has {kind} in an unknown codec; convert it to H.264 and AAC")
    return streams[0]


def streams_of(container: av.container.InputContainer, kind: Kind) -> list[av.stream.Stream]:
    """All streams of a kind, without cover pictures."""
    return [s for s in getattr(container.streams, kind) if not s.disposition & Disposition.attached_pic]


def clock_zero(container: av.container.InputContainer) -> Fraction:
    """Clock zero of a file, in the seconds of its time stamps."""
    first = next(chain(streams_of(container, "video"), container.streams.audio))
    return (first.start_time or 0) * first.time_base


def rate_of(video: av.VideoStream) -> Fraction:
    """Mean rate of a picture, frames per second."""
    return video.average_rate or video.guessed_rate or Fraction(25)


def frame_ticks(stream: av.stream.Stream) -> int:
    """Length of one video frame in the stream's clock, for files that do not store it; 0 for other streams."""
    return round(1 / rate_of(stream) / stream.time_base) if stream.type == "video" else 0


def begin_of(packet: av.Packet) -> int | None:
    """When a packet is shown or heard, in its ticks; where a file does not say, when it is decoded."""
    unsaid = packet.pts is None or tells_decoding_only(packet.stream)
    return packet.dts if unsaid else packet.pts


def tells_decoding_only(stream: av.stream.Stream) -> bool:
    """Whether a file says when pictures are decoded, but not when they are shown: AVI. FFmpeg invents the latter."""
    return stream.type == "video" and stream.container.format.name == "avi"


def can_seek(container: av.container.InputContainer) -> bool:
    """Whether the first packets after a seek are whole and have their own times: not in MPEG program streams."""
    return container.format.name != "mpeg"
