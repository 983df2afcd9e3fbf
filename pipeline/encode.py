"""From a folder of videos to what the model sees: fitted codecs, measured scales, files encoded once."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.clips import ClipDataset
from data.latents import EncodedFile, LatentDataset
from models.codec import PatchPCA, check_size, load_codec
from pipeline.avcodec import AVCodec, make_vocoder
from pipeline.spec import AVSpec
from vocoder import log_mel, to_model


def make_codec(dataset: ClipDataset, spec: AVSpec, vocoder: Path, measure: bool) -> AVCodec:
    """The codecs of a new experiment: loaded, or fitted to the data where the frame codec has no weights to load.

    Args:
        spec: what is known; its audio scale is replaced by a measured one if `measure`.
        vocoder: folder of a HiFi-GAN, where `spec` names one.
    """
    fitted = spec.codec == PatchPCA.name
    frames = PatchPCA.fit(_some_frames(dataset)) if fitted else load_codec(spec.codec, spec.codec_source)
    check_size(spec.image_size, spec.image_size, frames.factor, spec.codec)
    codec = AVCodec(spec, frames, make_vocoder(spec, vocoder))  # what does not fit is said before all sound is read
    if measure:
        codec.spec = replace(spec, audio_scale=measure_audio_scale(dataset, spec))
    return codec


def _some(dataset: ClipDataset, files: int) -> Iterator[dict]:
    """Whole files spread over the data set, at most twice `files`."""
    return map(dataset.file, range(0, len(dataset.entries), max(1, len(dataset.entries) // files)))


def _some_frames(dataset: ClipDataset) -> Iterator[Tensor]:
    return (item["frames"] for item in _some(dataset, 64))


def measure_audio_scale(dataset: ClipDataset, spec: AVSpec) -> float:
    """1 / std of the normalised mel, over 512 or more files spread over the data set."""
    count, total, squares = 0, 0.0, 0.0
    for item in _some(dataset, 512):
        mel = to_model(log_mel(item["wave"], spec.n_mels, padded=True, sample_rate=spec.sample_rate), 1.0).double()
        count, total, squares = count + mel.numel(), total + mel.sum().item(), squares + mel.square().sum().item()
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
    return LatentDataset(files, dataset.clip_frames)


def encode_batch(batch: dict, codec: AVCodec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """mean, std (B,T,C,h,w), a (B,T,S,M) and labels (B,) of a batch, whether it comes as videos or as latents."""
    if "frames" in batch:
        encoded = codec.encode(*(batch[key].to(device, non_blocking=True) for key in ("frames", "wave")))
    else:
        encoded = (batch[key].to(device, non_blocking=True) for key in ("mean", "std", "a"))
    return *(x.to(dtype) for x in encoded), batch["y"].to(device, non_blocking=True)
