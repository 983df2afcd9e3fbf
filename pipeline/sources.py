"""What is given, read from a file in constant memory: a sound (A2V) or a picture (V2A), to a stream or clip by clip."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from data.av import MediaError, encode_film, iter_audio, iter_frames, mux, probe, probe_audio
from data.folders import SUFFIXES
from data.frames import fit
from data.loudness import PEAK, SILENCE, usable_peak
from diffusion.noise import Modality
from pipeline.avcodec import AVCodec

BLOCK = 64  # frames of sound encoded together
SLACK = 0.002  # s; some containers round times to 1 ms
SIDE = 16  # px of the black pictures under a sound until the real ones are there

log = logging.getLogger(__name__)


class Source(ABC):
    """The given side of a film: call it with a frame, get its latents, None past the end; or see `clip`.

    Frames are asked for in a window that only moves forward, so the file is read once and `window` frames are kept.

    Args:
        window: frames in the model's window, or of its clips. most: frames to use; 0 for all there are.
    Attributes:
        modality: which one is given. suffixes: of files that may hold it. side: px of the pictures of `film`.
        frames: number of frames. seconds: length of the film, None for the whole file.
        notes: what was told of the file, a sentence each.
    Raises:
        MediaError: the file does not have it, not for one frame, or cannot be read or used.
    """

    modality: Modality
    suffixes: set[str]
    side: int
    anew: str  # what a track becomes that cannot be copied

    def __init__(self, path: Path, codec: AVCodec, window: int, most: int = 0):
        self.path, self.codec, self.spec = path, codec, codec.spec
        context = codec.context if self.spec.clip_frames else 0  # which a stream's sound takes along as it comes
        self.margin = math.ceil(context / self.spec.samples_per_frame)
        self.window = window + 2 * self.margin
        self.copied, self.notes = True, []
        self._there = self._look()
        if not self._there:
            raise MediaError(f"{path} is shorter than one frame of {1 / self.spec.fps:g} s; give a longer file")
        self.frames = min(most or self._there, self._there)
        self.seconds = None if self.frames == self._there else self.frames / self.spec.fps
        self._coming, self._kept, self._read = self._raw() if self.spec.clip_frames else self._latents(), {}, 0

    def __call__(self, frame: int) -> Tensor | None:
        while self._read <= frame < self.frames:
            self._kept[self._read] = next(self._coming)
            self._kept.pop(self._read - self.window, None)
            self._read += 1
        return self._kept.get(frame)

    @abstractmethod
    def _look(self) -> int:
        """Look through the file: the number of whole frames in it."""

    @abstractmethod
    def _latents(self) -> Iterator[Tensor]:
        """Latents of the frames in order, on the CPU."""

    @abstractmethod
    def _raw(self) -> Iterator[Tensor]:
        """The frames in order as they are before a codec of clips sees them, on the CPU."""

    @abstractmethod
    def track(self) -> Iterator[Tensor]:
        """What the file itself holds, by frames: samples as loud as they are, or (3,H,W) in [-1,1]."""

    @abstractmethod
    def clip(self, first: int, count: int) -> Tensor:
        """Latents (1,...) of `count` frames from `first` on, for a codec of clips; past the end the last is drawn out.

        As for frames, the window only moves forward.
        """

    @abstractmethod
    def film(self, count: int, frames: Tensor | None, wave: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frames uint8 (t,side,side,3) and wave (t * samples_per_frame,) to write for the next `count` of the film.

        frames, wave: of the made side, the other one None or not looked at.
        """

    def mux(self, film: Path, out: Path, seconds: float | None) -> Path:
        """Write `out`, or what it becomes as .mkv: the generated side of `film` and the file's own track.

        The track is encoded anew, from then on and with a warning, where it cannot be copied.

        Args:
            film: with its wav beside it. seconds: length of the result, None for that of the track.
        """
        if self.copied:
            try:
                return self._copy(film, out, seconds)
            except MediaError as error:
                self.copied = False
                self._note(f"{str(error).partition(';')[0]}; in the film for {self.path.name} it becomes {self.anew}")
        return self._encode(film, out, seconds)

    def _note(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self.notes.append(sentence)

    @abstractmethod
    def _copy(self, film: Path, out: Path, seconds: float | None) -> Path:
        """`mux` with the very packets of the track."""

    @abstractmethod
    def _encode(self, film: Path, out: Path, seconds: float | None) -> Path:
        """`mux` with the track encoded anew."""


class SoundSource(Source):
    """The sound of a file, its peak brought to 0.95 as in training; silence stays silent.

    It is looked through once before all, so that what is wrong with it is known before long work.
    """

    modality = Modality.AUDIO
    suffixes = SUFFIXES | {".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus"}
    anew = "FLAC"

    def _look(self) -> int:
        info = probe_audio(self.path)
        peak = usable_peak(self.path, self.spec.sample_rate, self.spec.channels)
        self._gain = PEAK / peak if peak > SILENCE else 1.0
        if info.gap.seconds > 1 / self.spec.fps:
            self._note(f"{self.path} has no sound for {info.gap.seconds:.1f} s from {info.gap.at:.1f} s on")
        return math.floor((info.seconds + SLACK) * self.spec.fps)

    @property
    def side(self) -> int:
        return self.spec.image_size

    def _latents(self) -> Iterator[Tensor]:
        gain, context = self._gain, self.codec.context
        blocks = self._waves(BLOCK)
        block = next(blocks)
        left = block[1 : context + 1].flip(0)  # beyond its ends the sound is reflected, as a centred STFT does
        for following in chain(blocks, [None]):
            right = block[-context - 1 : -1].flip(0) if following is None else following[:context]
            wave = gain * torch.cat([left, block, right])
            yield from self.codec.encode_sound(wave[None].to(self.codec.device))[0].cpu()
            left, block = block[-context:], following

    def _waves(self, frames: int) -> Iterator[Tensor]:
        """The sound in blocks of so many frames, the last one shorter; zeros where the file has less than it says."""
        size, left = self.spec.samples_per_frame, self._there
        waves = iter_audio(self.path, frames * size, self.spec.sample_rate, self.spec.channels)
        while left:
            count = min(frames, left)
            wave = next(waves, torch.zeros(0))[: count * size]
            yield pad(wave, (0, count * size - len(wave)))
            left -= count

    def track(self) -> Iterator[Tensor]:
        return self._waves(1)

    def _raw(self) -> Iterator[Tensor]:
        """(samples_per_frame,) of each frame."""
        return (self._gain * wave for wave in self._waves(1))

    def clip(self, first: int, count: int) -> Tensor:
        size, context = self.spec.samples_per_frame, self.codec.context
        start, end, there = first * size - context, (first + count) * size + context, self.frames * size
        frames = range(max(0, first - self.margin), min(first + count + self.margin, self.frames))
        wave = torch.cat([self(i) for i in frames])
        wave = wave[max(0, start) - frames[0] * size : min(end, there) - frames[0] * size]
        wave = pad(wave[None], (max(0, -start), max(0, end - there)), mode="reflect")  # as a centred STFT does
        return self.codec.encode_sound(wave.to(self.codec.device))

    @cached_property
    def _unwritten(self) -> Iterator[Tensor]:
        return self._waves(1)

    def film(self, count: int, frames: Tensor | None, wave: Tensor | None) -> tuple[Tensor, Tensor]:
        return frames, torch.cat(list(islice(self._unwritten, count)))

    def _copy(self, film: Path, out: Path, seconds: float | None) -> Path:
        return mux(film, self.path, out, seconds)

    def _encode(self, film: Path, out: Path, seconds: float | None) -> Path:
        return mux(film, self.path, out, seconds, flac=True)


class PictureSource(Source):
    """The picture of a file, made square as in training."""

    modality = Modality.VIDEO
    suffixes = SUFFIXES
    side = SIDE
    anew = "H.264"

    def _look(self) -> int:
        return probe(self.path).frames(self.spec.fps)

    def _latents(self) -> Iterator[Tensor]:
        for pixels in self._raw():
            yield self.codec.frames.encode(pixels[None, None].to(self.codec.device))[0][0, 0].cpu()

    def track(self) -> Iterator[Tensor]:
        return self._raw()

    def _raw(self) -> Iterator[Tensor]:
        """(3,H,W) of each frame."""
        for picture in iter_frames(self.path, self.spec.fps, count=self.frames):
            yield fit(picture[None], self.spec.image_size, self.spec.resize)[0]

    def clip(self, first: int, count: int) -> Tensor:
        pixels = torch.stack([self(min(i, self.frames - 1)) for i in range(first, first + count)])
        return self.codec.frames.encode(pixels[None].to(self.codec.device))[0]

    def film(self, count: int, frames: Tensor | None, wave: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.zeros(count, SIDE, SIDE, 3, dtype=torch.uint8), wave

    def _copy(self, film: Path, out: Path, seconds: float | None) -> Path:
        return mux(self.path, film, out, seconds)

    def _encode(self, film: Path, out: Path, seconds: float | None) -> Path:
        encode_film(self.path, film.with_suffix(".wav"), out, seconds)
        return out
