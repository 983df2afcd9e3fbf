"""How long does a model remember? A ball is hidden behind a curtain; which colour and phase does it come back with?

    python benchmarks/memory.py --steps 2000 --out benchmarks/results/memory_demo.json

R-FLAV states as a limit that all it remembers is its window of T frames. Here a model without class labels learns
balls before which a curtain falls now and then, in silence; then held-out clips that end under the curtain are
extended. The model itself raises the curtain, so results are told by the frames that the ball was really hidden.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from data.synthetic import EMPTY, FPS, SIZE, TEST_START, BallClip, draw_clip
from metrics.sync import EventCounts

RATE = 16000  # Hz
CURTAIN = 47  # grey level, midway between background and floor: the detectors see no ball in it
OPEN, CLOSED = (12, 28), (1, 16)  # shortest and longest stretch of frames without and with the curtain, in training
TRAIN, FRAMES = 256, 64  # training clips, frames of each
CLIPS = 24  # held out, in each of LENGTHS
PAST = 12  # frames seen before the curtain falls
LENGTHS = (0, 2, 4, 6, 8, 10, 12)  # frames given under the curtain
AFTER = 28  # frames at least that the model makes
JUDGED = 8  # visible frames at most, from the first on
FITTED = 3  # frames at least that tell when the ball bounces
WINDOW = 8  # frames, of the demo's model
BINS = ((0, 0), (1, 2), (3, 4), (5, 6), (7, 8), (9, 12), (13, None))  # frames hidden, for the table
ROTATIONS = (3, 6, 9)  # places to another clip of the same class, whose truth is as good as chance
METHOD = (
    "FLAV-tiny without labels, trained with the demo's flags on balls behind curtains. Held-out clips of 12 visible "
    "frames and some under the curtain are extended by sample_long.py; hidden counts frames, given and generated, from "
    "the last visible one given to the first visible one generated. From there up to 8 visible frames are judged. "
    "colour: share of clips with the class from before; chance pairs the same clips at random. f1: of bounces against "
    "those of the clip rendered on, within one frame. error: frames by which the ball is early or late, from the shift "
    "of its true course, by half a period at most, that fits the heights of 3 or more visible frames best. Chance of "
    "both takes other clips of the class. Intervals are 95 % bootstraps over clips. Two frames with h hidden ones "
    "between them share a window of T up to h = T - 2."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--work", type=Path, default=Path("runs/memory"), help="where videos, model and films go")
    p.add_argument("--steps", type=cli.positive, default=1500, help="training steps; a model that is there is kept")
    p.add_argument("--seed", type=cli.whole, default=0, help="of training and sampling; the videos stay the same")
    p.add_argument("--out", type=Path, help="JSON file for the figures")
    args = p.parse_args(argv)
    work = cli.output_folder(args.work).resolve()
    import torch  # after the arguments are known to be good

    torch.set_num_threads(1)
    clips = [draw_clip(0, TEST_START + i) for i in range(CLIPS)]
    truths = [truth(clip) for clip in clips]
    write_training_set(work / "data/train")
    write_given(work / "given", clips)
    export = train(work, args.steps, args.seed)
    films = extend(work, export, args.seed)
    result = {
        "window": json.loads((export / "config.json").read_text())["predict_frames"],
        "real": judge(real_films(work / "real", clips), truths)["all"],
        "model": judge(films, truths),
        "under_curtain": leak(work / "given"),
    }
    print(table(result))
    if args.out:
        facts = {"method": METHOD, "arguments": vars(args), "machine": cli.machine()}
        versions = {name: metadata.version(name) for name in cli.PACKAGES}
        cli.write_json(args.out, {**facts, "versions": versions, **settings(), **result})


def settings() -> dict:
    """What was measured on, for the record."""
    return {"clips_per_length": CLIPS, "past": PAST, "given_hidden": LENGTHS, "judged": JUDGED, "after": AFTER,
            "training_clips": TRAIN, "training_frames": FRAMES, "open": OPEN, "closed": CLOSED}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """How a clip goes on behind the curtain: frames uint8 (T,64,64,3), heights (T,) in px, exact bounce times."""

    clip: BallClip
    frames: NDArray
    heights: NDArray
    bounces: NDArray


@dataclass(frozen=True)
class Shown:
    """A film, uint8 (T,64,64,3), of the clip at position `clip`; `given`: frames that the model did not make."""

    clip: int
    given: int
    frames: NDArray


@dataclass(frozen=True)
class Return:
    """A ball that came back: hidden for so many frames, judged in frames first..stop-1; colour -1 is no ball.

    bounces: their times, in frames from the start of the film. heights (stop - first,): px, nan without a ball.
    """

    clip: int
    given: int
    hidden: int
    first: int
    stop: int
    colour: int
    bounces: NDArray
    heights: NDArray


@dataclass(frozen=True)
class Score:
    """A ball that came back against its truth, and against those of others of its class for chance."""

    back: Return
    label: int
    counts: EventCounts
    error: float  # frames; nan if too little is seen
    chance_counts: list[EventCounts]
    chance_errors: list[float]


def length() -> int:
    """Frames of every film."""
    return PAST + max(LENGTHS) + AFTER


def truth(clip: BallClip) -> Truth:
    """The clip without curtain, a period longer than a film: a late ball may be ahead of the end."""
    from data.synthetic import ball_height, render

    frames = render(clip, length() + math.ceil(clip.period)).numpy()
    return Truth(clip, frames, ball_height(frames), clip.bounce_times(len(frames)))


def draw_curtains(index: int, frames: int) -> NDArray:
    """Which frames of training clip `index` are hidden: bool (frames,), open and closed stretches in turn."""
    rng, count = np.random.default_rng([1, index]), frames // (OPEN[0] + CLOSED[0]) + 4
    stretches = [rng.integers(low, high, size=count, endpoint=True) for low, high in (OPEN, CLOSED)]
    hidden = np.repeat(np.arange(2 * count) % 2 == 1, np.stack(stretches, 1).ravel())
    start = rng.integers(OPEN[1] + CLOSED[1])
    return hidden[start : start + frames]


def hide(frames, wave, hidden: NDArray) -> tuple:
    """Lower the curtain over the `hidden` (T,) of frames uint8 (T,64,64,3), and silence their samples of wave (N,)."""
    import torch

    hidden, frames, wave = torch.from_numpy(hidden), frames.clone(), wave.clone()
    frames[hidden] = CURTAIN
    wave.view(len(frames), -1)[hidden] = 0
    return frames, wave


def write_hidden(path: Path, clip: BallClip, hidden: NDArray) -> None:
    """Write the clip with a curtain over the `hidden` (T,) frames as mp4, unless it is there."""
    from data.av import Writer
    from data.synthetic import render, sound

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with Writer(path, SIZE, SIZE, FPS, RATE, wav=False) as writer:
            writer.write(*hide(render(clip, len(hidden)), sound(clip, len(hidden), RATE), hidden))


def write_training_set(folder: Path) -> None:
    """Clips behind curtains, without class folders: nothing but the window can tell the colour."""
    for i in range(TRAIN):
        write_hidden(folder / f"ball_{i:05d}.mp4", draw_clip(0, i), draw_curtains(i, FRAMES))


def write_given(folder: Path, clips: Sequence[BallClip]) -> None:
    """For each of LENGTHS all clips, PAST frames and so many under the curtain: given_HH_CCCCC.mp4."""
    for hidden in LENGTHS:
        for i, clip in enumerate(clips):
            write_hidden(folder / f"given_{hidden:02d}_{i:05d}.mp4", clip, np.arange(PAST + hidden) >= PAST)


def train(work: Path, steps: int, seed: int) -> Path:
    """The exported model of these steps and this seed; trained unless it is there."""
    import demo

    run = work / f"steps_{steps}_seed_{seed}"
    if not (run / "export").is_dir():
        how = ("--max-steps", steps, "--ckpt-every", steps, "--seed", seed, *demo.TRAINING.split())
        command = ("train.py", "--data-path", work / "data", "--experiment-dir", run, *how)
        demo.call(*command, log=work / "train.log", threads=1)
    return run / "export"


def extend(work: Path, export: Path, seed: int) -> list[Shown]:
    """All given clips extended side by side, as their files show them."""
    import demo

    given, folder = sorted((work / "given").glob("*.mp4")), work / "films"
    how = ("--frames", length(), "--save-state", 0, "--seed", seed, "--device", "cpu")
    command = ("sample_long.py", "--model-ckpt", export, "--results-dir", folder, *how, "--extend", *given)
    demo.call(*command, log=work / "films.log", threads=1)
    names = [path.stem.split("_") for path in given]
    return [shown(folder / f"long_{k:05d}.mp4", int(i), int(h)) for k, (_, h, i) in enumerate(names)]


def real_films(folder: Path, clips: Sequence[BallClip]) -> list[Shown]:
    """What a perfect model would make: the clips go on behind a curtain that rises at the end of each of LENGTHS."""
    films, time = [], np.arange(length())
    for i, clip in enumerate(clips):
        hidden, path = LENGTHS[i % len(LENGTHS)], folder / f"real_{i:05d}.mp4"
        write_hidden(path, clip, (time >= PAST) & (time < PAST + hidden))
        films.append(shown(path, i, hidden))
    return films


def shown(path: Path, clip: int, hidden: int) -> Shown:
    """A film from its file."""
    from data.av import read_frames

    return Shown(clip, PAST + hidden, read_frames(path, 0, length(), FPS).numpy())


def under_curtain(frames: ArrayLike) -> NDArray:
    """Which of the uint8 frames (T,64,64,3) are nearer to the curtain than to the scene in most places: bool (T,)."""
    frames = np.asarray(frames).astype(np.int16)
    return (np.abs(frames - CURTAIN) < np.abs(frames - EMPTY)).mean((1, 2, 3)) > 0.5


def find_return(film: Shown) -> Return | None:
    """The first stretch without curtain after the given frames, JUDGED frames at most; None if there is none."""
    from data.synthetic import ball_class, ball_height, detect_bounces

    hidden = under_curtain(film.frames[film.given :])
    if hidden.all():
        return None
    risen = int(hidden.argmin())
    first = film.given + risen
    stop = first + int(np.append(hidden[risen : risen + JUDGED], True).argmax())
    seen = film.frames[first:stop]
    labels = ball_class(seen)
    colour = int(np.bincount(labels[labels >= 0]).argmax()) if (labels >= 0).any() else -1
    bounces = detect_bounces(seen) + first
    return Return(film.clip, film.given, first - PAST, first, stop, colour, bounces, ball_height(seen))


def bounce_counts(back: Return, clip: Truth) -> EventCounts:
    """Bounces seen, and those that the same detector sees in these frames of the truth, with partners within a frame.

    A bounce seen may also have its partner outside these frames, where no detector sees it.
    """
    from data.synthetic import detect_bounces
    from metrics.sync import match_events

    expected = detect_bounces(clip.frames[back.first : back.stop]) + back.first
    right, kept = match_events(back.bounces, clip.bounces), match_events(expected, back.bounces)
    return EventCounts(v=len(back.bounces), v_matched=len(right), a=len(expected), a_matched=len(kept))


def bounce_error(back: Return, clip: Truth) -> float:
    """Frames by which the ball bounces early or late, half a period at most; nan if too little of it is seen."""
    if back.stop - back.first < FITTED:
        return math.nan
    shifts = np.linspace(-0.5, 0.5, 101)[:, None] * clip.clip.period
    times = np.arange(back.first, back.stop) + shifts  # (101,stop-first)
    misfit = np.square(np.interp(times, np.arange(len(clip.heights)), clip.heights) - back.heights).sum(1)
    return math.nan if np.isnan(misfit).any() else float(np.abs(shifts[misfit.argmin(), 0]))


def score(back: Return, truths: Sequence[Truth]) -> Score:
    """Hold a ball that came back against what it should be."""
    own, others = truths[back.clip], [truths[(back.clip + places) % len(truths)] for places in ROTATIONS]
    chance = [bounce_counts(back, other) for other in others], [bounce_error(back, other) for other in others]
    return Score(back, own.clip.label, bounce_counts(back, own), bounce_error(back, own), *chance)


def judge(films: Sequence[Shown], truths: Sequence[Truth]) -> dict:
    """Figures of all films, of curtains shorter than the window and not, of each bin, and of each given length."""
    scores = [score(back, truths) for film in films if (back := find_return(film))]
    bins = {named(low, high): (low, high) for low, high in (*BINS, (1, WINDOW - 1), (WINDOW, None))}
    groups = {name: [s for s in scores if within(s.back.hidden, *ends)] for name, ends in bins.items()}
    given = {str(h): [s for s in scores if s.back.given == PAST + h] for h in LENGTHS}
    return {
        "all": figures(scores),
        "never_risen": len(films) - len(scores),
        "hidden": {name: figures(group) for name, group in groups.items()},
        "given": {name: figures(group) for name, group in given.items()},
    }


def within(hidden: int, low: int, high: int | None) -> bool:
    return low <= hidden and (high is None or hidden <= high)


def named(low: int, high: int | None) -> str:
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"


def figures(scores: Sequence[Score]) -> dict | None:
    """What is kept of colour and phase, each with its interval and with chance; None for fewer than 2 clips."""
    if len(scores) < 2:
        return None
    returns = [s.back for s in scores]
    return {
        "clips": len(scores),
        "mean_hidden": float(np.mean([r.hidden for r in returns])),
        "mean_judged": float(np.mean([r.stop - r.first for r in returns])),
        "without_ball": sum(r.colour < 0 for r in returns),
        "colour": colour_kept(scores),
        "f1": bounces_kept(scores),
        "error": mean_error(scores),
    }


def colour_kept(scores: Sequence[Score]) -> dict:
    """Share of clips that have their colour still."""
    from metrics.intervals import bootstrap

    found, right = np.array([(s.back.colour, s.label) for s in scores]).T
    chance = float(np.equal.outer(found, right).mean())
    return {"value": float((found == right).mean()), "interval": bootstrap(found == right), "chance": chance}


def bounces_kept(scores: Sequence[Score]) -> dict:
    """F1 of the bounces seen, over `events` true ones."""
    from metrics.sync import bootstrap_f1, f1

    counts, chance = [s.counts for s in scores], [c for s in scores for c in s.chance_counts]
    events = sum(c.a for c in counts)
    return {"value": f1(counts), "interval": bootstrap_f1(counts), "chance": f1(chance), "events": events}


def mean_error(scores: Sequence[Score]) -> dict | None:
    """Mean error in frames over the `clips` that show enough; None for fewer than 2."""
    from metrics.intervals import bootstrap

    enough = [s for s in scores if np.isfinite([s.error, *s.chance_errors]).all()]
    if len(enough) < 2:
        return None
    errors, chance = np.array([s.error for s in enough]), np.array([s.chance_errors for s in enough])
    return {"value": errors.mean(), "interval": bootstrap(errors), "chance": chance.mean(), "clips": len(enough)}


def leak(folder: Path) -> dict:
    """What the file still shows and sounds like when the whole window is behind the curtain: nothing may tell the ball.

    Largest difference to the curtain in grey levels, share of numbers that differ by more than one, and largest
    sample, over the last WINDOW frames of the longest.
    """
    from data.av import read_audio, read_frames

    first, paths = PAST + max(LENGTHS) - WINDOW, sorted(folder.glob(f"given_{max(LENGTHS):02d}_*.mp4"))
    off = np.abs(np.stack([read_frames(path, first, WINDOW, FPS).int() - CURTAIN for path in paths]))
    waves = [read_audio(path, first * RATE // FPS, WINDOW * RATE // FPS) for path in paths]
    loudest = max(float(wave.abs().max()) for wave in waves)
    return {"grey_levels": int(off.max()), "share_over_one": float((off > 1).mean()), "sample": loudest}


def table(result: dict) -> str:
    """Lines of the terminal: a row for each number of hidden frames, and for real films."""
    rows = {**result["model"]["hidden"], "real": result["real"]}
    kinds = ("colour", "f1", "error")
    head = f"{'hidden':>8} {'clips':>6}" + "".join(f" {kind:>7} {'95 %':>12} {'chance':>7}" for kind in kinds)
    lines = [f"{name:>8} {r['clips']:6d}" + "".join(cells(r[kind]) for kind in kinds) for name, r in rows.items() if r]
    return "\n".join([head, *lines])


def cells(figure: dict | None) -> str:
    """A figure, its interval and chance in a row of the table."""
    if figure is None:
        return " " * 29
    low, high = figure["interval"]
    return f" {figure['value']:7.2f} {low:6.2f}..{high:4.2f} {figure['chance']:7.2f}"


if __name__ == "__main__":
    cli.run(main)
