"""Pictures and sound out of media files.

One clock rules both streams of a file. Its zero is the start of the picture (of the sound, in a file without picture):
frame j of a grid is what is shown at j / fps seconds, sample i of the sound is heard at i / sample_rate seconds.
"""

import heapq
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.stream import Disposition
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import resample

Channels = Literal["mean", "first"]
Kind = Literal["video", "audio"]
KINDS = {"video": "picture", "audio": "sound"}

SLACK = 0.002  # s; Matroska rounds every time to 1 ms, so the length of its picture may be 1 ms short
PREROLL = 0.25  # s; a decoder entered in mid-stream needs the packets before the first sample that is wanted
CUT = 0.5  # s; a file that ends this much before its header says is cut
HEADERLESS = ("mp3", "aac")  # FFmpeg guesses the length of these from their bit rate
GAP = 3600  # s; a longer hole in the sound is a damaged clock
REORDER = 16  # pictures that may be stored between one and the next to be shown, by the H.264 standard
KERNEL = 2**22  # filter coefficients (16 MB) that a resampler may need; usual rates need under 2**19


class MediaError(ValueError):
    """A media file cannot be read or written as asked: one sentence with the file, what is wrong, and the remedy."""


@dataclass(frozen=True)
class Gap:
    """The longest time without a new picture; or without sound while there is a picture, at its ends too."""

    seconds: float
    at: float  # s, on the clock of the file


@dataclass(frozen=True)
class MediaInfo:
    """What `probe` finds: picture size after rotation, and the length of the picture by its time stamps."""

    path: Path
    width: int  # pixels
    height: int  # pixels
    fps: float  # mean rate; only a hint when the rate varies
    seconds: float  # from the first picture's start to the last picture's end
    sample_rate: int  # Hz; 0 without sound
    channels: int  # 0 without sound
    gaps: dict[Kind, Gap]  # of the streams that there are

    @property
    def has_audio(self) -> bool:
        return self.channels > 0

    def frames(self, fps: float = 10) -> int:
        """Frames that the file has on a grid of `fps`."""
        return grid_length(self.seconds, self.fps, fps)


def probe(path: str | Path) -> MediaInfo:
    """Look at every packet of a file and decode one picture: exact in every container, and still cheap.

    Raises:
        MediaError: the file is missing, unreadable, without picture (then ask `probe_audio`), cut or damaged.
    """
    with open_media(path) as container:
        video, audio = stream_of(container, "video"), next(iter(container.streams.audio), None)
        heard = audio.codec_context if audio else None  # None, too, of a codec that nothing is known of
        picture = next(container.decode(video), None)
        if picture is None:
            raise MediaError(f"{path} has a video stream without a single picture; encode it again or remove it")
        height, width = _pixels(picture).shape[:2]
        seconds, gaps = _seconds(path, "video")
        return MediaInfo(
            path=Path(path),
            width=width,
            height=height,
            fps=float(rate_of(video)),
            seconds=seconds,
            sample_rate=heard.sample_rate if heard else 0,
            channels=heard.channels if heard else 0,
            gaps=gaps,
        )


@dataclass(frozen=True)
class AudioInfo:
    """What `probe_audio` finds in a sound file, or in the sound of a video."""

    path: Path
    seconds: float  # from the clock's zero to the last packet's end; what `read_audio` gives may differ by a packet
    sample_rate: int  # Hz
    channels: int
    gap: Gap


def probe_audio(path: str | Path) -> AudioInfo:
    """Look at every packet of a file with sound, with or without picture; a cover picture is no picture.

    Raises:
        MediaError: the file is missing, unreadable, without sound, cut or damaged.
    """
    with open_media(path) as container:
        context = stream_of(container, "audio").codec_context
        seconds, gaps = _seconds(path, "audio")
        return AudioInfo(Path(path), seconds, context.sample_rate, context.channels, gaps.get("audio", Gap(0, 0)))


def grid_length(seconds: float, rate: float, fps: float) -> int:
    """Number of frames that a picture of `seconds` at source rate `rate` has on a grid of `fps`.

    floor(seconds * fps): the last frame is shown for its whole time. Where `rate` is a whole multiple of `fps`, the
    grid picks every n-th source frame and an incomplete last group counts too, as in the released loader.
    """
    stride = rate / fps
    if abs(stride - round(stride)) < 1e-6:
        return math.ceil((seconds - SLACK) * fps)
    return math.floor((seconds + SLACK) * fps)


def select_frames(timed: Iterable[tuple[Fraction, Any]], fps: float, start: int = 0) -> Iterator[Any]:
    """What is shown at start/fps, (start+1)/fps, ...: the last item at or before each of these times.

    Args:
        timed: (seconds, item) in rising order; the last pair is (end, None), from when on nothing is shown. A first
            item that comes late is shown from the start.
    """
    shown, j = None, start
    for begin, item in timed:
        while shown is not None and j < begin * Fraction(fps):
            yield shown
            j += 1
        shown = item


def iter_frames(path: str | Path, fps: float = 10, start: int = 0, count: int | None = None) -> Iterator[Tensor]:
    """Frames start..start+count-1 of the file's grid, one uint8 (H,W,3) at a time; to the end when `count` is None.

    Raises:
        MediaError: the file ends before the last frame asked for, or is not readable.
    """
    count = probe(path).frames(fps) - start if count is None else count
    given = 0
    for frame in islice(select_frames(_pictures(path, fps, start), fps, start), count):
        yield torch.from_numpy(_pixels(frame))
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


def read_audio(
    path: str | Path, start: int = 0, count: int | None = None, sample_rate: int = 16000, channels: Channels = "mean"
) -> Tensor:
    """Samples [start, start + count) of the file's track at `sample_rate`: float32 (N,), zeros outside the track.

    A slice equals the same slice of the whole track resampled at once, but only its neighbourhood is decoded.
    (Where the clock is coarser than a sample, as in Matroska, sound is counted from the first packet on. And noise that
    an AAC encoder left to the decoder to invent, "perceptual noise substitution", is invented anew after a seek.)

    Args:
        start: first sample; may be negative.
        count: samples; None for all up to the end of the track (AAC: padded to a multiple of 1024 by its encoder).
        channels: "mean" of all channels or the "first" one.
    Raises:
        MediaError: the file has no sound or is not readable.
    """
    begin = max(start, 0)
    with open_media(path) as container:
        sound = _Sound(container, begin, sample_rate, channels)
        wave = sound.between(begin, None if count is None else max(start + count, begin))
    count = begin - start + len(wave) if count is None else count
    before = min(begin - start, count)
    return pad(wave, (before, count - before - len(wave)))


def iter_audio(
    path: str | Path, samples: int, sample_rate: int = 16000, channels: Channels = "mean"
) -> Iterator[Tensor]:
    """The whole track in consecutive blocks of `samples`, float32 (N,), the last one shorter, in constant memory.

    Together they equal `read_audio(path)`, whose arguments and errors they share.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; ask for blocks of at least 1")
    with open_media(path) as container:
        sound, begin = _Sound(container, 0, sample_rate, channels), 0
        while len(wave := sound.between(begin, begin + samples)):
            yield wave
            begin += samples


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What FFmpeg has to say against a file becomes a MediaError."""
    try:
        yield
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); replace the file or remove it") from error


@contextmanager
def open_media(path: str | Path) -> Iterator[av.container.InputContainer]:
    """An open file, its errors as in `reading`."""
    if not Path(path).is_file():
        raise MediaError(f"{path} does not exist or is not a file; check the path")
    with reading(path), av.open(str(path), metadata_errors="replace") as container:  # titles may be in any encoding
        for stream in container.streams.video:
            if stream.codec_context:
                stream.codec_context.thread_count = 1  # 2 threads cost half as much CPU again and are not faster
        yield container


def stream_of(container: av.container.InputContainer, kind: Kind) -> av.stream.Stream:
    """First stream of a kind that a decoder is known for; the cover picture of a song is no video."""
    streams = _streams(container, kind)
    if not streams:
        raise MediaError(f"{container.name} has no {kind} stream; choose a file that has one")
    if streams[0].codec_context is None:
        raise MediaError(f"{container.name} has {kind} in an unknown codec; convert it to H.264 and AAC")
    return streams[0]


def _streams(container: av.container.InputContainer, kind: Kind) -> list[av.stream.Stream]:
    return [s for s in getattr(container.streams, kind) if not s.disposition & Disposition.attached_pic]


def clock_zero(container: av.container.InputContainer) -> Fraction:
    """Clock zero of a file, in the seconds of its time stamps."""
    first = next(chain(_streams(container, "video"), container.streams.audio))
    return (first.start_time or 0) * first.time_base


def rate_of(video: av.VideoStream) -> Fraction:
    """Mean pictures per second."""
    return video.average_rate or video.guessed_rate or Fraction(25)


def _seconds(path: str | Path, kind: Kind) -> tuple[float, dict[Kind, Gap]]:
    """End of the picture or the sound by the time stamps of its packets, checked against the header; and the gaps."""
    with open_media(path) as container:
        stream, zero = stream_of(container, kind), clock_zero(container)
        promised = ((container.start_time or 0) + container.duration) / av.time_base if container.duration else 0
        tracks, trouble = _tracks(container, zero)
        ends = [track.end * track.time_base for track in tracks.values() if track.end is not None]
        mine = tracks.get(stream.index)
        end = mine.end * mine.time_base if mine and mine.end is not None else zero
        guessed = container.format.name in HEADERLESS
        firsts = {k: next(iter(_streams(container, k)), None) for k in KINDS}
        found = {k: tracks[s.index] for k, s in firsts.items() if s and s.index in tracks}
        shown = found.get("video")
        until = shown.end * shown.time_base if shown and shown.end is not None else None
        gaps = {k: times.gap(until) for k, times in found.items()}
    if trouble or (max(ends, default=zero) < promised - CUT and not guessed):
        raise MediaError(
            f"{path} is cut or damaged: {float(end - zero):.2f} s of {KINDS[kind]} can be read of a file of "
            f"{promised:.2f} s{trouble}; replace the file or remove it"
        )
    return float(end - zero), gaps


def _tracks(container: av.container.InputContainer, zero: Fraction) -> tuple[dict[int, "_Times"], str]:
    """Times of each stream, by its packets, and why reading stopped before the end of the file, or ""."""
    tracks: dict[int, _Times] = {}
    try:
        for packet in container.demux():
            if not packet.is_discard and (packet.pts, packet.dts) != (None, None):
                tracks.setdefault(packet.stream_index, _Times(packet.time_base, zero)).add(packet)
    except av.FFmpegError as error:
        return tracks, f" ({error.strerror})"
    return tracks, ""


class _Times:
    """End and longest gap of one stream, in its ticks, out of packets in the order of decoding, in constant memory."""

    def __init__(self, time_base: Fraction, zero: Fraction):
        self.time_base, self.end = time_base, None
        self._zero = self._last = round(zero / time_base)
        self._ahead: list[tuple[int, int]] = []  # (start, until when it fills a gap); earlier ones may follow
        self._longest = 0, self._zero

    def add(self, packet: av.Packet) -> None:
        """Take in the next packet; one without a time of its own (B-frames of AVI) counts by when it is decoded."""
        start = packet.dts if packet.pts is None else packet.pts
        if packet.pts is not None:
            end = start + (packet.duration or frame_ticks(packet.stream))
            self.end = end if self.end is None else max(self.end, end)
        heapq.heappush(self._ahead, (start, start + _sounding(packet)))
        if len(self._ahead) > REORDER:
            self._pass(*heapq.heappop(self._ahead))

    def _pass(self, start: int, until: int) -> None:
        self._longest = max(self._longest, (start - self._last, self._last))
        self._last = max(self._last, until)

    def gap(self, until: Fraction | None) -> Gap:
        """The longest one from the clock's zero to `until` (s; None: to the end of the stream), when all is in."""
        end = self.end if until is None else round(until / self.time_base)
        for start, lasts in (*sorted(self._ahead), *([] if end is None else [(end, end)])):
            self._pass(start, lasts)
        ticks, at = self._longest
        return Gap(float(ticks * self.time_base), float((at - self._zero) * self.time_base))


def _sounding(packet: av.Packet) -> int:
    """Ticks for which a packet of sound is heard; 0 of a picture, which is new for an instant only."""
    if packet.stream.type != "audio":
        return 0
    heard = packet.stream.codec_context
    known = heard and heard.sample_rate and round(heard.frame_size / heard.sample_rate / packet.time_base)
    return min(filter(None, (known, packet.duration)), default=0)  # mp4 lets a packet before a gap last until its end


def frame_ticks(stream: av.stream.Stream) -> int:
    """Length of one video frame in the stream's clock, for files that do not store it; 0 for other streams."""
    return round(1 / rate_of(stream) / stream.time_base) if stream.type == "video" else 0


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


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """Upright RGB pixels, uint8 (H,W,3), in memory of their own."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).copy()


class _Sound:
    """The track of an open file, resampled stretch by stretch and decoded no further than asked for."""

    def __init__(self, container: av.container.InputContainer, begin: int, sample_rate: int, channels: Channels):
        """Begin: first sample, at `sample_rate`, that will be asked for."""
        if channels not in ("mean", "first"):
            raise ValueError(f"channels is {channels!r}, expected 'mean' or 'first'")
        audio = stream_of(container, "audio")
        self._rates = source_rate, _ = audio.codec_context.sample_rate, sample_rate
        if not source_rate:
            raise MediaError(f"{container.name} does not tell the sample rate of its sound; convert it to mp4")
        divisor = math.gcd(source_rate, sample_rate)
        self._old, self._new = source_rate // divisor, sample_rate // divisor  # filters repeat every `old` samples
        if self._old * self._new > KERNEL:
            raise MediaError(
                f"{container.name} has sound at {source_rate} Hz, which has no manageable ratio to "
                f"{sample_rate} Hz; convert it to 48000 Hz"
            )
        self._margin = math.ceil(7 / min(self._old, self._new))  # repeats that a filter of 6.1 zero crossings reaches
        first = (begin // self._new - self._margin) * self._old
        self._track = _Track(_sounds(container, audio, first), channels)

    def between(self, begin: int, stop: int | None) -> Tensor:
        """Samples [begin, stop) at `sample_rate`, fewer where the track ends before; `begin` never falls."""
        first = (begin // self._new - self._margin) * self._old
        last = None if stop is None else (-(-stop // self._new) + self._margin) * self._old
        wave = self._track.between(first, last)
        if not len(wave):
            return wave
        origin, length = first // self._old * self._new, -(-self._track.end * self._new // self._old)
        stop = length if stop is None or (self._track.ended and length < stop) else stop
        return resample(wave, *self._rates)[begin - origin : max(stop, begin) - origin]


class _Track:
    """Source samples of a track on the file's clock, zeros where it has none."""

    def __init__(self, sounds: Iterator[tuple[int, np.ndarray]], channels: Channels):
        self.end, self.ended = 0, False  # of what was decoded so far, and whether that was all
        self._sounds, self._channels = sounds, channels
        self._pieces: list[tuple[int, np.ndarray]] = []

    def between(self, first: int, last: int | None) -> Tensor:
        """Samples [first, last), float32, or up to the end when `last` is None; what lies before `first` is dropped."""
        self._decode(last)
        self._pieces = [(position, mono) for position, mono in self._pieces if position + len(mono) > first]
        wave = np.zeros(max((self.end if last is None else last) - first, 0), dtype=np.float32)
        for position, mono in self._pieces:
            mono, at = mono[max(0, first - position) :], max(0, position - first)
            wave[at : at + len(mono)] = mono[: max(len(wave) - at, 0)]
        return torch.from_numpy(wave)

    def _decode(self, last: int | None) -> None:
        """Go on to the first piece that lies wholly after `last`."""
        while last is None or not self._pieces or self._pieces[-1][0] < last:
            position, samples = next(self._sounds, (None, None))
            if samples is None:
                self.ended = True
                return
            mono = samples.mean(0) if self._channels == "mean" else samples[0]
            self._pieces.append((position, mono))
            self.end = max(self.end, position + len(mono))


def _sounds(
    container: av.container.InputContainer, audio: av.AudioStream, first: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(position in samples on the file's clock, float32 (channels, n)) from some place before sample `first` on."""
    rate, zero = audio.codec_context.sample_rate, clock_zero(container)
    tick = audio.time_base * rate  # samples; above 1, pts cannot name a sample
    since = Fraction(first, rate) - Fraction(PREROLL)
    if since > 0 and tick <= 1:
        container.seek(int((since + zero) / audio.time_base), stream=audio)
    to_float = av.AudioResampler(format="flt")  # not planar: PyAV reads stray memory at 8 planes and more
    expected = None
    for frame in container.decode(audio):
        if frame.sample_rate != rate:
            raise MediaError(
                f"{container.name} changes from {rate} to {frame.sample_rate} Hz in mid-track; convert it to one rate"
            )
        position = round((frame.pts * audio.time_base - zero) * rate)
        if tick > 1 and expected is not None and abs(position - expected) <= 2 * tick:
            position = expected  # rounding of the clock, not a gap
        if expected is not None and position - expected > GAP * rate:
            raise MediaError(
                f"{container.name} has no sound for {(position - expected) / rate / 3600:.1f} hours from "
                f"{expected / rate:.1f} s on, so its clock is damaged; convert it with new time stamps"
            )
        for part in to_float.resample(frame):
            yield position, part.to_ndarray().reshape(-1, part.layout.nb_channels).T
        expected = position + frame.samples
