"""A film whose picture is encoded anew: of a codec that no container of films holds."""

import math
from pathlib import Path

import torch

from data.av.pictures import iter_frames
from data.av.probe import probe, probe_audio
from data.av.sound import iter_audio
from data.av.write import Writer, exact_rate


def encode_film(video_from: str | Path, audio_from: str | Path, out: str | Path, seconds: float | None = None) -> None:
    """Write the picture of one file as H.264, upright and at its mean rate, with the sound of another as mono AAC.

    The file appears whole, under its name, and replaces an older one. Memory is constant.

    Args:
        audio_from: sound at a rate that AAC knows. seconds: length of the result; None for that of the picture.
    Raises:
        MediaError: a source cannot be read, or `out` cannot be written.
    """
    info, sample_rate = probe(video_from), probe_audio(audio_from).sample_rate
    rate = exact_rate(info.fps)
    count = info.frames(rate) if seconds is None else min(info.frames(rate), math.ceil(seconds * rate))
    frames = iter_frames(video_from, rate, count=count)
    block, nothing = math.ceil(rate), torch.zeros(0)  # frames, whose sound is written with the first of them
    waves = iter_audio(audio_from, math.ceil(block * sample_rate / rate), sample_rate)
    with Writer(out, info.width, info.height, rate, sample_rate, wav=False) as writer:
        for k, frame in enumerate(frames):
            writer.write(frame[None], nothing if k % block else next(waves, nothing))
