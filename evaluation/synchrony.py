"""Synchrony of two folders of videos: AV-Align, onsets and lag, each against the same picture with other sounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from data.av import iter_frames, read_audio
from evaluation.setting import LEVEL, Figure, Result, Setting
from evaluation.videos import FPS, Folder, Video
from metrics.align import (
    against_chance,
    audio_onsets,
    av_align,
    lag,
    matched_iou,
    motion,
    motion_peaks,
    onset_scores,
)
from metrics.intervals import bootstrap

RATE = 16000  # Hz
MOST = 240  # frames of a video that are looked at
ENVELOPE = 1000  # Hz, of the loudness that ranks onsets
FEWEST = 6  # videos; with fewer there is nothing to shuffle
VERSION = "sync-1"  # of what is kept in the cache
WHAT = (
    f"the first {MOST} frames at {FPS} fps; picture events: maxima of Farneback optical flow above its mean; sound "
    f"events: librosa onsets at {RATE} Hz"
)
SCORES = {
    "AV-Align": (f"{WHAT}; the published rule, one frame apart at most, can exceed 1", "iou"),
    "matched IoU": (f"{WHAT}; one to one, one frame apart at most", "matched"),
    "onset accuracy": (f"{WHAT}; share of picture events with an onset within 0.1 s", "accuracy"),
    "onset AP": (f"{WHAT}; average precision of onsets against picture events, 0.1 s, ranked by loudness", "ap"),
}


def sync(setting: Setting) -> Result:
    """Four scores of events against chance, and the lag at which motion and loudness agree best.

    Real videos are beside it, where they have sound.
    """
    sides = {name: _events(setting, folder) for name, folder in _sides(setting)}
    figures, data = [], {}
    for name, (protocol, key) in SCORES.items():
        chances = {side: _against_chance(events, key) for side, events in sides.items()}
        fake, real = chances["fake"], chances.get("real")
        figures.append(Figure(
            f"{name} over chance", fake.difference, f"{protocol}; minus the same with the sounds of other videos",
            len(sides["fake"]), len(sides.get("real", ())), fake.low, fake.high, f"{LEVEL} bootstrap over videos",
            real and real.difference, "real videos" if real else "",
            f"{name} {fake.mean:.3f}, chance {fake.shuffled:.3f}, z {fake.z:.1f}",
        ))  # fmt: skip
        data[name] = {side: {**chance._asdict(), "z": chance.z} for side, chance in chances.items()}
    figures += [_mean_figure(sides, name, key) for name, key in (("lag (frames)", "lag"), ("lag peak", "peak"))]
    return Result(figures, {}, {"sync": data})


def enough_videos(setting: Setting) -> None:
    """Refuse sides whose sounds cannot be shuffled.

    Raises:
        ValueError: a side has fewer than 6 videos.
    """
    for _, folder in _sides(setting):
        if (found := len(folder.choose(setting.num))) < FEWEST:
            raise ValueError(f"{folder.path} gives {found} videos, and sync shuffles at least {FEWEST}; give more")


def _sides(setting: Setting) -> list[tuple[str, Folder]]:
    return [("fake", setting.fake), *([("real", setting.real)] if setting.real.sounds else [])]


def _events(setting: Setting, folder: Folder) -> list[dict[str, np.ndarray]]:
    """Events of each video of a folder, computed once per content and shared among processes."""
    videos = folder.choose(setting.num)
    return setting.shared("sync", VERSION, videos, [video.sha256 for video in videos], _look)


def _look(videos: list[Video]) -> Iterator[tuple[Video, dict[str, np.ndarray]]]:
    """(video, its events): picture and sound events in s, loudness at 1 kHz, lag and its correlation."""
    for video in videos:
        frames = min(video.frames, MOST)
        wave = read_audio(video.path, 0, frames * RATE // FPS, RATE).numpy()
        moved = motion(frame.numpy() for frame in iter_frames(video.path, FPS, 0, frames))
        late, peak = lag(moved, wave, RATE, FPS)
        loudness = np.abs(wave).reshape(-1, RATE // ENVELOPE).max(1)
        yield (
            video,
            {
                "seen": motion_peaks(moved, FPS),
                "heard": audio_onsets(wave, RATE),
                "loudness": loudness.astype(np.float16),
                "lag": np.array(late),
                "peak": np.array(peak),
            },
        )


def _against_chance(events: list[dict[str, np.ndarray]], key: str):
    return against_chance(partial(_score, key), events, events)


def _score(key: str, picture: dict[str, np.ndarray], sound: dict[str, np.ndarray]) -> float:
    """One score of the picture of one video with the sound of another."""
    if key == "iou":
        return av_align(sound["heard"], picture["seen"], FPS)
    if key == "matched":
        return matched_iou(sound["heard"], picture["seen"], FPS)
    loudness = sound["loudness"].astype(float)
    seen, heard = ((times * ENVELOPE).round().astype(int) for times in (picture["seen"], sound["heard"]))
    return getattr(onset_scores(seen, heard.clip(max=len(loudness) - 1), loudness, ENVELOPE), key)


def _mean_figure(sides: dict[str, list[dict[str, np.ndarray]]], name: str, key: str) -> Figure:
    """Mean over the videos in which something moves and sounds."""
    lively = {side: [e for e in events if np.isfinite(e["lag"])] for side, events in sides.items()}
    fake, real = (np.array([float(e[key]) for e in lively.get(side, ())]) for side in ("fake", "real"))
    low, high = bootstrap(fake) if len(fake) > 1 else (None, None)
    return Figure(
        name=name,
        value=float(fake.mean()) if len(fake) else math.nan,
        protocol=f"{WHAT.split(';')[0]}; cross-correlation of motion and loudness, 10 frames either way; positive: the "
        "sound is late",
        fake=len(fake), real=len(real), low=low, high=high, interval=f"{LEVEL} bootstrap over videos",
        reference=float(real.mean()) if len(real) else None, reference_is="real videos" if len(real) else "",
    )  # fmt: skip
