"""A curtain falls before bouncing balls: what films show when it rises, held against how the balls went on behind it.

Two tasks. A ball is seen, then hidden in silence: which colour and phase does it come back with? And a ball is hidden
from the beginning, so that its pings alone tell its colour, by their pitch, and its phase; then they stop, too. Nothing
tells the ball from then on, and how long ago that was is what results are told by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.synthetic import EMPTY, FPS, SIZE, TEST_START, BallClip, draw_clip
from metrics.sync import EventCounts

RATE = 16000  # Hz
CURTAIN = 47  # grey level, midway between background and floor: the detectors see no ball in it
TRAIN, FRAMES = 256, 64  # training clips, frames of each
CLIPS = 24  # held out, in each of LENGTHS
LENGTHS = (0, 2, 4, 6, 8, 10, 12)  # frames given under the curtain and in silence
AFTER = 28  # frames at least that the model makes
JUDGED = 8  # visible frames at most, from the first on
FITTED = 3  # frames at least that tell when the ball bounces
ROTATIONS = (3, 6, 9)  # places to another clip of the same class, whose truth is as good as chance
BINS = ((0, 0), (1, 2), (3, 4), (5, 6), (7, 8), (9, 12), (13, None))  # frames hidden, for the table
GROUPS = (*BINS, (1, 7), (8, None), (5, 12))


class Stretch(NamedTuple):
    """Frames of a training clip that are covered alike: how many there are at least and at most."""

    hidden: bool
    silent: bool
    lengths: tuple[int, int]


class Task(NamedTuple):
    """What a model has to remember.

    past: frames of a film before it is hidden and silent. seen: whether the ball is seen in them; else it is behind
    the curtain, and heard. stretches: of training clips, in turn.
    """

    past: int
    seen: bool
    stretches: tuple[Stretch, ...]

    @property
    def length(self) -> int:
        """Frames of every film."""
        return self.past + max(LENGTHS) + AFTER


OPEN, CLOSED, HEARD = Stretch(False, False, (12, 28)), Stretch(True, True, (1, 16)), Stretch(True, False, (12, 24))
TASKS = {
    "seen": Task(12, True, (OPEN, CLOSED)),
    "heard": Task(16, False, (HEARD, CLOSED, OPEN, CLOSED)),
}


@dataclass(frozen=True)
class Truth:
    """How a clip goes on behind the curtain: frames uint8 (T,64,64,3), heights (T,) in px, exact bounce times."""

    clip: BallClip
    frames: NDArray
    heights: NDArray
    bounces: NDArray


@dataclass(frozen=True)
class Shown:
    """A film, uint8 (T,64,64,3) and its sound (N,), of the clip at position `clip`.

    given: frames that the model did not make. told: frame from which on nothing given tells the ball.
    """

    clip: int
    given: int
    told: int
    frames: NDArray
    wave: NDArray


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


class Score(NamedTuple):
    """A ball that came back against its truth, and against those of others of its class for chance; as JSON has it.

    lowered: frames given under the curtain and in silence. hidden: frames, given and made, in which nothing told the
    ball. pings: heard in those of them that the model made. error: frames by which the ball is early or late; nan if
    too little is seen.
    """

    clip: int
    lowered: int
    hidden: int
    judged: int
    colour: int
    label: int
    pings: int
    error: float
    counts: tuple[int, int, int, int]
    chance_errors: list[float]
    chance_counts: list[tuple[int, int, int, int]]


def held_out() -> list[BallClip]:
    """The clips that films begin with."""
    return [draw_clip(0, TEST_START + i) for i in range(CLIPS)]


def truth(clip: BallClip, length: int) -> Truth:
    """The clip without curtain, a period longer than a film of `length`: a late ball may be ahead of the end."""
    from data.synthetic import ball_height, render

    frames = render(clip, length + math.ceil(clip.period)).numpy()
    return Truth(clip, frames, ball_height(frames), clip.bounce_times(len(frames)))


def cover(task: Task, index: int, frames: int) -> tuple[NDArray, NDArray]:
    """Which frames of training clip `index` are hidden, and which silent: bool (frames,) each."""
    shortest, longest = (sum(stretch.lengths[end] for stretch in task.stretches) for end in (0, 1))
    rng, count = np.random.default_rng([1, index]), frames // shortest + 4
    lengths = [rng.integers(*stretch.lengths, size=count, endpoint=True) for stretch in task.stretches]
    kinds = np.repeat(np.arange(count * len(lengths)) % len(lengths), np.stack(lengths, 1).ravel())
    start = rng.integers(longest)
    covered = np.array([(stretch.hidden, stretch.silent) for stretch in task.stretches])
    return tuple(covered[kinds[start : start + frames]].T)


def covered(task: Task, lowered: int) -> tuple[NDArray, NDArray]:
    """As `cover`, of the beginning of a film that is hidden and silent for so many frames after those of its past."""
    silent = np.arange(task.past + lowered) >= task.past
    return silent | (not task.seen), silent


def told(task: Task, clip: BallClip) -> int:
    """The frame from which on nothing tells the ball: after the last that shows it, or the last in which it pings."""
    return task.past if task.seen else 1 + int(clip.bounce_times(task.past)[-1])


def hide(frames, wave, hidden: NDArray, silent: NDArray) -> tuple:
    """Lower the curtain over the `hidden` (T,) of frames uint8 (T,64,64,3); no sound in the `silent` of wave (N,)."""
    import torch

    frames, wave = frames.clone(), wave.clone()
    frames[torch.from_numpy(hidden)] = CURTAIN
    wave.view(len(frames), -1)[torch.from_numpy(silent)] = 0
    return frames, wave


def write_hidden(path: Path, clip: BallClip, hidden: NDArray, silent: NDArray) -> None:
    """Write the clip with a curtain over some frames, and others silent, as mp4, unless it is there."""
    from data.av import Writer
    from data.synthetic import render, sound

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.mp4")  # a run may be broken off
        with Writer(part, SIZE, SIZE, FPS, RATE, wav=False) as writer:
            writer.write(*hide(render(clip, len(hidden)), sound(clip, len(hidden), RATE), hidden, silent))
        part.replace(path)


def write_training_set(folder: Path, task: Task) -> None:
    """Clips behind curtains, without class folders: nothing but what is seen and heard can tell the colour."""
    for i in range(TRAIN):
        write_hidden(folder / f"ball_{i:05d}.mp4", draw_clip(0, i), *cover(task, i, FRAMES))


def write_given(folder: Path, task: Task, clips: Sequence[BallClip]) -> None:
    """For each of LENGTHS the beginnings of films of all clips: given_HH_CCCCC.mp4."""
    for lowered in LENGTHS:
        for i, clip in enumerate(clips):
            write_hidden(folder / f"given_{lowered:02d}_{i:05d}.mp4", clip, *covered(task, lowered))


def real_films(folder: Path, task: Task, clips: Sequence[BallClip]) -> list[Shown]:
    """What a perfect model would make: the clips go on behind a curtain that rises at the end of each of LENGTHS."""
    films = []
    for i, clip in enumerate(clips):
        lowered, path = LENGTHS[i % len(LENGTHS)], folder / f"real_{i:05d}.mp4"
        open_again = np.zeros(task.length - task.past - lowered, bool)
        write_hidden(path, clip, *(np.append(x, open_again) for x in covered(task, lowered)))
        films.append(shown(path, task, clip, i, lowered))
    return films


def shown(path: Path, task: Task, clip: BallClip, place: int, lowered: int) -> Shown:
    """A film from its file."""
    from data.av import read_audio, read_frames

    frames, wave = read_frames(path, 0, task.length, FPS), read_audio(path, 0, task.length * RATE // FPS)
    return Shown(place, task.past + lowered, told(task, clip), frames.numpy(), wave.numpy())


def leak(folder: Path, task: Task, window: int) -> dict:
    """What the file still shows and sounds like when the whole window is behind the curtain: nothing may tell the ball.

    Largest difference to the curtain in grey levels, share of numbers that differ by more than one, and largest
    sample, over the last frames of the longest, as many as a window has.
    """
    from data.av import read_audio, read_frames

    first, paths = task.past + max(LENGTHS) - window, sorted(folder.glob(f"given_{max(LENGTHS):02d}_*.mp4"))
    off = np.abs(np.stack([read_frames(path, first, window, FPS).int() - CURTAIN for path in paths]))
    waves = [read_audio(path, first * RATE // FPS, window * RATE // FPS) for path in paths]
    loudest = max(float(wave.abs().max()) for wave in waves)
    return {"grey_levels": int(off.max()), "share_over_one": float((off > 1).mean()), "sample": loudest}


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
    return Return(film.clip, film.given, first - film.told, first, stop, colour, bounces, ball_height(seen))


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


def pings_behind(film: Shown, back: Return, threshold: float) -> int:
    """Pings in the frames that the model made before the curtain rose: it may tell itself what it heard."""
    from data.synthetic import detect_pings

    made = film.wave[film.given * RATE // FPS : back.first * RATE // FPS]
    return len(detect_pings(made, RATE, FPS, threshold)) if len(made) else 0


def score(film: Shown, task: Task, truths: Sequence[Truth], threshold: float) -> Score | None:
    """Hold a ball that came back against what it should be; None if it never did.

    threshold: loudness of a ping, from `data.synthetic.calibrate`.
    """
    if (back := find_return(film)) is None:
        return None
    own, others = truths[back.clip], [truths[(back.clip + places) % len(truths)] for places in ROTATIONS]
    place = (back.clip, back.given - task.past, back.hidden, back.stop - back.first)
    counts, chance = bounce_counts(back, own), [bounce_counts(back, other) for other in others]
    return Score(*place, back.colour, own.clip.label, pings_behind(film, back, threshold), bounce_error(back, own),
                 counts, [bounce_error(back, other) for other in others], chance)  # fmt: skip


def scores(films: Sequence[Shown], task: Task, truths: Sequence[Truth]) -> list[Score]:
    """Of those films in which the curtain rises."""
    from data.synthetic import calibrate, sound

    threshold = calibrate(sound(one.clip, task.length, RATE) for one in truths)
    return [found for film in films if (found := score(film, task, truths, threshold))]


def summary(found: Sequence[Score]) -> dict:
    """Figures of all films, of each group by the frames hidden, and of each length given."""
    hidden = {named(*ends): [s for s in found if within(s.hidden, *ends)] for ends in GROUPS}
    lowered = {str(h): [s for s in found if s.lowered == h] for h in LENGTHS}
    parts = {"hidden": hidden, "given": lowered}
    return {"all": figures(found)} | {
        name: {key: figures(group) for key, group in part.items()} for name, part in parts.items()
    }


def within(hidden: int, low: int, high: int | None) -> bool:
    return low <= hidden and (high is None or hidden <= high)


def named(low: int, high: int | None) -> str:
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"


def figures(found: Sequence[Score]) -> dict | None:
    """What is kept of colour and phase, each with its interval and with chance; None for fewer than 2 films."""
    if len(found) < 2:
        return None
    return {
        "clips": len(found),
        "mean_hidden": float(np.mean([s.hidden for s in found])),
        "mean_judged": float(np.mean([s.judged for s in found])),
        "without_ball": sum(s.colour < 0 for s in found),
        "with_pings": sum(s.pings > 0 for s in found),
        "colour": colour_kept(found),
        "f1": bounces_kept(found),
        "error": mean_error(found),
    }


def colour_kept(found: Sequence[Score]) -> dict:
    """Share of films that have their ball's colour."""
    from metrics.intervals import bootstrap

    colours, right = np.array([(s.colour, s.label) for s in found]).T
    chance = float(np.equal.outer(colours, right).mean())
    return {"value": float((colours == right).mean()), "interval": bootstrap(colours == right), "chance": chance}


def bounces_kept(found: Sequence[Score]) -> dict:
    """F1 of the bounces seen, over `events` true ones."""
    from metrics.sync import bootstrap_f1, f1

    counts, chance = [s.counts for s in found], [c for s in found for c in s.chance_counts]
    events = sum(EventCounts(*c).a for c in counts)
    return {"value": f1(counts), "interval": bootstrap_f1(counts), "chance": f1(chance), "events": events}


def mean_error(found: Sequence[Score]) -> dict | None:
    """Mean error in frames over the `clips` that show enough, beside that of chance; None for fewer than 2."""
    from metrics.intervals import bootstrap

    enough = [s for s in found if np.isfinite([s.error, *s.chance_errors]).all()]
    if len(enough) < 2:
        return None
    errors, chance = np.array([s.error for s in enough]), np.array([s.chance_errors for s in enough]).mean(1)
    return {"value": errors.mean(), "interval": bootstrap(errors), "chance": chance.mean(),
            "chance_interval": bootstrap(chance), "clips": len(enough)}  # fmt: skip
