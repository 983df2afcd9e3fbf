"""Videos whose clock jumps, or that sound for a part of their time, as cut or badly recorded ones do."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_jumping(path: Path, picture: float = 0, sound: float = 0, seconds: int = 2, b_frames: int = 0) -> None:
    """A video of noise, 10 fps and 16 kHz, in the middle of which the clock of a stream jumps by so many seconds."""
    rng, half = np.random.default_rng(0), seconds / 2
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"bf": str(b_frames)})
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for i in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = i + round(10 * picture * (i >= 10 * half)), Fraction(1, 10)
            container.mux(video.encode(frame))
        for i in range(16 * seconds):
            block = rng.uniform(-0.5, 0.5, (1, 1000)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
            frame.pts = 1000 * i + round(16000 * sound * (i >= 16 * half))
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def write_heard(path: Path, begin: float, end: float, seconds: float = 8) -> None:
    """A video of grey at 10 fps with noise at 16 kHz, in PCM, from `begin` to `end` (s)."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for _ in range(round(10 * seconds)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8))))
        noise = rng.uniform(-0.5, 0.5, (1, round(16000 * (end - begin)))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, round(16000 * begin), Fraction(1, 16000)
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
