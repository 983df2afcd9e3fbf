"""A folder of videos encoded once, in constant memory: each file, the index of all, and how good the latents are."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log10
from pathlib import Path

import torch
from torch import Tensor, nn

from data.av import MediaError
from data.clips import ClipDataset, Entry
from data.folders import SPLITS, class_of, printable
from data.frames import to_uint8
from data.index import VERSION
from data.prepared import TENSORS, LatentFile, LatentWriter, Moments, is_whole, latent_path, read_metadata
from models.codec import FrameCodec
from pipeline.avcodec import AVCodec
from pipeline.spec import AVSpec
from pipeline.whole import replaced_folder
from training.encode import Cut, make_codec, picture_blocks, sound_blocks
from vocoder.autoencoder import SOUND_CODECS

SAME = (  # of all runs on a folder
    "codec", "codec_source", "image_size", "resize", "channels", "n_mels", "fps", "sample_rate", "clip_frames", "sound",
    "sound_source",
)  # fmt: skip
WINDOW = 10  # frames in the middle of each video that are decoded for its PSNR: of all, it would double the work


@dataclass(frozen=True)
class Prepared:
    """What has become of one video."""

    split: str
    path: str  # of the video, relative to its split's folder
    frames: int
    sha256: str  # of the video
    units: int  # in which its latents are stored: frames, or clips
    problem: str = ""  # why there are no latents
    bytes: int = 0  # of the latents
    moments: tuple[str, str] = ("", "")  # of the latents and of the mel
    quality: dict[str, float] = field(default_factory=dict)  # as `Quality.numbers`
    encoded: bool = False  # in this run


def find_splits(root: Path, spec: AVSpec, progress: Callable | None = None) -> dict[str, ClipDataset]:
    """The usable videos of train/ and, if it is there, of test/.

    Args:
        progress: as of ClipDataset.
    Raises:
        ValueError: as of ClipDataset.
    """
    context = SOUND_CODECS[spec.sound].context
    shortest = context * spec.fps // spec.sample_rate + 1  # frames whose sound can be reflected at its ends
    shortest = max(shortest, spec.clip_frames)
    same = ("image_size", "fps", "sample_rate", "normalise", "channels", "resize")
    how = {"context": context, **{name: getattr(spec, name) for name in same}}
    splits = [split for split in SPLITS if split == "train" or (root / split).is_dir()]
    return {split: ClipDataset(root, split, shortest, **how, progress=progress) for split in splits}


def open_codec(folder: Path, wanted: AVSpec, train: ClipDataset, progress: Callable = iter) -> AVCodec:
    """The codecs of a prepared folder, made (and fitted) by the first run on it.

    Args:
        progress: wraps the files that codecs are fitted to, as tqdm does.
    Raises:
        ValueError: they were made with other facts than `wanted`.
    """
    if not folder.is_dir():
        codec = make_codec(train, wanted, None, measure=False, skip_damaged=True, progress=progress)
        with replaced_folder(folder) as part:
            codec.save(part)
    stored = AVSpec.load(folder)
    for name in SAME:
        if (old := getattr(stored, name)) != (new := getattr(wanted, name)):
            raise ValueError(
                f"{folder.parent} was prepared with {name} {old!r}, not {new!r}; repeat its own arguments or choose "
                "another --out"
            )
    return AVCodec.load(folder)


def facts_of(codec: AVCodec) -> dict:
    """All that decides what the latents of a video are."""
    names = ("image_size", "resize", "normalise", "channels", "n_mels", "fps", "sample_rate", "hop", "codec")
    facts = {"version": VERSION, **{name: getattr(codec.spec, name) for name in names},
             "codec_sha256": hash_codec(codec.frames)}  # fmt: skip
    if codec.spec.clip_frames:
        facts |= {name: getattr(codec.spec, name) for name in ("clip_frames", "sound")}
        facts["sound_sha256"] = hash_weights(codec.sound)
    return facts


def hash_codec(frames: FrameCodec) -> str:
    """sha256 of the weights of a frame codec and of the factor they are scaled by."""
    return hash_weights(frames, f"{frames.factor} {getattr(frames, 'scale', 1)}")


def hash_weights(network: nn.Module, more: str = "") -> str:
    """sha256 of the weights of a network, by name."""
    found = hashlib.sha256(more.encode())
    for name, x in sorted(network.state_dict().items()):
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(x.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_problems(index: dict | None) -> dict[tuple[str, str], tuple[str, str]]:
    """(split, path) -> (sha256, problem) of the videos that an earlier run could not encode."""
    splits = index["splits"].items() if index else ()
    return {(split, e["path"]): (e["sha256"], e["reason"]) for split, found in splits for e in found["skipped"]}


def prepare_file(dataset: ClipDataset, entry: Entry, codec: AVCodec, out: Path, facts: dict, known: dict) -> Prepared:
    """Encode one video, unless its latents are there already and whole, or it is known that it cannot be.

    Args:
        codec: with audio scale 1. out: the prepared folder. known: of `known_problems`.
    """
    units = Cut.of(codec.spec).units(entry.frames)
    video = Prepared(dataset.split, entry.path, entry.frames, hash_file(dataset.folder / entry.path), units)
    sha256, problem = known.get((video.split, video.path), ("", ""))
    if sha256 == video.sha256 and problem:
        return replace(video, problem=problem)
    noted = {"source": printable(f"{video.split}/{video.path}"), "sha256": video.sha256, "frames": str(video.frames),
             "peak": repr(entry.peak), "facts": hash_facts(facts)}  # fmt: skip
    path = latent_path(out / video.split, video.path)
    there = (read_metadata(path) or {}).items() >= noted.items() and is_whole(path)
    if not there:
        try:
            encode_file(dataset, entry, codec, path, noted)
        except MediaError as error:
            return replace(video, problem=f"unreadable: {error}")
    found = read_metadata(path)
    moments = found["moments_mean"], found["moments_mel"]
    quality = {name: float(found[name]) for name in QUALITY}
    return replace(video, bytes=path.stat().st_size, moments=moments, quality=quality, encoded=not there)


def hash_facts(facts: dict) -> str:
    """sha256 that stands for all facts in the metadata of a file."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def encode_file(dataset: ClipDataset, entry: Entry, codec: AVCodec, path: Path, metadata: dict[str, str]) -> None:
    """Write the latents of one video, a block of frames or a clip at a time.

    Raises:
        MediaError: it cannot be decoded to its end.
    """
    cut = Cut.of(codec.spec)
    quality = Quality(codec, len(cut.starts(entry.frames)))
    with LatentWriter(path, cut.units(entry.frames), *codec.unit_shapes, metadata, QUALITY) as writer:
        for frames, wave in zip(picture_blocks(dataset, entry, cut), sound_blocks(dataset, entry, cut)):
            frames, wave = frames[None].to(codec.device), wave[None].to(codec.device)
            mean, std, a = codec.encode(frames, wave)
            stored = (mean, std, a) if cut.whole else (mean[0], std[0], a[0])  # a unit is a clip, or a frame
            writer.write(**dict(zip(TENSORS, stored)))
            quality.add(frames, wave, mean, a)
        writer.numbers = quality.numbers


QUALITY = ("psnr_db", "mel_mean_db", "mel_max_db")


class Quality:
    """What the latents of one video give back, while it is encoded: PSNR of WINDOW frames, and the error of all mel.

    Args:
        pieces: of the whole video; the window lies in the middle one.
    """

    def __init__(self, codec: AVCodec, pieces: int):
        self.codec, self.psnr, self.total, self.largest, self.count = codec, 0.0, 0.0, 0.0, 0
        self.pieces_before = (pieces - 1) // 2

    def add(self, frames: Tensor, wave: Tensor, mean: Tensor, a: Tensor) -> None:
        """Take in the next piece: frames (1,T,3,H,W) and their sound with its context, latents (1,T',C,h,w), a."""
        middle = self.pieces_before == 0
        self.pieces_before -= 1
        if middle:
            self.psnr = psnr(*window_of(self.codec, mean.half().float(), frames))
        if middle or not self.codec.spec.clip_frames:  # clips overlap, and decoding their sound takes time
            off = self.codec.mel_error(wave, a)
            self.total, self.count = self.total + off.double().sum().item(), self.count + off.numel()
            self.largest = max(self.largest, off.max().item())

    @property
    def numbers(self) -> dict[str, float]:
        """Of QUALITY, in dB: PSNR; mean and largest error of the stored mel."""
        return dict(zip(QUALITY, (self.psnr, self.total / self.count, self.largest)))


def window_of(codec: AVCodec, mean: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """What latents give back, and the frames they stand for: WINDOW of a block, all of a clip."""
    if codec.spec.clip_frames:
        return codec.frames.decode(mean), frames
    first = max(0, frames.shape[1] - WINDOW) // 2
    window = slice(first, first + WINDOW)
    return codec.frames.decode(mean[:, window]), frames[:, window]


def psnr(decoded: Tensor, frames: Tensor) -> float:
    """Of frames in [-1,1], in dB; identical ones are at 126 dB."""
    error = (decoded - frames.clamp(-1, 1)).square().mean().item()
    return 10 * log10(4 / max(error, 1e-12))  # the range is 2


# ------------------------------------------------------------------------------------------------------ the index


def make_index(splits: dict[str, ClipDataset], results: list[Prepared], codec: AVCodec, facts: dict) -> dict:
    """What prepared.json holds.

    Args:
        splits: whose `skipped` files join those that could not be encoded. codec: whose class names hold.
    Raises:
        ValueError: no training video is left, or their sound is the same everywhere.
    """
    usable = {split: [r for r in results if r.split == split and not r.problem] for split in splits}
    if not usable["train"]:
        raise ValueError(
            f"{splits['train'].folder} has no video that can be decoded (the first: {results[0].problem}); add others"
        )
    latents, mel = (statistics(usable["train"], which, facts, codec) for which in (0, 1))
    if not mel["std"][0]:
        raise ValueError(f"the sound of {splits['train'].folder} is the same everywhere, so it has no scale; add films")
    return {
        "version": VERSION,
        "facts": facts,
        "class_names": list(codec.spec.class_names),
        "audio_scale": round(1 / mel["std"][0], 6),
        "statistics": {"latents": latents, "mel": {name: values[0] for name, values in mel.items()}},
        "totals": {split: totals(files, facts["fps"]) for split, files in usable.items()},
        "splits": {
            split: {"files": [_record(r, codec.spec) for r in files], "skipped": _skipped(splits[split], results)}
            for split, files in usable.items()
        },
    }


def statistics(results: list[Prepared], which: int, facts: dict, codec: AVCodec) -> dict[str, list[float]]:
    """mean, std, min, max by channel over these files: 0 of the video latents, 1 of the normalised mel."""
    tables = torch.stack([Moments.table_of(result.moments[which]) for result in results])  # (N,4,C)
    video, audio = codec.unit_shapes
    per_unit = (math.prod(video) // video[-3], math.prod(audio))[which]  # of a channel
    mean, square = tables[:, :2].sum(0) / (per_unit * sum(result.units for result in results))
    values = {"mean": mean, "std": (square - mean**2).clamp(min=0).sqrt()}
    values |= {"min": tables[:, 2].amin(0), "max": tables[:, 3].amax(0)}
    return {name: x.tolist() for name, x in values.items()}


def totals(results: list[Prepared], fps: int) -> dict:
    """How much there is of a split."""
    frames = sum(result.frames for result in results)
    return {"files": len(results), "frames": frames, "seconds": frames / fps, "bytes": sum(r.bytes for r in results)}


def _record(result: Prepared, spec: AVSpec) -> dict:
    label = class_of(result.path) if spec.class_names else None
    clips = {"clips": result.units} if spec.clip_frames else {}
    return {"path": result.path, "frames": result.frames, **clips, "class": label, "sha256": result.sha256,
            "bytes": result.bytes}  # fmt: skip


def _skipped(dataset: ClipDataset, results: list[Prepared]) -> list[dict]:
    """What the data set left out, then what could not be encoded."""
    before = [{"path": str(Path(path).relative_to(dataset.folder)), "reason": reason, "sha256": ""}
              for path, reason in dataset.skipped]  # fmt: skip
    return before + [{"path": r.path, "reason": r.problem, "sha256": r.sha256}
                     for r in results if r.problem and r.split == dataset.split]  # fmt: skip


def update_spec(folder: Path, spec: AVSpec) -> None:
    """Give the pipeline folder these facts; it is whole at any moment."""
    if AVSpec.load(folder) != spec:
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        part.mkdir()
        spec.save(part)
        os.replace(part / "pipeline.json", folder / "pipeline.json")
        part.rmdir()


def remove_parts(out: Path) -> None:
    """Remove what killed runs left half-written."""
    for part in (*out.glob(".*.part"), *(p for split in SPLITS for p in (out / split).rglob(".*.part"))):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def remove_strays(out: Path, index: dict) -> None:
    """Remove latents of videos that are there no more."""
    for split in SPLITS:
        files = index["splits"].get(split, {"files": []})["files"]
        kept = {latent_path(out / split, e["path"]) for e in files}
        for path in {*(out / split).rglob("*.safetensors")} - kept:
            if "facts" in (read_metadata(path) or {"facts": "of a damaged file"}):
                path.unlink()


# ------------------------------------------------------------------------------------------------------ the report


def summary(results: list[Prepared], clip_frames: int) -> dict:
    """How well the latents of a data set give it back: means over its files, of which there is at least one.

    Args:
        clip_frames: of whole clips, 0 for streams.
    """
    covered = f"PSNR: {WINDOW} frames from the middle of each file; mel: all frames of each file"
    covered = f"PSNR and mel: the clip of {clip_frames} frames in the middle of each file" if clip_frames else covered
    worst = min(results, key=lambda result: result.quality["psnr_db"])
    return {
        "files": len(results),
        "psnr_db": _mean(results, "psnr_db"),
        "psnr_least_db": worst.quality["psnr_db"],
        "psnr_least_of": worst.path,
        "mel_mean_db": _mean(results, "mel_mean_db"),
        "mel_max_db": max(result.quality["mel_max_db"] for result in results),
        "covered": covered,
    }


def _mean(results: list[Prepared], name: str) -> float:
    return math.fsum(result.quality[name] for result in results) / len(results)


@dataclass(frozen=True)
class Comparison:
    """The beginning of a video, and what its latents give back."""

    path: str
    frames: Tensor  # uint8 (T,H,W,3)
    decoded: Tensor  # uint8 (T,H,W,3)
    wave: Tensor  # (T * samples_per_frame,)
    a: Tensor  # (T,S,M) or (N,M), normalised, as stored
    psnr: float  # dB, of these frames


def compare(dataset: ClipDataset, entry: Entry, codec: AVCodec, out: Path) -> Comparison:
    """The first piece of a video beside what is stored of it.

    Args:
        codec: with audio scale 1.
    """
    cut = Cut.of(codec.spec)
    frames, wave = next(picture_blocks(dataset, entry, cut)), next(sound_blocks(dataset, entry, cut))
    file = LatentFile(latent_path(out / dataset.split, entry.path))
    mean, _, mel = (x.float() for x in file.read(0, 1 if cut.whole else len(frames)))
    mean, mel = (mean[0], mel[0]) if cut.whole else (mean, mel)
    decoded = codec.frames.decode(mean[None].to(codec.device))[0].cpu()
    uint8 = (to_uint8(x).movedim(1, -1) for x in (frames, decoded))
    sound = wave[dataset.context : len(wave) - dataset.context]
    return Comparison(entry.path, *uint8, sound, mel, psnr(decoded, frames))
