"""From a folder of videos to what the model sees: fitted codecs, measured scales, files encoded once."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.av import MediaError, iter_audio, iter_frames
from data.clips import ClipDataset, Entry
from data.frames import fit
from data.latents import EncodedFile, LatentDataset
from data.loudness import PEAK
from data.prepared import clip_stride
from models.codec import CODECS, VIDEO_CODECS, check_size, load_codec
from pipeline.avcodec import AVCodec
from pipeline.spec import AVSpec

BLOCK = 32  # frames of a file that are in memory together


@dataclass(frozen=True)
class Cut:
    """How a file is cut into pieces that are encoded together, in the order of their starts.

    Args:
        count: frames of a piece. stride: frames from start to start. whole: whether a shorter last piece is left out.
    """

    count: int
    stride: int
    whole: bool = False

    @classmethod
    def of(cls, spec: AVSpec) -> "Cut":
        """Blocks for a stream, whose codecs work frame by frame; clips that overlap by half for a model of clips."""
        return cls(spec.clip_frames, clip_stride(spec.clip_frames), True) if spec.clip_frames else BLOCKS

    def starts(self, frames: int) -> range:
        """First frames of the pieces of a file of so many."""
        return range(0, frames - self.count + 1 if self.whole else frames, self.stride)

    def units(self, frames: int) -> int:
        """In how many units the latents of such a file are kept: whole pieces, or frames."""
        return len(self.starts(frames)) if self.whole else frames


BLOCKS = Cut(BLOCK, BLOCK)


def make_codec(
    dataset: ClipDataset,
    spec: AVSpec,
    vocoder: Path | None,
    measure: bool,
    skip_damaged: bool = False,
    progress: Callable = iter,
) -> AVCodec:
    """The codecs of a new experiment: loaded, or fitted to the data where the frame codec has no weights to load.

    Args:
        spec: what is known; its audio scale is replaced by a measured one if `measure`.
        vocoder: folder of a HiFi-GAN, where `spec` names one.
        skip_damaged: fit to what can be decoded; else a file that cannot is an error.
        progress: wraps the files that are read, as tqdm does.
    """
    kind = (CODECS | VIDEO_CODECS)[spec.codec]
    if kind.fitted and not spec.codec_source:
        frames = kind.fit(_some_frames(dataset, skip_damaged, progress))
    else:
        frames = load_codec(spec.codec, spec.codec_source)
    check_size(spec.image_size, spec.image_size, frames.factor, spec.codec)
    codec = AVCodec.make(replace(spec, audio_scale=1.0), frames, vocoder)  # what does not fit is said before all sound
    codec.spec = replace(spec, audio_scale=measure_audio_scale(dataset, codec, progress)) if measure else spec
    return codec


def _some(dataset: ClipDataset, files: int) -> range:
    """Numbers of files spread over the data set, at most twice `files`."""
    return range(0, len(dataset.entries), max(1, len(dataset.entries) // files))


def _some_frames(dataset: ClipDataset, skip_damaged: bool, progress: Callable) -> Iterator[Tensor]:
    for i in progress(_some(dataset, 64)):
        try:
            yield from picture_blocks(dataset, dataset.entries[i])
        except MediaError:
            if not skip_damaged:
                raise


def picture_blocks(dataset: ClipDataset, entry: Entry, cut: Cut = BLOCKS) -> Iterator[Tensor]:
    """Frames of a whole file, piece by piece, (T,3,size,size); blocks joined are those of `dataset.file`."""
    frames = iter_frames(dataset.folder / entry.path, dataset.fps, 0, entry.frames)
    held, known = [], 0  # frame at which `held` begins
    for first in cut.starts(entry.frames):
        held, known = held[first - known :], first
        for frame in islice(frames, min(cut.count, entry.frames - first) - len(held)):
            held.append(fit(frame[None], dataset.image_size, dataset.resize))
        yield torch.cat(held)


def sound_blocks(dataset: ClipDataset, entry: Entry, cut: Cut = BLOCKS) -> Iterator[Tensor]:
    """Sound of the pieces of `picture_blocks`, each with the context of the data set: (T * samples_per_frame + ...,).

    It is normalised by the file's peak, and read once from beginning to end; Matroska would be slow to seek in.
    """
    per_frame, context = dataset.sample_rate // dataset.fps, dataset.context
    silence, total = torch.zeros(cut.count * per_frame), entry.frames * per_frame
    track = iter_audio(dataset.folder / entry.path, len(silence), dataset.sample_rate, dataset.channels)
    known, held = 0, torch.zeros(0)  # sample at which `held` begins
    for first in cut.starts(entry.frames):
        begin, stop = first * per_frame - context, min(first + cut.count, entry.frames) * per_frame + context
        inside, end = max(begin, 0), min(stop, total)
        held, known = held[inside - known :], inside
        while known + len(held) < end:
            held = torch.cat([held, next(track, silence)])
        wave = np.pad(held[: end - known].numpy(), (inside - begin, stop - end), mode="reflect")
        yield torch.from_numpy(wave) * (PEAK / entry.peak)


def measure_audio_scale(dataset: ClipDataset, codec: AVCodec, progress: Callable = iter) -> float:
    """1 / std of the sound in model space, over 512 or more files spread over the data set.

    Args:
        codec: with audio scale 1.
    """
    count, total, squares = 0, 0.0, 0.0
    for i in progress(_some(dataset, 512)):
        for wave in sound_blocks(dataset, dataset.entries[i], Cut.of(codec.spec)):
            a = codec.encode_sound(wave[None].to(codec.device)).double()
            count, total, squares = count + a.numel(), total + a.sum().item(), squares + a.square().sum().item()
    variance = squares / count - (total / count) ** 2
    if variance <= 0:
        raise ValueError(
            f"the sound of {dataset.folder} is the same everywhere, so it has no scale; give --audio-scale"
        )
    return round(1 / math.sqrt(variance), 6)


def encode_files(
    dataset: ClipDataset, codec: AVCodec, device: torch.device, progress: Callable = iter
) -> LatentDataset:
    """Every file encoded once and kept in memory, to be cut into the clips of `dataset`.

    Args:
        progress: wraps the row of files, as tqdm does.
    """
    files = []
    for i in progress(range(len(dataset.entries))):
        item = dataset.file(i)
        mean, std, a = codec.encode(item["frames"][None].to(device), item["wave"][None].to(device))
        files.append(EncodedFile(mean[0].cpu(), std[0].cpu(), a[0].cpu(), item["y"], item["path"]))
    return LatentDataset(files, dataset.clip_frames, dataset.ages)


def encode_batch(
    batch: dict, codec: AVCodec, device: torch.device, dtype: torch.dtype, ages: Sequence[int] = ()
) -> tuple[Tensor, ...]:
    """mean, std (B,T,C,h,w), a (B,T,S,M) of a batch on the device, come it as videos or as latents; labels and starts.

    ages: of the frames of a memory, which come before the clip's.
    """
    if "frames" in batch:
        mean, std, a = codec.encode(*(batch[key].to(device, non_blocking=True) for key in ("frames", "wave")))
        oldest = max(ages, default=0)
        picked = [oldest - age for age in sorted(ages, reverse=True)] + [*range(oldest, a.shape[1])]
        encoded = mean, std, a[:, picked] if ages else a
    else:
        encoded = (batch[key].to(device, non_blocking=True) for key in ("mean", "std", "a"))
    return *(x.to(dtype) for x in encoded), batch["y"], batch["start"]
