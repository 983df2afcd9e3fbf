"""Media files in and out: the only file that imports PyAV.

One clock rules both streams of a file. Its zero is the start of the picture (of the sound, in a file without picture):
frame j of a grid is what is shown at j / fps seconds, sample i of the sound is heard at i / sample_rate seconds.
"""

import math
import os
import wave as wavefile
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
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import resample

Channels = Literal["mean", "first"]

SLACK = 0.002  # s; Matroska rounds every time to 1 ms, so the length of its picture may be 1 ms short
PREROLL = 0.25  # s; a decoder entered in mid-stream needs the packets before the first sample that is wanted
CUT = 0.5  # s; a file that ends this much before its header says is cut


class MediaError(ValueError):
    """A media file cannot be read or written as asked: one sentence with the file, what is wrong, and the remedy."""


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

    @property
    def has_audio(self) -> bool:
        return self.channels > 0

    def frames(self, fps: float = 10) -> int:
        """Frames that the file has on a grid of `fps`."""
        return grid_length(self.seconds, self.fps, fps)


def probe(path: str | Path) -> MediaInfo:
    """Look at every packet of a file and decode one picture: exact in every container, and still cheap.

    Raises:
        MediaError: the file is missing, unreadable, without picture, cut or damaged.
    """
    with _open(path) as container:
        video, audio = _stream(container, "video"), next(iter(container.streams.audio), None)
        picture = next(container.decode(video), None)
        if picture is None:
            raise MediaError(f"{path} has a video stream without a single picture; encode it again or remove it")
        height, width = _pixels(picture).shape[:2]
        return MediaInfo(
            path=Path(path),
            width=width,
            height=height,
            fps=float(_rate(video)),
            seconds=_picture_seconds(path),
            sample_rate=audio.codec_context.sample_rate if audio else 0,
            channels=audio.codec_context.channels if audio else 0,
        )


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
    if channels not in ("mean", "first"):
        raise ValueError(f"channels is {channels!r}, expected 'mean' or 'first'")
    begin = max(start, 0)
    with _open(path) as container:
        wave = _resampled(container, begin, None if count is None else max(start + count, begin), sample_rate, channels)
    count = begin - start + len(wave) if count is None else count
    before = min(begin - start, count)
    return pad(wave, (before, count - before - len(wave)))


@contextmanager
def _open(path: str | Path) -> Iterator[av.container.InputContainer]:
    """An open file; what FFmpeg has to say against it, then or later, becomes a MediaError."""
    if not Path(path).is_file():
        raise MediaError(f"{path} does not exist or is not a file; check the path")
    try:
        with av.open(str(path)) as container:
            for stream in container.streams.video:
                stream.codec_context.thread_count = 1  # 2 threads cost half as much CPU again and are not faster
            yield container
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); replace the file or remove it") from error


def _stream(container: av.container.InputContainer, kind: Literal["video", "audio"]) -> av.stream.Stream:
    """First stream of a kind."""
    streams = getattr(container.streams, kind)
    if not streams:
        raise MediaError(f"{container.name} has no {kind} stream; choose a file that has one")
    return streams[0]


def _zero(container: av.container.InputContainer) -> Fraction:
    """Clock zero of a file, in the seconds of its time stamps."""
    first = next(chain(container.streams.video, container.streams.audio))
    return (first.start_time or 0) * first.time_base


def _rate(video: av.VideoStream) -> Fraction:
    return video.average_rate or video.guessed_rate or Fraction(25)


def _picture_seconds(path: str | Path) -> float:
    """Length of the picture by the time stamps of its packets, checked against what the header promises."""
    with _open(path) as container:
        video, zero = _stream(container, "video"), _zero(container)
        promised = ((container.start_time or 0) + container.duration) / av.time_base if container.duration else 0
        ends, trouble = _ends(container)
        end = ends.get(video.index, zero)
    if trouble or max(ends.values(), default=zero) < promised - CUT:
        raise MediaError(
            f"{path} is cut or damaged: {float(end - zero):.2f} s of picture can be read of a file of "
            f"{promised:.2f} s{trouble}; replace the file or remove it"
        )
    return float(end - zero)


def _ends(container: av.container.InputContainer) -> tuple[dict[int, Fraction], str]:
    """End in seconds of each stream, by its packets, and why reading stopped before the end of the file, or ""."""
    ends: dict[int, Fraction] = {}
    try:
        for packet in container.demux():
            if packet.pts is not None and not packet.is_discard:
                duration = packet.duration or _frame_ticks(packet.stream)
                end = (packet.pts + duration) * packet.time_base
                ends[packet.stream_index] = max(ends.get(packet.stream_index, end), end)
    except av.FFmpegError as error:
        return ends, f" ({error.strerror})"
    return ends, ""


def _frame_ticks(stream: av.stream.Stream) -> int:
    """Length of one video frame in the stream's clock, for files that do not store it; 0 for other streams."""
    return round(1 / _rate(stream) / stream.time_base) if stream.type == "video" else 0


def _pictures(path: str | Path, fps: float, start: int) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
    """(seconds, frame) from the last keyframe at or before frame `start` of the grid, then (end of the grid, None)."""
    with _open(path) as container:
        video, zero = _stream(container, "video"), _zero(container)
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
            end = begin + (frame.duration or _frame_ticks(video)) * video.time_base
            yield grid_length(float(end), float(_rate(video)), fps) / Fraction(fps), None


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """Upright RGB pixels, uint8 (H,W,3), in memory of their own."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).copy()


def _resampled(
    container: av.container.InputContainer, begin: int, stop: int | None, sample_rate: int, channels: Channels
) -> Tensor:
    """Samples [begin, stop) of the track at `sample_rate`, fewer where the track ends before."""
    audio = _stream(container, "audio")
    source_rate = audio.codec_context.sample_rate
    if not source_rate:
        raise MediaError(f"{container.name} does not tell the sample rate of its sound; convert it to mp4")
    divisor = math.gcd(source_rate, sample_rate)
    old, new = source_rate // divisor, sample_rate // divisor  # filters repeat every `old` source samples
    margin = math.ceil(7 / min(old, new))  # repeats that a filter of 6.1 zero crossings reaches
    first = (begin // new - margin) * old
    last = None if stop is None else (-(-stop // new) + margin) * old
    track, end = _track(container, audio, first, last, channels)
    if not len(track):
        return track
    origin, length = first // old * new, -(-end * new // old)  # of `track` and of all, after resampling
    stop = length if stop is None else min(stop, length)
    return resample(track, source_rate, sample_rate)[begin - origin : max(stop, begin) - origin]


def _track(
    container: av.container.InputContainer, audio: av.AudioStream, first: int, last: int | None, channels: Channels
) -> tuple[Tensor, int]:
    """Source samples [first, last) of the track on the file's clock, zeros where it has none.

    Returns:
        wave: float32 (last - first,), or up to the end of the track when `last` is None.
        end: number of samples in the whole track, or `last` if it goes on there.
    """
    pieces, end, reached_end = [], 0, True
    for position, samples in _sounds(container, audio, first):
        if last is not None and position >= last:
            reached_end = False
            break
        mono = samples.mean(0) if channels == "mean" else samples[0]
        pieces.append((position, mono))
        end = max(end, position + len(mono))
    wave = np.zeros(max((end if last is None else last) - first, 0), dtype=np.float32)
    for position, mono in pieces:
        mono, at = mono[max(0, first - position) :], max(0, position - first)
        wave[at : at + len(mono)] = mono[: max(len(wave) - at, 0)]
    return torch.from_numpy(wave), end if reached_end else last


def _sounds(
    container: av.container.InputContainer, audio: av.AudioStream, first: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(position in samples on the file's clock, float32 (channels, n)) from some place before sample `first` on."""
    rate, zero = audio.codec_context.sample_rate, _zero(container)
    tick = audio.time_base * rate  # samples; above 1, pts cannot name a sample
    since = Fraction(first, rate) - Fraction(PREROLL)
    if since > 0 and tick <= 1:
        container.seek(int((since + zero) / audio.time_base), stream=audio)
    to_float = av.AudioResampler(format="fltp")
    expected = None
    for frame in container.decode(audio):
        position = round((frame.pts * audio.time_base - zero) * rate)
        if tick > 1 and expected is not None and abs(position - expected) <= 2 * tick:
            position = expected  # rounding of the clock, not a gap
        for part in to_float.resample(frame):
            yield position, part.to_ndarray()
        expected = position + frame.samples


@dataclass(frozen=True)
class Preset:
    """How a kind of file is put into its container."""

    container: str  # FFmpeg's name, and the file's suffix
    options: dict[str, str]  # of the container
    x264: dict[str, str]


PRESETS = {
    "finished": Preset("mp4", options={}, x264={"crf": "18"}),  # a whole clip: unreadable until closed
}


class Writer:
    """Writes H.264 + AAC, and a 16-bit PCM wav beside it, chunk by chunk in constant memory.

    Files carry temporary names until `close`, so a reader finds them whole or not at all; leaving the `with` block by
    an exception removes them. Frame k is placed at k / fps, sample i at i / sample_rate, however the chunks are cut.
    H.264 in 4:2:0 has even sides only: an odd side gets its last row or column twice.

    Args:
        path: ends in the suffix of the preset's container; the wav has the same name with .wav.
        width, height: of the frames, in pixels.
        fps: frames per second; may be a Fraction, as 30000/1001.
        sample_rate: Hz, one that AAC knows (8000, 11025, 12000, 16000, ... 48000).
        wav: whether to write the wav.
        preset: key of `PRESETS`.
    Raises:
        MediaError: the suffix, the folder or the rate is wrong.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float = 10,
        sample_rate: int = 16000,
        wav: bool = True,
        preset: str = "finished",
    ):
        self.path, self.width, self.height = Path(path), width, height
        self.frames = self.samples = 0  # written so far
        self._preset = PRESETS[preset]
        if self.path.suffix != f".{self._preset.container}":
            raise MediaError(f"{path} should end in .{self._preset.container}; rename it")
        if not self.path.parent.is_dir():
            raise MediaError(f"{path} cannot be written because its folder does not exist; make the folder first")
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._wav_part = self._part.with_suffix(".wav") if wav else None
        if sample_rate not in av.Codec("aac", "w").audio_rates:
            raise MediaError(f"{path} cannot have sound at {sample_rate} Hz because AAC cannot; use 16000 or 48000")
        self._open(Fraction(fps).limit_denominator(10000), sample_rate)

    def _open(self, rate: Fraction, sample_rate: int) -> None:
        self._container = av.open(str(self._part), "w", format=self._preset.container, options=self._preset.options)
        self._video = self._container.add_stream("libx264", rate=rate, options=self._preset.x264)
        self._video.width, self._video.height = self.width + self.width % 2, self.height + self.height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.thread_count = 1  # equal input gives equal bytes
        self._video.codec_context.time_base = 1 / rate
        self._audio = self._container.add_stream("aac", rate=sample_rate, layout="mono", options={"aac_pns": "0"})
        self._audio.bit_rate = 64000
        self._wav = wavefile.open(str(self._wav_part), "wb") if self._wav_part else None  # noqa: SIM115
        if self._wav:
            self._wav.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))

    def write(self, frames: Tensor, wave: Tensor) -> None:
        """Append frames, uint8 (T,H,W,3), and sound, float32 (N,) in [-1,1] (louder is clipped); T or N may be 0."""
        expected = (self.height, self.width, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
            raise MediaError(
                f"{self.path} takes uint8 frames (T, {self.height}, {self.width}, 3), "
                f"got {frames.dtype} {tuple(frames.shape)}; convert them with data.frames.to_uint8"
            )
        if not wave.is_floating_point() or wave.ndim != 1:
            raise MediaError(
                f"{self.path} takes mono sound as float (N,), got {wave.dtype} {tuple(wave.shape)}; mix it down first"
            )
        for pixels in frames.cpu().numpy():
            self._write_frame(pixels)
        if len(wave):
            self._write_sound(wave.detach().cpu().float())

    def _write_frame(self, pixels: np.ndarray) -> None:
        pixels = np.pad(pixels, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = self.frames, self._video.codec_context.time_base
        self._container.mux(self._video.encode(frame))
        self.frames += 1

    def _write_sound(self, wave: Tensor) -> None:
        frame = av.AudioFrame.from_ndarray(wave.clamp(-1, 1)[None].numpy(), format="fltp", layout="mono")
        frame.sample_rate = self._audio.codec_context.sample_rate
        frame.pts, frame.time_base = self.samples, Fraction(1, frame.sample_rate)
        self._container.mux(self._audio.encode(frame))
        if self._wav:
            self._wav.writeframes(to_int16(wave).numpy().tobytes())
        self.samples += len(wave)

    def close(self) -> None:
        """Finish the files and give them their names; what cannot be finished is removed."""
        try:
            self._finish()
        except BaseException:
            self.discard()
            raise

    def _finish(self) -> None:
        if not self.frames or not self.samples:
            raise MediaError(f"{self.path} got {self.frames} frames and {self.samples} samples; write some of each")
        for stream in (self._video, self._audio):
            self._container.mux(stream.encode(None))
        self._container.close()
        if self._wav:
            self._wav.close()
            os.replace(self._wav_part, self.path.with_suffix(".wav"))
        os.replace(self._part, self.path)

    def discard(self) -> None:
        """Give up: remove what was written."""
        self._container.close()
        self._part.unlink(missing_ok=True)
        if self._wav:
            self._wav.close()
            self._wav_part.unlink(missing_ok=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def write_clip(path: str | Path, frames: Tensor, wave: Tensor, fps: float = 10, sample_rate: int = 16000) -> None:
    """Write frames, uint8 (T,H,W,3), and their sound, float (N,) cut or zero-padded to T * sample_rate / fps."""
    samples = round(len(frames) * sample_rate / Fraction(fps).limit_denominator(10000))
    wave = pad(wave[:samples], (0, max(0, samples - len(wave))))
    with Writer(path, frames.shape[2], frames.shape[1], fps, sample_rate) as writer:
        writer.write(frames, wave)


def to_int16(wave: Tensor) -> Tensor:
    """16-bit samples of a float wave: times 32768, truncated toward zero, clamped so that full scale does not wrap."""
    return (wave * 32768).clamp(-32768, 32767).to(torch.int16)
