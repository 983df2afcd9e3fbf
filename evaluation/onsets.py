"""Onset accuracy: whether a generated sound begins anew where the real sound of the same video does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from evaluation.pairs import Pairs, Sounding, partners
from evaluation.setting import LEVEL, Figure, Result, Setting
from metrics.align import against_chance, audio_onsets
from metrics.intervals import bootstrap
from metrics.sync import most_pairs

RATE = 16000  # Hz
VERSION = "onsets-1"  # of what is kept in the cache
ROTATIONS = (1, 3, 5)  # places to the videos whose sounds tell what chance gives
RULE = (
    f"librosa onsets at {RATE} Hz of a generated sound and of the real one, both as long as the shorter; share of the "
    "real onsets that have a generated one, one to one, as many pairs as there can be, at most {:g} s apart; mean over "
    "videos whose real sound has onsets; chance: the real sounds of other videos; {}"
)


def onset_accuracy(setting: Setting) -> Result:
    """Share of real onsets that a generated sound hits: n_right / n_real of a video, and the mean over videos.

    It is a recall, as of the Foley models whose tables have it, so a sound of onsets everywhere hits all: the share of
    generated onsets that are right, and what chance gives, stand beside it. Of silence it is 0; a video whose real
    sound has no onset asks for none and is left out, and 0 is the figure where all are such.
    """
    found = partners(setting.fake, setting.real, setting.num)
    fake, real = _onsets(setting, found)
    asked = [i for i, onsets in enumerate(real) if len(onsets)]
    fake, real = ([side[i] for i in asked] for side in (fake, real))
    hits = [most_pairs(*pair, setting.onset_tolerance) for pair in zip(real, fake)]
    scores, made = [hit / len(onsets) for hit, onsets in zip(hits, real)], sum(map(len, fake))
    chance, low, high = None, None, None
    if len(scores) > 1:
        rotations = [places for places in ROTATIONS if places < len(scores)]
        chance = against_chance(partial(hit_share, tolerance=setting.onset_tolerance), fake, real, rotations).shuffled
        low, high = bootstrap(scores, seed=setting.seed)
    right = sum(hits) / made if made else 0.0
    noted = [
        "" if chance is None else f"chance {chance:.3g}",
        f"{right:.3g} of generated onsets right",
        "" if len(scores) == found.of else f"{len(scores)} of {found.of} videos",
    ]
    figure = Figure(
        f"onset-acc@{setting.onset_tolerance:g}s", float(np.mean(scores)) if scores else 0.0,
        RULE.format(setting.onset_tolerance, found), len(scores), len(scores), low, high,
        f"{LEVEL} bootstrap over videos", reference=1.0, reference_is="equal sounds",
        note=", ".join(filter(None, noted)),
    )  # fmt: skip
    videos = [str(found.videos[i].path) for i in asked]
    each = [{"video": v, "real": len(r), "generated": len(f), "right": hit}
            for v, r, f, hit in zip(videos, real, fake, hits)]  # fmt: skip
    return Result([figure], {}, {figure.name: {"pairs": each, "chance": chance, "right": right}})


def hit_share(made: NDArray, asked: NDArray, tolerance: float) -> float:
    """Share of the onsets asked for, at least one, that those made hit; times in s."""
    return most_pairs(asked, made, tolerance) / len(asked)


def _onsets(setting: Setting, found: Pairs) -> tuple[list[NDArray], list[NDArray]]:
    """Onsets in s of the generated and of the real sounds, each pair cut to the shorter, computed once per content."""
    frames = [min(fake.frames, real.frames) for fake, real in zip(found.videos, found.others)]
    sides = [list(map(Sounding, videos, frames)) for videos in (found.videos, found.others)]
    kept = (setting.shared("onsets", VERSION, sounds, [sound.key for sound in sounds], _hear) for sounds in sides)
    return tuple([heard["onsets"] for heard in each] for each in kept)


def _hear(sounds: list[Sounding]) -> Iterator[tuple[Sounding, dict[str, NDArray]]]:
    for sound in sounds:
        yield sound, {"onsets": audio_onsets(sound.sound(RATE).numpy(), RATE)}
