"""What films of balls are worth: events, onsets, AV-Align, and whether the ball falls as balls do."""

import json
from pathlib import Path
from typing import NamedTuple

from benchmarks.events import RATE, look, score

TOLERANCE = 0.1  # s, of onset accuracy
MOVING = ("joint", "a2v")  # tasks whose pictures are made


class Film(NamedTuple):
    """Frames uint8 (T,64,64,3) and wave (N,) of a film; where a side was given, the true wave of its input."""

    frames: object
    wave: object
    true: object = None


def films_in(folder: Path, frames: int) -> list[Film]:
    """The films that a script made, in the order of their numbers, with the sounds of the inputs they were made for."""
    from data.av import read_audio
    from data.synthetic import FPS

    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    inputs = [record.get("input") for record in sorted(records, key=lambda record: record["file"])]
    true = [read_audio(Path(path), 0, frames * RATE // FPS) if path else None for path in inputs]
    return [Film(*film, wave) for film, wave in zip(look(folder, frames), true, strict=True)]


def judged(task: str, films: list[Film], real: list[tuple]) -> dict:
    """Figures of a task's films: as `events.score`, with onsets, AV-Align and, of pictures that were made, motion.

    Args:
        task: joint, a2v or v2a. real: (frames, wave) of real clips, which fix the detectors' threshold.
    """
    shown = [(film.frames, film.wave) for film in films]
    found = {**score(shown, real), "onsets": onsets(task, films, real), "av_align": align(shown)}
    return {**found, "motion": motion(shown)} if task in MOVING else found


def onsets(task: str, films: list[Film], real: list[tuple]) -> dict:
    """Onset accuracy: the share of true onsets that have a made one within 0.1 s, and its mean over films.

    In V2A true are the pings of the input's own sound; in A2V those of the given sound, and made are the bounces of the
    picture. Where both sides are made, bounces ask and pings answer. Films without a true onset are left out.
    """
    from data.synthetic import FPS, calibrate, detect_bounces, detect_pings

    height = calibrate(wave for _, wave in real)

    def pings(wave):
        return detect_pings(wave, RATE, FPS, height)

    pairs = {
        "joint": lambda film: (detect_bounces(film.frames), pings(film.wave)),
        "a2v": lambda film: (pings(film.true), detect_bounces(film.frames)),
        "v2a": lambda film: (pings(film.true), pings(film.wave)),
    }[task]
    return hit([tuple(times / FPS for times in pairs(film)) for film in films], TOLERANCE)


def hit(pairs: list[tuple], tolerance: float) -> dict:
    """Mean share of the true onsets (first of each pair) that made ones hit, with its interval; 0 where there are none.

    Times and tolerance in s.
    """
    import numpy as np

    from evaluation.onsets import hit_share
    from metrics.intervals import bootstrap

    shares = [hit_share(made, true, tolerance) for true, made in pairs if len(true)]
    interval = tuple(bootstrap(shares)) if len(shares) > 1 else None
    return {"accuracy": float(np.mean(shares)) if shares else 0.0, "interval": interval, "films": len(shares)}


def align(films: list[tuple]) -> dict:
    """AV-Align of onsets against optical flow, the mean over films; "shuffled" with the sounds of other films."""
    from data.synthetic import FPS
    from metrics.align import against_chance, audio_onsets, av_align, motion, motion_peaks

    seen = [motion_peaks(motion(frames.numpy()), FPS) for frames, _ in films]
    heard = [audio_onsets(wave.numpy(), RATE) for _, wave in films]
    chance = against_chance(lambda v, a: av_align(a, v, FPS), seen, heard)
    return {"mean": chance.mean, "shuffled": chance.shuffled, "over_chance": (chance.low, chance.high)}


def motion(films: list[tuple]) -> dict:
    """Error of the ball's free flight, px per frame^2."""
    from data.synthetic import GRAVITY, ball_height
    from metrics.motion import motion_error

    return motion_error([ball_height(frames) for frames, _ in films], GRAVITY)._asdict()
