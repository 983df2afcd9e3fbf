"""A stream on its way to a file: chunks in, picture and sound out, with the real clip that it may begin with."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from data.av import Gap, Writer, probe, read_frames
from data.clips import clip_sound
from data.frames import fit, to_uint8
from data.loudness import PEAK, usable_peak
from pipeline.avcodec import AVCodec
from pipeline.avpipeline import AVPipeline
from pipeline.state import StreamState
from pipeline.streams import Chunk

FADE = 0.02  # s, from the real sound to the generated one at the end of an extended clip
BLOCK = 64  # frames of a real clip in memory at once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealClip:
    """A media file as training data are read: size, frame rate, sample rate and loudness of the model.

    frames: its length on the model's grid of frames. peak: of its sound.
    """

    path: Path
    codec: AVCodec
    frames: int
    peak: float

    @classmethod
    def open(cls, path: Path, codec: AVCodec) -> "RealClip":
        """Look through a file in constant memory; a hole in its sound is warned of.

        Raises:
            MediaError: it has no picture or no sound, or cannot be read or used.
        """
        spec, info = codec.spec, probe(path)
        peak = usable_peak(path, spec.sample_rate, spec.channels)
        gap = info.gaps.get("audio", Gap(0, 0))
        if gap.seconds > 1 / spec.fps:
            log.warning("%s has no sound for %.1f s from %.1f s on, and so has its film", path, gap.seconds, gap.at)
        return cls(path, codec, info.frames(spec.fps), peak)

    def read(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Frames (count,3,H,W) in [-1,1] from `first` on, and their sound with its context."""
        spec = self.codec.spec
        frames = fit(read_frames(self.path, first, count, spec.fps), spec.image_size, spec.resize)
        how = dict(fps=spec.fps, sample_rate=spec.sample_rate, context=self.codec.context, channels=spec.channels)
        wave = clip_sound(self.path, first, count, self.frames, **how)
        return frames, wave * (PEAK / self.peak) if self.peak else wave

    def begun(self, pipe: AVPipeline, **how) -> StreamState:
        """The stream that goes on from the clip, read no further back than the model looks; `how` as of `extending`."""
        first = max(0, self.frames - pipe.model.predict_frames - max(pipe.model.memory_ages, default=0))
        return pipe.extending(*self.read(first, self.frames - first), first, **how)

    def film(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """The same as frames uint8 (count,H,W,3) and their own samples."""
        frames, wave = self.read(first, count)
        context = self.codec.context
        return to_uint8(frames).movedim(1, -1), wave[context : len(wave) - context]

    def blocks(self, stop: int, progress: Callable = iter) -> Iterator[tuple[Tensor, Tensor]]:
        """The film of frames 0..stop-1, in pieces, whose row `progress` wraps as tqdm does."""
        for first in progress(range(0, stop, BLOCK)):
            yield self.film(first, min(BLOCK, stop - first))

    def over(self, first: int, frames: Tensor, wave: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk of the stream that goes on from the clip, with the clip's own frames and sound where there are any.

        Over its last 20 ms the sound fades into the generated one.
        """
        count, size = min(len(frames), self.frames - first), len(wave) // len(frames)
        if count <= 0:
            return frames, wave
        pictures, sound = self.film(first, count)
        fade = round(FADE * self.codec.spec.sample_rate)
        left = torch.arange((self.frames - first) * size, (self.frames - first - count) * size, -1)
        share = (left.clamp(max=fade) / fade).to(wave)  # of the real sound: 1, then down to 0 at the seam
        mixed = share * sound + (1 - share) * wave[: count * size]
        return torch.cat([pictures, frames[count:]]), torch.cat([mixed, wave[count * size :]])


class Film:
    """One stream's file, and the state from which the stream goes on after the last frame in it.

    Args:
        writer: where it goes.
        state: of the stream before its first chunk.
        real: clip that stands in for the first frames of the stream; over its last 20 ms the sound fades into the
            generated one, which avoids a click.
        latents: keep the latents, for `save_latents`.
        progress: wraps the blocks of the real clip, as tqdm does.
    """

    def __init__(
        self,
        writer: Writer,
        state: StreamState,
        real: RealClip | None = None,
        latents: bool = False,
        progress: Callable = iter,
    ):
        self.writer, self.state, self.real = writer, state, real
        self.latents = [] if latents else None
        if real:  # what lies before the window needs no stream
            for frames, wave in real.blocks(state.frame, progress):
                writer.write(frames, wave)

    def write(self, chunk: Chunk) -> None:
        """Append a chunk."""
        frames, wave = chunk.frames.cpu(), chunk.wave.cpu()
        if chunk.first < self.real_until:
            frames, wave = self.real.over(chunk.first, frames, wave)
        self.writer.write(frames, wave)
        self.state = chunk.state
        if self.latents is not None:
            self.latents.append((chunk.v.cpu(), chunk.a.cpu()))

    @property
    def real_until(self) -> int:
        """Frame at which the generated part begins."""
        return self.real.frames if self.real else 0

    def save_latents(self, path: Path) -> None:
        """Write all latents, v (F,C,h,w) and a (F,S,M)."""
        v, a = (torch.cat(parts).contiguous() for parts in zip(*self.latents))
        path.write_bytes(save({"v": v, "a": a}))
