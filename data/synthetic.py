"""Bouncing balls with a ping at each bounce: clips whose sound and picture belong together, and detectors for both.

    python -m data.synthetic ROOT --train 256 --test 96 --seed 0
    python -m data.synthetic ROOT --motion balloon
    python -m data.synthetic ROOT --captions

A balloon, to fine-tune on, is a ball that falls upwards: it pings at the top, where a bouncing ball is silent.

The detectors know this scene and nothing else; their thresholds are fixed on real clips, then used on generated ones.
Times of events are in frames from the start of the clip: frame k shows the time k + 0.5.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # torch loads where tensors are made: --help must be instant
    from torch import Tensor

FPS = 10
SIZE = 64  # px, height and width
FLOOR = 60  # row of pictures from which on it is floor
EMPTY = np.where(np.arange(SIZE) < FLOOR, 24, 70).astype(np.int32)[:, None, None]  # (64,1,1) grey levels
RADIUS, COLUMN, LOWEST_ROW = 8, 32, 52  # px; at row 52 the ball touches the floor
GRAVITY = 8 * 40 / 12**2  # px per frame^2, of all balls
FALLS_UP = {"bounce": False, "balloon": True}  # by motion
PEAK, ATTACK, DECAY, FADE, END = 0.95, 0.002, 0.06, 0.3, 0.4  # of a ping: amplitude, then seconds
PHRASINGS = {  # of captions, by motion and split: those of the test set say the same in words not met so in training
    "bounce": {
        "train": (
            "a {colour} ball bounces on the floor",
            "a bouncing {colour} ball, with a ping at every bounce",
            "the ball is {colour} and jumps up and down",
            "{colour} ball hitting the ground again and again",
        ),
        "test": ("watch a {colour} ball bounce", "here is one ball, a {colour} one, jumping on the ground"),
    },
    "balloon": {
        "train": (
            "a {colour} balloon bounces off the ceiling",
            "a rising {colour} balloon, with a ping at the top",
            "the balloon is {colour} and floats up again and again",
            "{colour} balloon hitting the ceiling",
        ),
        "test": ("watch a {colour} balloon rise", "here is one balloon, a {colour} one, at the ceiling"),
    },
}
TEST_START = 2**32  # index of the first test clip: training sets of any size hold other clips


@dataclass(frozen=True)
class Ball:
    """What the clips of one class have in common."""

    name: str
    colour: tuple[int, int, int]  # RGB
    period: float  # frames from bounce to bounce, before each clip's own U(0.97, 1.03)
    pitch: float  # Hz


# The label is the position: alphabetical, so that it is also the label that a folder of these classes gives.
BALLS = (
    Ball("blue", (60, 110, 245), period=11, pitch=1760),
    Ball("green", (60, 205, 90), period=9, pitch=880),
    Ball("red", (240, 65, 60), period=7, pitch=440),
)


@dataclass(frozen=True)
class BallClip:
    """One clip, without beginning or end: the ball bounces at every time (j - phase) * period, j any integer."""

    label: int  # position in BALLS
    period: float  # frames
    phase: float  # in [0, 1), of the bounce at time 0
    motion: str = "bounce"  # a key of FALLS_UP; a balloon's bounces are off a ceiling

    @property
    def ball(self) -> Ball:
        return BALLS[self.label]

    def phase_at(self, time: NDArray) -> NDArray:
        """Phase in [0, 1) at `time` (frames): 0 at a bounce, 0.5 halfway to the next."""
        return (time / self.period + self.phase) % 1

    def height_at(self, time: NDArray) -> NDArray:
        """Height above the floor in px at `time` (frames). A balloon's ceiling is as high as its ball would bounce.

        So both are shown by the same pictures in another order, which a model tuned in a few of its weights can draw.
        """
        s, top = self.phase_at(time), _top(self.period)
        away = 4 * top * s * (1 - s)  # from where it bounces
        return top - away if FALLS_UP[self.motion] else away

    def bounce_times(self, frames: int) -> NDArray:
        """The exact bounces of the clip's first `frames` frames, in frames, rising, in [0, frames)."""
        j = np.arange(np.ceil(self.phase), np.ceil(frames / self.period + self.phase))
        return (j - self.phase) * self.period


def draw_clip(seed: int, index: int, motion: str = "bounce") -> BallClip:
    """Clip `index` of the endless data set `seed`: a pure function of both (any integers), classes in turn."""
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, index % 2**64]))
    label = index % len(BALLS)
    return BallClip(label, period=BALLS[label].period * rng.uniform(0.97, 1.03), phase=rng.uniform(), motion=motion)


def render(clip: BallClip, frames: int) -> Tensor:
    """Draw the first `frames` frames: uint8 (T,64,64,3), a ball with an antialiased edge under constant gravity."""
    import torch

    row = LOWEST_ROW - clip.height_at(np.arange(frames) + 0.5)  # (T,)
    y, x = np.ogrid[:SIZE, :SIZE]
    distance = np.hypot(y - row[:, None, None], x - COLUMN)  # (T,64,64)
    cover = np.clip(RADIUS + 0.5 - distance, 0, 1)[..., None]
    picture = cover * np.array(clip.ball.colour) + (1 - cover) * EMPTY  # (T,64,64,3)
    return torch.from_numpy(picture.round().astype(np.uint8))


def sound(clip: BallClip, frames: int, sample_rate: int = 16000) -> Tensor:
    """The pings of the first `frames` frames: float32 (N,), N = frames * sample_rate / 10, peak 0.95.

    A ping (0.4 s) ends before the next begins, so each sample follows from the time since the last bounce, which may
    lie before the clip.
    """
    import torch

    time = np.arange(frames * sample_rate // FPS) * (FPS / sample_rate)  # (N,) frames
    since = clip.phase_at(time) * clip.period / FPS  # seconds
    gain = PEAK / np.abs(_ping(np.linspace(0, 0.01, 10001), clip.ball.pitch)).max()
    return torch.from_numpy((gain * _ping(since, clip.ball.pitch)).astype(np.float32))


def captions_of(ball: Ball, split: str, motion: str = "bounce") -> list[str]:
    """All captions of a class's clips in a split, "train" or "test"."""
    return [phrasing.format(colour=ball.name) for phrasing in PHRASINGS[motion][split]]


def write_dataset(
    root: Path,
    train: int = 256,
    test: int = 96,
    frames: int = 32,
    seed: int = 0,
    motion: str = "bounce",
    captions: bool = False,
) -> None:
    """Write ROOT/{train,test}/{blue,green,red}/ball_00000.mp4 ...; clips that are there already are left as they are.

    Args:
        train, test: number of clips; test clips are others than training clips, whatever the numbers.
        frames: length of each clip, 10 a second.
        seed: of the clips; it is kept in ROOT/synthetic.json, so that one folder never mixes two data sets.
        motion: of all clips, a key of FALLS_UP; kept likewise. The class names say nothing of it.
        captions: write ROOT/SPLIT/metadata.jsonl, too.
    Raises:
        ValueError: ROOT holds clips of another seed, length or motion, or clips would have no frame.
    """
    if frames < 1:
        raise ValueError(f"clips of {frames} frames cannot be written; give at least 1")
    _claim(Path(root), {"seed": seed, "frames": frames, "motion": motion})
    for split, start, count in (("train", 0, train), ("test", TEST_START, test)):
        for i in range(count):
            _write(draw_clip(seed, start + i, motion), frames, Path(root) / split, f"ball_{i:05d}.mp4")
        if captions and count:
            _write_captions(Path(root), split, [draw_clip(seed, start + i, motion) for i in range(count)])


def ball_height(frames: ArrayLike) -> NDArray:
    """Height of the ball above the floor in pixels, (T,), from uint8 frames (T,64,64,3).

    It is the centroid row of what differs from the empty scene. Frames without a ball are interpolated from their
    neighbours; a clip without any is nan throughout.
    """
    weight = _light(_foreground(frames))  # (T,H,W)
    mass = weight.sum((1, 2))
    seen = mass > 0
    if not seen.any():
        return np.full(len(mass), np.nan)
    row = weight.sum(2)[seen] @ np.arange(weight.shape[1]) / mass[seen]
    return LOWEST_ROW - np.interp(np.arange(len(mass)), np.flatnonzero(seen), row)


def ball_class(frames: ArrayLike) -> NDArray:
    """Label of the ball's dominant colour in each of the uint8 frames (T,64,64,3): int (T,), -1 where there is none."""
    light = _foreground(frames).sum((1, 2))  # (T,3)
    of_channel = np.argmax([ball.colour for ball in BALLS], axis=0)  # (3,) label of the ball strongest in R, G, B
    return np.where(light.any(-1), of_channel[light.argmax(-1)], -1)


def detect_bounces(frames: ArrayLike, motion: str = "bounce") -> NDArray:
    """Times (frames, rising) at which the ball of uint8 frames (T,64,64,3) turns from falling to rising.

    A balloon turns from rising to falling. Each time is the middle k + 0.5 of the frame where the ball is lowest (a
    balloon: highest), so at most half a frame off. The first and the last frame cannot be told to be that and hold no
    event.
    """
    from scipy.signal import find_peaks

    height = ball_height(frames)
    turns, _ = find_peaks(height if FALLS_UP[motion] else -height, prominence=5, distance=3)  # px, frames
    return turns + 0.5


def calibrate(waves: Iterable[ArrayLike], sample_rate: int = 16000) -> float:
    """Loudness at which `detect_pings` begins to hear: 0.1 of the mean ping of real clips (median over clips).

    Raises:
        ValueError: there is no sound in any of the waves.
    """
    loudness = (_loudness(wave, sample_rate) for wave in waves)
    pings = [curve[_peaks(curve, sample_rate, curve.max() / 2)].mean() for curve in loudness if curve.any()]
    if not pings:
        raise ValueError("no wave to calibrate on has any sound; give the waves of real clips")
    return 0.1 * float(np.median(pings))


def detect_pings(wave: ArrayLike, sample_rate: int, fps: float, height: float) -> NDArray:
    """Times (frames, rising) at which the pings of a wave (N,) begin, at least 0.3 s apart.

    Args:
        height: loudness above which a ping counts, from `calibrate`.
    """
    struck = _peaks(_loudness(wave, sample_rate), sample_rate, height)
    return (struck * _hop(sample_rate) / sample_rate - ATTACK) * fps


def _top(period: float) -> float:
    """Height in px that a ball reaches which bounces every `period` frames: gravity is the same for all."""
    return 40 * (period / 12) ** 2


def _ping(since: NDArray, pitch: float) -> NDArray:
    """A decaying sine of `pitch` Hz, `since` seconds after it was struck; before normalisation."""
    envelope = np.minimum(since / ATTACK, 1) * np.exp(-since / DECAY) * np.clip((END - since) / (END - FADE), 0, 1)
    return envelope * np.sin(2 * np.pi * pitch * since)


def _foreground(frames: ArrayLike) -> NDArray:
    """What differs from the empty scene: (T,H,W,3), zero in weak pixels (codec noise) and in frames without a ball."""
    if np.shape(frames)[1:] != (SIZE, SIZE, 3):
        raise ValueError(
            f"frames have shape {tuple(np.shape(frames))}, expected (T,{SIZE},{SIZE},3): "
            f"the detectors know this scene at this size only"
        )
    difference = np.abs(np.asarray(frames).astype(np.int32) - EMPTY)
    difference *= (_light(difference) >= 90)[..., None]
    return difference * (difference.sum((1, 2, 3), keepdims=True) >= 1800)


def _light(difference: NDArray) -> NDArray:
    """(...,3) -> (...): the sum of the channels, several times as fast as along an axis of 3."""
    red, green, blue = np.moveaxis(difference, -1, 0)
    return red + green + blue


def _hop(sample_rate: int) -> int:
    """Samples in a millisecond, the step in which pings are searched."""
    return round(sample_rate / 1000)


def _loudness(wave: ArrayLike, sample_rate: int) -> NDArray:
    """Rms of the 10 ms that FOLLOW each millisecond of a wave: it is highest right after the attack of a ping."""
    wave, hop = np.asarray(wave, dtype=np.float64), _hop(sample_rate)
    energy = np.add.reduceat(wave**2, np.arange(0, len(wave), hop))
    following = np.convolve(energy, np.ones(10))[9:]
    return np.sqrt(following / (10 * hop))


def _peaks(curve: NDArray, sample_rate: int, height: float) -> NDArray:
    """Positions in a loudness curve of the peaks above `height`, at least 0.3 s apart."""
    from scipy.signal import find_peaks

    distance = 0.3 * sample_rate / _hop(sample_rate)
    return find_peaks(curve, height=height, prominence=height, distance=distance)[0]


def _claim(root: Path, facts: dict) -> None:
    """Store the facts of a data set in its root, or check that they are the stored ones."""
    path = root / "synthetic.json"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(facts))
        part.replace(path)
    elif (found := {"motion": "bounce", **json.loads(path.read_text())}) != facts:  # older folders do not say it
        raise ValueError(f"{root} holds clips of {found}, not {facts}; choose another folder or remove this one")


def _write(clip: BallClip, frames: int, folder: Path, name: str) -> None:
    """Write one clip into the folder of its class, unless it is there."""
    from data.av import Writer

    path = folder / clip.ball.name / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with Writer(path, SIZE, SIZE, FPS, sample_rate=16000, wav=False) as writer:
            writer.write(render(clip, frames), sound(clip, frames))


def _write_captions(root: Path, split: str, clips: list[BallClip]) -> None:
    """metadata.jsonl with all captions of each clip."""
    rows = [{"file_name": f"{clip.ball.name}/ball_{i:05d}.mp4", "captions": captions_of(clip.ball, split, clip.motion)}
            for i, clip in enumerate(clips)]  # fmt: skip
    part = root / split / f".metadata.jsonl.{os.getpid()}.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.replace(root / split / "metadata.jsonl")


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="python -m data.synthetic",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("root", type=Path, help="folder that gets train/CLASS/ball_00000.mp4 ... and test/CLASS/...")
    p.add_argument("--train", type=int, default=256, help="number of training clips")
    p.add_argument("--test", type=int, default=96, help="number of test clips")
    p.add_argument("--frames", type=int, default=32, help="length of each clip in frames, 10 a second")
    p.add_argument("--seed", type=int, default=0, help="seed of the clips")
    p.add_argument("--motion", choices=FALLS_UP, default="bounce", help="a balloon falls up, and pings at the top")
    p.add_argument("--captions", action="store_true", help="write what each clip shows, in several phrasings")
    args = p.parse_args(argv)
    try:
        write_dataset(**vars(args))
    except (OSError, ValueError) as error:
        p.error(str(error))
    print(f"{args.root}: {args.train} training and {args.test} test clips of {args.frames} frames")


if __name__ == "__main__":
    main()
