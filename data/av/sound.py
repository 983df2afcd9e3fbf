"""Sound of a file, resampled."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import resample

from data.av.media import MediaError, can_seek, clock_zero, open_media, stream_of

Channels = Literal["mean", "first"]

PREROLL = 0.25  # s; a decoder entered in mid-stream needs the packets before the first sample that is wanted
GAP = 3600  # s; a longer hole in the sound is a damaged clock
KERNEL = 2**22  # filter coefficients (16 MB) that a resampler may need; usual rates need under 2**19


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
    if since > 0 and tick <= 1 and can_seek(container):
        container.seek(int((since + zero) / audio.time_base), stream=audio)
    to_float = av.AudioResampler(format="flt")  # not planar: PyAV reads stray memory at 8 planes and more
    expected = None
    for frame in container.decode(audio):
        if frame.sample_rate != rate:
            raise MediaError(
                f"{container.name} changes from {rate} to {frame.sample_rate} Hz in mid-track; convert it to one rate"
            )
        position = expected if frame.pts is None else round((frame.pts * audio.time_base - zero) * rate)
        if position is None:
            continue  # cannot be placed
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
