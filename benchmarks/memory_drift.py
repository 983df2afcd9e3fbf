"""Do long films drift with a memory, and does noise on it in training help? 2,400 frames, judged by their pieces.

    python benchmarks/memory_drift.py                            # without, with, and with noise; seed 0
    python benchmarks/memory_drift.py --noises 0 --seeds 0 1 2
    python benchmarks/memory_drift.py --table --plot drift.png   # what is there; trains nothing

A window sees real frames in training and its own in sampling; a memory shows it more of its own. Models with classes
learn bouncing balls by train.py and roll on by sample_long.py, side by side. Each piece of a film is compared with its
first one, and its bounces, pings and flight are judged as those of short films. Every figure is kept in --out as soon
as it is made, and the same command goes on where it was broken off; trainings and films are in --work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.layout import cell, table
from benchmarks.rows import Record, train_on

if TYPE_CHECKING:
    from numpy.typing import NDArray

AGES = (1, 8, 9, 16, 17, 28)  # of the memory, in frames; two in turn tell whether a ball rises
TRAIN, FRAMES = 256, 64  # training clips, frames of each: of those of 32 no window has the oldest age behind it
REAL = 12  # real films, which fix the detectors' threshold and say what a perfect model would score
PIECE = 240  # frames
RATE = 16000  # Hz
METHOD = (
    "FLAV-tiny with classes, trained with the demo's flags and fusion c_norm on balls of 64 frames; films are made "
    "side by side by sample_long.py, classes in turn, written as mp4 and read back, and cut into pieces of 240 "
    "frames. moved_mean, moved_spread: RMS distance of the piece's mean picture, and of its standard deviation over "
    "time, to those of the film's first piece, grey levels, by cells of 4x4 px; the mean over films. sound: RMS over "
    "that of the first piece, dB. colour: share of frames with the ball of the film's class. f1: of bounces seen "
    "against pings heard within one frame, over all films. motion: error of free flight, px per frame^2. Intervals "
    "are 95 % bootstraps over films. real: balls that were rendered."
)


class Side(NamedTuple):
    """A way to train. ages, noise: of the memory."""

    ages: tuple[int, ...]
    noise: float

    @property
    def name(self) -> str:
        if not self.ages:
            return "without"
        return f"with, noise {self.noise:g}" if self.noise else "with"

    @property
    def how(self) -> tuple:
        """Arguments of train.py."""
        return ("--memory", *self.ages, "--memory-noise", self.noise) if self.ages else ()


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--memory", type=cli.positive, nargs="*", default=list(AGES), metavar="AGE", help="ages; none "
                   "leaves the sides with a memory out")  # fmt: skip
    p.add_argument("--noises", type=cli.finite, nargs="+", default=[0.0, 0.25], help="of --memory-noise, a side each")
    p.add_argument("--seeds", type=cli.whole, nargs="+", default=[0], help="of training and sampling; the videos stay")
    p.add_argument("--steps", type=cli.positive, default=2000, help="of training; a model that is there is kept")
    p.add_argument("--films", type=cli.positive, default=6, help="of each side and seed")
    p.add_argument("--frames", type=cli.positive, default=2400, help="of a film")
    p.add_argument("--cfg-scale", type=cli.finite, default=1.0, help="of guidance by class")
    p.add_argument("--work", type=Path, default=Path("runs/memory/drift"), help="where videos, models and films stay")
    p.add_argument("--out", type=Path, default=cli.ROOT / "benchmarks/results/memory_drift.json", help="JSON file")
    p.add_argument("--table", action="store_true", help="print what is in --out, and run nothing")
    p.add_argument("--plot", type=Path, help="PNG file for the curves with their bands")
    args = p.parse_args(argv)
    if args.frames < 2 * PIECE:
        p.error(f"--frames {args.frames} has no second piece of {PIECE} frames; give at least {2 * PIECE}")
    facts = {name: getattr(args, name) for name in ("memory", "steps", "films", "frames", "cfg_scale")}
    record = Record(args.out, {"method": METHOD, "piece": PIECE, **facts})
    if not args.table:
        measure(record, args, cli.output_folder(args.work).resolve())
    print(markdown(record.figures))
    if args.plot:
        cli.output_folder(args.plot.parent)
        plot(record.figures).savefig(args.plot)


def measure(record: Record, args, work: Path) -> None:
    """All figures that are not there."""
    import demo

    data = work / "data"
    if not (data / "ready").exists():
        work.mkdir(parents=True, exist_ok=True)
        how = ("--train", TRAIN, "--test", REAL, "--frames", FRAMES)
        demo.call("-m", "data.synthetic", data, *how, log=work / "data.log")
        (data / "ready").touch()
    record.made("real", partial(real, args.films, args.frames))
    sides = [Side((), 0.0), *(Side(tuple(args.memory), noise) for noise in args.noises if args.memory)]
    for seed in args.seeds:
        for side in sides:
            run = work / f"{side.name.replace(', ', '_').replace(' ', '_')}_steps_{args.steps}_seed_{seed}"
            record.made(f"{side.name}/{seed}", partial(made, args, side, seed, data, run))


def made(args, side: Side, seed: int, data: Path, run: Path) -> dict:
    """Figures of the films of a training."""
    import demo

    films = run / "films"
    train_on(run, data, args.steps, seed, side.how)
    how = ("--num-videos", args.films, "--frames", args.frames, "--cfg-scale", args.cfg_scale, "--seed", seed)
    command = ("sample_long.py", "--model-ckpt", run / "export", "--results-dir", films, "--device", "cpu", *how)
    demo.call(*command, "--save-state", 0, log=run / "films.log", threads=1)
    paths = [films / f"long_{k:05d}.mp4" for k in range(args.films)]
    return judged([pieces(*read(path, args.frames), k % 3, threshold()) for k, path in enumerate(paths)])


def real(films: int, frames: int) -> dict:
    """Figures of balls that go on as they do."""
    from data.synthetic import TEST_START, draw_clip, render, sound

    clips = [draw_clip(0, TEST_START + k) for k in range(films)]
    shown = ((render(clip, frames).numpy(), sound(clip, frames, RATE).numpy(), clip.label) for clip in clips)
    return judged([pieces(*film, threshold()) for film in shown])


def read(path: Path, frames: int) -> tuple[NDArray, NDArray]:
    """A film's frames uint8 (T,64,64,3) and wave (N,)."""
    from data.av import read_audio, read_frames
    from data.synthetic import FPS

    return read_frames(path, 0, frames, FPS).numpy(), read_audio(path, 0, frames * RATE // FPS).numpy()


def threshold() -> float:
    """Loudness of a ping, fixed on real clips."""
    from data.synthetic import TEST_START, calibrate, draw_clip, sound

    return calibrate(sound(draw_clip(0, TEST_START + i), FRAMES, RATE) for i in range(REAL))


def pieces(frames: NDArray, wave: NDArray, label: int | None, threshold: float, length: int = PIECE) -> list[dict]:
    """What is judged of each piece of a film; a last one that is shorter is left out.

    Args:
        frames: uint8 (T,64,64,3). wave: (N,). label: class of its ball; None where its colour is not asked for.
        length: frames of a piece.
    """
    import numpy as np

    from data.synthetic import FPS, GRAVITY, ball_class, ball_height, detect_bounces, detect_pings
    from metrics.motion import flight_errors
    from metrics.sync import event_counts

    bounces, pings = detect_bounces(frames), detect_pings(wave, RATE, FPS, threshold)
    found, signs = [], cells(frames)
    for first in range(0, len(frames) - length + 1, length):
        now = slice(first, first + length)
        heard = wave[first * RATE // FPS : (first + length) * RATE // FPS]
        flight = flight_errors(ball_height(frames[now]), GRAVITY)
        found.append({
            "mean": signs[now].mean(0), "spread": signs[now].std(0), "rms": float(np.sqrt(np.square(heard).mean())),
            "counts": event_counts(bounces - first, pings - first, length),
            "flight": float(flight.mean()) if len(flight) else None,
            "colour": None if label is None else float((ball_class(frames[now]) == label).mean()),
            "change": float(np.linalg.norm(np.diff(signs[now], axis=0), axis=1).mean()),
        })  # fmt: skip
    return found


def cells(frames: NDArray) -> NDArray:
    """Means of 4x4 px of uint8 frames (T,64,64,3), scaled so that distances are RMS in grey levels: (T,768)."""
    import torch

    from metrics.long import low_pass

    return torch.cat([low_pass(torch.from_numpy(part)) for part in (frames[i : i + 64] for i in
                      range(0, len(frames), 64))]).numpy()  # fmt: skip


def judged(films: Sequence[list[dict]]) -> dict:
    """Figures of each piece, over films."""
    return {"films": len(films), "pieces": [over_films(films, k) for k in range(len(films[0]))]}


def over_films(films: Sequence[list[dict]], k: int) -> dict:
    """Figures of piece k."""
    import numpy as np

    from metrics.sync import bootstrap_f1, f1

    now, first = [film[k] for film in films], [film[0] for film in films]
    moved = {f"moved_{of}": mean([float(np.linalg.norm(x[of] - y[of])) for x, y in zip(now, first)])
             for of in ("mean", "spread")}  # fmt: skip
    louder = [20 * float(np.log10(max(x["rms"], 1e-6) / max(y["rms"], 1e-6))) for x, y in zip(now, first)]
    counts = [x["counts"] for x in now]
    return {**moved, "sound": mean(louder), "colour": mean([x["colour"] for x in now]),
            "f1": {"value": f1(counts), "interval": bootstrap_f1(counts)},
            "motion": mean([x["flight"] for x in now if x["flight"] is not None])}  # fmt: skip


def mean(values: Sequence[float]) -> dict | None:
    """A mean with its interval, and over how many; None without any."""
    import numpy as np

    from metrics.intervals import bootstrap

    if not len(values):
        return None
    interval = bootstrap(values) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "interval": interval, "films": len(values)}


HEAD = ("frames", "mean picture moved", "spread moved", "sound, dB", "colour", "event F1", "motion error")
OF = ("moved_mean", "moved_spread", "sound", "colour", "f1", "motion")


def markdown(figures: dict[str, dict]) -> str:
    """A table of each side and seed: a row for each piece."""
    parts = []
    for key, found in figures.items():
        lines = [[f"{PIECE * k} to {PIECE * (k + 1)}", *(cell(piece[of]) for of in OF)]
                 for k, piece in enumerate(found["pieces"])]  # fmt: skip
        parts.append(f"{key.replace('/', ', seed ')}, {found['films']} films\n\n{table(HEAD, lines)}")
    return "\n".join(parts)


def plot(figures: dict[str, dict]):
    """A panel of each figure: a curve of each side and seed over the frames of a film, with its band."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 5.4), dpi=100, layout="constrained")
    panels = picture.subplots(2, 3).flat
    for axes, of, title in zip(panels, OF, HEAD[1:]):
        for key, found in figures.items():
            seen = [(PIECE * (k + 0.5), *ends(piece[of])) for k, piece in enumerate(found["pieces"]) if piece[of]]
            at, values, low, high = zip(*seen)
            (line,) = axes.plot(at, values, label=key.replace("/", ", seed "), linewidth=1.2)
            axes.fill_between(at, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set_title(title, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    picture.supxlabel("frame", fontsize="medium")
    picture.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return picture


def ends(figure: dict) -> tuple[float, float, float]:
    """A figure with the ends of its interval, or itself for them."""
    return figure["value"], *(figure["interval"] or [figure["value"]] * 2)


if __name__ == "__main__":
    cli.run(main)
