"""A picture for a given sound (A2V), a sound for a given picture (V2A): what sample_a2v.py and sample_v2a.py share."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from unicodedata import normalize

import torch

from data.av import MediaError, Writer, replace_older, write_clip
from data.choice import choose
from data.folders import SUFFIXES, Skipped, class_of, nearest, nearest_path, walk
from diffusion.guidance import Guidance
from diffusion.noise import Modality
from pipeline.avpipeline import AVPipeline
from pipeline.clips import ClipPipeline
from pipeline.joined import Joined, check_joined, next_clips
from pipeline.sources import SIDE, PictureSource, SoundSource, Source
from pipeline.streams import Streams

LONGEST_NAME = 40  # characters of an input's name in that of its film: a file name may have 255 bytes

SOURCES: dict[str, type[Source]] = {"sound": SoundSource, "picture": PictureSource}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One input: the number of its sample under the seed, what it gives, and its class or None."""

    sample: int
    source: Source
    y: int | None

    @property
    def name(self) -> str:
        """Of its film: the number, and the input's own name as far as every system takes it."""
        own = re.sub(r"[^\w.-]+", "_", normalize("NFC", self.source.path.stem))[:LONGEST_NAME].strip("._")
        return "_".join(filter(None, (f"sample_{self.sample:05d}", own)))


def find_inputs(path: Path, given: str) -> tuple[list[Path], Skipped]:
    """The file itself, or the files [class/]file of a folder that may hold a "sound" or a "picture", sorted.

    The wav beside a film of its name is that film's sound, as the scripts leave it, and no input of its own.

    Returns:
        The files, and the media that are not read, with the reason.
    Raises:
        ValueError: there are none.
    """
    if path.is_file():
        return [path], []
    suffixes, remedy = SOURCES[given].suffixes, "give a file, or a folder of files or of class folders"
    if not path.is_dir():
        raise ValueError(f"{path} does not exist{nearest_path(path)}; {remedy}")
    found, skipped = walk(path, suffixes)
    films = {file.with_suffix("") for file in found if file.suffix.lower() in SUFFIXES}
    files = [path / file for file in found if file.suffix.lower() != ".wav" or file.with_suffix("") not in films]
    if not files:
        raise ValueError(f"{path} has no files with {given} ({', '.join(sorted(suffixes))}); {remedy}")
    return files, [(str(path / file), reason) for file, reason in skipped]


def folder_labels(files: list[Path], path: Path, class_names: tuple[str, ...]) -> list[int | None]:
    """The class of each file by its folder below `path`; None for a file in none, or a model without classes.

    A released checkpoint has numbers for names: its classes are the folders in order, if there are as many.

    Raises:
        ValueError: a folder is no class of the model.
    """
    names = [class_of(file.relative_to(path)) for file in files]
    folders = sorted({*names} - {""})
    if class_names == tuple(map(str, range(len(folders)))):
        class_names = tuple(folders)
    if class_names and (strange := sorted({*folders} - {*class_names})):
        told = ", ".join(name + nearest(name, class_names) for name in strange)
        raise ValueError(
            f"{path} has folders {told}, but the classes of this model are {', '.join(class_names)}; "
            "rename the folders or give --classes"
        )
    return [class_names.index(name) if class_names and name else None for name in names]


def choose_inputs(
    files: list[Path], labels: list[int | None], path: Path, num: int, seed: int
) -> tuple[list[Path], list[int | None]]:
    """Up to `num` files of `path` with their labels, by the rule of `data.choice`: of each class its share."""
    inside = [file.relative_to(path) for file in files]
    kept = choose(range(len(files)), num, seed, lambda i: str(inside[i]), lambda i: class_of(inside[i]))
    return [files[i] for i in kept], [labels[i] for i in kept]


def examine(
    pipe: AVPipeline | ClipPipeline,
    files: list[Path],
    labels: list[int | None],
    given: str,
    most: int,
    progress: Callable = iter,
    least: int = 0,
) -> tuple[list[Job], Skipped]:
    """Jobs of the files that can be used, and what is wrong with the others, which is warned of.

    All that can be wrong is found before long work: each file's track is read to its end, its sound decoded, and its
    first second is put into a film.

    Args:
        given: "sound" or "picture". most: frames of each file; 0 for all. progress: wraps the files, as tqdm does.
        least: frames that a file must have.
    Raises:
        MediaError: none can be used.
    """
    jobs, problems = [], []
    with TemporaryDirectory() as work:
        film, trial = Path(work) / "film.mp4", Path(work) / "trial.mp4"
        write_clip(film, torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8), torch.zeros(0))
        for i, (path, y) in enumerate(zip(progress(files), labels)):
            try:
                source = SOURCES[given](path, pipe.codec, least or pipe.model.predict_frames, most)
                if source.frames < least:
                    raise MediaError(f"{path} has {source.frames} frames, shorter than the clip of {least}; give a "
                                     "longer file, or a smaller --video-length")  # fmt: skip
                if least:
                    check_joined(pipe.codec, source.frames, least)
                source.mux(film, trial, seconds=1.0)
                jobs.append(Job(i, source, y))
            except MediaError as error:
                problems.append((str(path), str(error)))
    if not jobs:
        raise MediaError(
            problems[0][1] if len(files) == 1 else f"none of {len(files)} files can be used, for {problems[0][1]}"
        )
    for _, reason in problems:
        log.warning("skipped: %s", reason)
    return jobs, problems


def conditioned_streams(
    pipe: AVPipeline,
    given: str,
    method: str,
    guidance_scale: float,
    num_timesteps: float,
    cfg_scale: float,
    negative: str = "",
    solver: str = "euler",
) -> Streams:
    """Streams in which one modality is given and the other generated.

    Args:
        given: "sound" or "picture".
        method: "guide" puts the given side on its lines and corrects the other by the gradient of its error, "replace"
            does without the gradient, "clean" shows the given side at t = 1, "held" at the model's conditioning time.
    """
    modality = SOURCES[given].modality
    shown_at = {"clean": 1.0}
    if pipe.model.conditioning_times is not None:
        shown_at["held"] = dict(zip(("picture", "sound"), pipe.model.conditioning_times))[given]
    return Streams(
        pipe,
        num_timesteps,
        cfg_scale,
        guidance=Guidance(guidance_scale) if method == "guide" else None,
        t=shown_at.get(method),
        picture=modality is Modality.AUDIO,
        sound=modality is Modality.VIDEO,
        resumable=False,
        negative=negative,
        solver=solver,
    )


def generate(
    streams: Streams, jobs: list[Job], seed: int, batch_size: int, folder: Path
) -> Iterator[tuple[Job, int, Path | None]]:
    """Make the films of all jobs, `batch_size` of them side by side; the next one begins where one ends.

    Yields:
        After each chunk: its job, the number of its frames, and the path of the film once that is in `folder`,
        complete, with its wav.
    """
    waiting, running = iter(jobs), {}
    with TemporaryDirectory(dir=folder, prefix=".films.") as work:
        try:
            while True:
                for job in islice(waiting, batch_size - len(running)):
                    running[job.name] = job, _join(streams, job, seed, Path(work))
                if not running:
                    return
                for name, chunk in streams.step():
                    job, writer = running[name]
                    writer.write(*job.source.film(len(chunk.v), chunk.frames, chunk.wave))
                    ended = writer.frames == job.source.frames
                    yield job, len(chunk.v), _finish(job, writer, folder) if ended else None
                    if ended:
                        del running[name]
        finally:
            for _, writer in running.values():
                writer.discard()


def conditioned_clips(
    pipe: ClipPipeline,
    jobs: list[Job],
    seed: int,
    batch_size: int,
    folder: Path,
    given: str,
    frames: int,
    how: tuple[int, float, str],
) -> Iterator[tuple[Job, int, Path | None]]:
    """The other side for all jobs, by clips of `frames` frames that overlap; as `generate` does for streams.

    Args:
        given: "picture" or "sound". how: num_timesteps, cfg_scale and negative, as of `ClipPipeline.sample`.
    """
    waiting, running = iter(jobs), []
    with TemporaryDirectory(dir=folder, prefix=".films.") as work:
        try:
            while True:
                for job in islice(waiting, batch_size - len(running)):
                    running.append((job, Joined(pipe, job.source, given, frames), _writer(pipe, job, Path(work))))
                if not running:
                    return
                made = next_clips([(job.sample, job.y, film) for job, film, _ in running], seed, how)
                for (job, _, writer), (count, *media) in zip(running, made):
                    writer.write(*job.source.film(count, *media))
                    ended = writer.frames == job.source.frames
                    yield job, count, _finish(job, writer, folder) if ended else None
                running = [row for row in running if not row[1].ended]
        finally:
            for *_, writer in running:
                writer.discard()


def _writer(pipe: AVPipeline | ClipPipeline, job: Job, work: Path) -> Writer:
    """A film without the given track."""
    side = job.source.side
    return Writer(work / f"{job.name}.mp4", side, side, pipe.spec.fps, pipe.spec.sample_rate)


def _join(streams: Streams, job: Job, seed: int, work: Path) -> Writer:
    """Let a stream begin; its film, without the given track."""
    source, pipe = job.source, streams.pipe
    state = pipe.new_stream(job.sample, job.y, seed)
    streams.join(job.name, state, source.frames, given={source.modality: source})
    return _writer(pipe, job, work)


def _finish(job: Job, writer: Writer, folder: Path) -> Path:
    """Close a film, give it the input's own track, and move it and its wav to the folder; where it is now."""
    writer.close()
    path = job.source.mux(writer.path, folder / writer.path.name, job.source.seconds)
    os.replace(writer.path.with_suffix(".wav"), path.with_suffix(".wav"))
    replace_older(path, f"sample_{job.sample:05d}")
    writer.path.unlink()
    return path
