"""How loud the sound of a file is, which decides its gain, and whether it can be used at all."""

import math
from itertools import count
from pathlib import Path

from data.av import Channels, MediaError, iter_audio

PEAK = 0.95  # of a normalised wave
SILENCE = 1e-4  # a track that never gets louder (-80 dB) is silent
FAINT = 0.01  # peak (-40 dB) under which the other way to mono is tried
LOSS = 30  # times louder (30 dB): of channels that cancel each other a lossy codec leaves a little noise


def peak_of(path: Path, sample_rate: int, channels: Channels, samples: int | None = None) -> float:
    """Largest absolute sample of a file's sound, or of its first `samples`, a minute at a time.

    Raises:
        MediaError: the file has no sound or is not readable, or a sample is NaN or infinite.
    """
    peak, minute = 0.0, 60 * sample_rate
    for first, wave in zip(count(0, minute), iter_audio(path, minute, sample_rate, channels)):
        if samples is not None and first >= samples:
            break
        wave = wave[: None if samples is None else samples - first]
        loudest = wave.abs().max().item()
        if not math.isfinite(loudest):
            at = first + wave.isfinite().logical_not().nonzero()[0].item()
            raise MediaError(
                f"{path} has sound that is NaN or infinite at {at / sample_rate:.1f} s; make it anew, or cut that out"
            )
        peak = max(peak, loudest)
    return peak


def lost_in_mono(path: Path, peak: float, sample_rate: int, channels: Channels, samples: int | None = None) -> str:
    """What `channels` does to a sound of which it leaves `peak`, "" if no harm: opposite phases have a silent mean."""
    other = {"mean": "first", "first": "mean"}[channels]
    if peak > FAINT or peak_of(path, sample_rate, other, samples) <= max(SILENCE, LOSS * peak):
        return ""
    return f"silent with --channels {channels}, not with --channels {other}"


def usable_peak(path: Path, sample_rate: int, channels: Channels) -> float:
    """`peak_of` a whole file; 0 and a little more is true silence.

    Raises:
        MediaError: as of `peak_of`, or the way to mono loses the sound.
    """
    peak = peak_of(path, sample_rate, channels)
    if lost := lost_in_mono(path, peak, sample_rate, channels):
        raise MediaError(f"{path} is {lost}; choose that")
    return peak
