"""Pictures and sound into media files and pipes, finished at once or growing for hours."""

import math
import os
import wave as wavefile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from data.av.media import MediaError

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska"}  # FFmpeg's names
KEYFRAME = Fraction(1, 2)  # s; longest stretch of a growing film without a keyframe
AGAIN = Fraction(3, 25)  # of a frame's time, its end, in which its picture is written again
WAV_BYTES = 2**32 - 2**12  # sound in one wav, whose sizes are 32 bits; 37 hours at 16 kHz


@dataclass(frozen=True)
class Preset:
    """How a kind of film is encoded, and the options of the containers that can hold it."""

    x264: dict[str, str]
    options: dict[str, dict[str, str]]  # by container
    grows: bool  # readable while it is written, so it has its own name from the first moment
    keyframe: Fraction = KEYFRAME  # s, of a growing one
    often: int = 0  # pictures/s at least: each is written again, at the end of its time


PRESETS = {
    "finished": Preset(  # unreadable until closed
        {"crf": "18", "mbtree": "0"},  # with it x264 writes other bytes about once in 500 times, on one thread too
        options={"mp4": {}},
        grows=False,
    ),
    "endless": Preset(
        {"crf": "18", "tune": "zerolatency"},
        options={
            "mp4": {
                "movflags": "frag_keyframe+delay_moov+skip_trailer",
                "frag_duration": "200000",  # us; with keyframes alone a kill costs 0.3 s more
                "flush_packets": "1",
            },
            "matroska": {"live": "1", "cluster_time_limit": "100", "flush_packets": "1"},
        },
        grows=True,
    ),
    "live": Preset(  # for Media Source Extensions of a browser; a viewer joins within a tenth of a second
        {"crf": "18", "tune": "zerolatency"},
        options={
            "mp4": {
                "movflags": "frag_keyframe+delay_moov+skip_trailer+default_base_moof",
                "frag_duration": "60000",  # us, less than a packet of sound: a frame of 10 fps waits for no other
                "flush_packets": "1",
            }
        },
        grows=True,
        keyframe=Fraction(1, 10),
        often=60,  # Chromium refreshes as often as there are pictures, and holds even ones for 17 to 33 ms too long
    ),
}


def samples_before(frames: int, fps: float, sample_rate: int) -> int:
    """Samples of sound that belong to the first `frames` frames: round(frames * sample_rate / fps), exactly.

    Frame k owns the samples [samples_before(k), samples_before(k + 1)), so that no rate ever drifts.

    Args:
        fps: may be a Fraction, as 30000/1001, or the float nearest to one.
    """
    return round(frames * sample_rate / exact_rate(fps))


def exact_rate(fps: float) -> Fraction:
    """The rate that a float stands for: 29.97002997 is 30000/1001."""
    return Fraction(fps).limit_denominator(10000)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system has to say against writing becomes an OSError with the path; what FFmpeg has, a MediaError."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be written ({error.strerror}); choose another container") from error


def part_of(path: Path) -> Path:
    """Name of a file that is not whole yet."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


class Writer:
    """Writes H.264 + AAC, and a 16-bit PCM wav beside it, chunk by chunk in constant memory.

    Frame k is placed at k / fps, sample i at i / sample_rate, however the chunks are cut and whichever comes first.
    H.264 in 4:2:0 has even sides only: an odd side gets its last row or column twice.

    A "finished" film has a temporary name until `close`, so a reader finds it whole or not at all; leaving the `with`
    block by an exception removes it. An "endless" film grows under its own name and is playable at any moment: killed,
    on a full disk or left by an exception, it keeps all but its last second. It never replaces a file that is there.
    Its wav is playable too; before one is full (4 GiB) it goes on in NAME_2.wav, NAME_3.wav ...

    Args:
        path: its suffix is the container: .mp4, or .mkv for an endless film. "-" (stdout) or a binary file object with
            `write` and `flush` gets an endless or a live film without wav.
        width, height: of the frames, in pixels.
        fps: frames per second; may be a Fraction, as 30000/1001.
        sample_rate: Hz, one that AAC knows (8000, 11025, 12000, 16000, ... 48000).
        wav: whether to write the wav; it has the name of the film with .wav.
        preset: key of `PRESETS`.
        container: "mp4" or "matroska", for stdout or a file object.
    Raises:
        MediaError: the suffix, the folder or the rate is wrong, or an endless film would replace a file.
        BrokenPipeError: from any method: the reader of the pipe has left; end quietly.
        OSError: from any method: the disk is full, or the like.
    """

    def __init__(
        self,
        path: str | Path | BinaryIO,
        width: int,
        height: int,
        fps: float = 10,
        sample_rate: int = 16000,
        wav: bool = True,
        preset: str = "finished",
        container: str = "mp4",
    ):
        self.width, self.height = width, height
        self.frames = self.samples = 0  # written so far
        self._files: list[tuple[Path, Path]] = []  # (name while it is written, final name)
        self._wav = None
        sink = _sink(path)
        self.path = Path(str(getattr(path, "name", "pipe")) if hasattr(path, "write") else path)
        self._preset = PRESETS["endless" if sink and preset == "finished" else preset]
        if sample_rate not in av.Codec("aac", "w").audio_rates:
            raise MediaError(f"{path} cannot have sound at {sample_rate} Hz because AAC cannot; use 16000 or 48000")
        if not sink:
            container = self._container_of_path()
        self._open(sink or str(self._begin(self.path)), container, exact_rate(fps), sample_rate)
        if wav and not sink:
            self._wav = _Wav(self._begin, self.path, sample_rate)
        self._whole = self._size()

    def _container_of_path(self) -> str:
        suffixes = [suffix for suffix, name in CONTAINERS.items() if name in self._preset.options]
        if self.path.suffix not in suffixes:
            raise MediaError(f"{self.path} should end in {' or '.join(suffixes)}; rename it")
        if not self.path.parent.is_dir():
            raise MediaError(f"{self.path} cannot be written because its folder does not exist; make the folder first")
        for path in (self.path.with_suffix(suffix) for suffix in [*CONTAINERS, ".wav"]):
            if self._preset.grows and path.exists():
                raise MediaError(f"{path} exists and an endless film replaces no file; remove it or use another name")
        return CONTAINERS[self.path.suffix]

    def _begin(self, final: Path) -> Path:
        """The name to write a file under."""
        now = final if self._preset.grows else part_of(final)
        self._files.append((now, final))
        return now

    def _open(self, target: "str | _Pipe", container: str, rate: Fraction, sample_rate: int) -> None:
        x264, again = dict(self._preset.x264), max(0, math.ceil(self._preset.often / rate) - 1)
        self._places = [Fraction(0), *(1 - AGAIN * (again - i) / again for i in range(again))]  # in a frame's time
        if self._preset.grows:
            x264["g"] = str(len(self._places) * max(1, math.floor(rate * self._preset.keyframe)))
        self._container = av.open(target, "w", format=container, options=self._preset.options[container])
        self._video = self._container.add_stream("libx264", rate=len(self._places) * rate, options=x264)
        self._video.width, self._video.height = self.width + self.width % 2, self.height + self.height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.thread_count = 1  # equal input gives equal bytes
        self._ticks = math.lcm(*(place.denominator for place in self._places))  # of the clock, in a frame
        self._video.codec_context.time_base = 1 / (self._ticks * rate)
        self._audio = self._container.add_stream("aac", rate=sample_rate, layout="mono", options={"aac_pns": "0"})
        self._audio.bit_rate = 64000
        with writing(self.path):
            self._container.start_encoding()

    def _size(self) -> int:
        """Bytes of the film on disk."""
        return self._files[0][0].stat().st_size if self._files else 0

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
        with writing(self.path):
            for pixels in frames.cpu().numpy():
                self._write_frame(pixels)
            if len(wave):
                self._write_sound(wave.detach().cpu().float())
        self._whole = self._size()

    def _write_frame(self, pixels: np.ndarray) -> None:
        if self.height % 2 or self.width % 2:
            pixels = np.pad(pixels, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.time_base = self._video.codec_context.time_base
        for place in self._places:
            frame.pts = int(self._ticks * (self.frames + place))
            self._container.mux(self._video.encode(frame))
        self.frames += 1

    def _write_sound(self, wave: Tensor) -> None:
        frame = av.AudioFrame.from_ndarray(wave.clamp(-1, 1)[None].numpy(), format="fltp", layout="mono")
        frame.sample_rate = self._audio.codec_context.sample_rate
        frame.pts, frame.time_base = self.samples, Fraction(1, frame.sample_rate)
        self._container.mux(self._audio.encode(frame))
        if self._wav:
            self._wav.write(to_int16(wave).numpy().tobytes())
        self.samples += len(wave)

    def close(self) -> None:
        """Finish the files and give them their names; what cannot be finished is left as `discard` leaves it.

        An endless film that was stopped before its first frame is no error: no file is left.
        """
        if self._preset.grows and not (self.frames and self.samples):
            return self.discard()
        try:
            self._finish()
        except BaseException:
            self.discard()
            raise

    def _finish(self) -> None:
        if not self.frames or not self.samples:
            raise MediaError(f"{self.path} got {self.frames} frames and {self.samples} samples; write some of each")
        with writing(self.path):
            for stream in (self._video, self._audio):
                self._container.mux(stream.encode(None))
            self._container.close()
            if self._wav:
                self._wav.close()
        for now, final in reversed(self._files):
            os.replace(now, final)

    def discard(self) -> None:
        """Give up: remove what was written, except an endless film that has begun; that one stays as far as it got."""
        with suppress(OSError, av.FFmpegError):
            self._container.close()
        with suppress(OSError):
            if self._wav:
                self._wav.close()
        if not (self._preset.grows and self.frames and self.samples):
            for now, _ in self._files:
                now.unlink(missing_ok=True)
        elif self._files:
            os.truncate(self.path, self._whole)  # without the piece that did not fit

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        elif self._preset.grows:
            with suppress(OSError, MediaError):  # end the film properly; what ended it goes on
                self.close()
        else:
            self.discard()


class _Pipe:
    """A file object as FFmpeg gets it: nothing to seek in, and every packet leaves at once."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._file.flush()
        return written


def _sink(path: str | Path | BinaryIO) -> "str | _Pipe | None":
    """What to write to when it is no file on disk."""
    if hasattr(path, "write"):
        return _Pipe(path)
    return "pipe:1" if str(path) == "-" else None


class _Wav:
    """16-bit mono PCM beside a film: NAME.wav, and NAME_2.wav, NAME_3.wav ... once the one before is full."""

    def __init__(self, begin: Callable[[Path], Path], film: Path, sample_rate: int):
        """Begin: gives the name to write a file under."""
        self._begin, self._film, self._sample_rate, self._files = begin, film, sample_rate, 0
        self._next()

    def _next(self) -> None:
        self._files += 1
        name = f"{self._film.stem}_{self._files}.wav" if self._files > 1 else f"{self._film.stem}.wav"
        self._file = wavefile.open(str(self._begin(self._film.with_name(name))), "wb")  # noqa: SIM115
        self._file.setparams((1, 2, self._sample_rate, 0, "NONE", "not compressed"))

    def write(self, data: bytes) -> None:
        """Append samples and correct the header, so that the file is whole after every call."""
        if 2 * self._file.tell() + len(data) > WAV_BYTES:
            self.close()
            self._next()
        self._file.writeframes(data)

    def close(self) -> None:
        self._file.close()


def write_clip(path: str | Path, frames: Tensor, wave: Tensor, fps: float = 10, sample_rate: int = 16000) -> None:
    """Write frames, uint8 (T,H,W,3), and their sound, float (N,) cut or zero-padded to T * sample_rate / fps."""
    samples = samples_before(len(frames), fps, sample_rate)
    wave = pad(wave[:samples], (0, max(0, samples - len(wave))))
    with Writer(path, frames.shape[2], frames.shape[1], fps, sample_rate) as writer:
        writer.write(frames, wave)


def replace_older(film: Path, sample: str) -> None:
    """Remove what earlier runs left of the sample of a film that is there whole, so that no one counts it twice.

    Args:
        sample: "sample_00000" for the films and wavs of that name, and of those that begin with "sample_00000_".
    """
    for path in film.parent.glob(f"{sample}*"):
        of_sample = path.stem == sample or path.stem.startswith(f"{sample}_")
        if of_sample and path.suffix in {*CONTAINERS, ".wav"} and path not in (film, film.with_suffix(".wav")):
            path.unlink()


def to_int16(wave: Tensor) -> Tensor:
    """16-bit samples of a float wave: times 32768, truncated toward zero, clamped so that full scale does not wrap."""
    return (wave * 32768).clamp(-32768, 32767).to(torch.int16)
