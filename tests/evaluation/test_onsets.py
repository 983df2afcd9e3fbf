"""Onset accuracy on sounds whose answer is known: the same, late, silent, busy."""

import functools
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.av import write_clip
from evaluation.measures import measures
from evaluation.setting import Setting
from evaluation.videos import find_videos

ALONE = SimpleNamespace(process_index=0, num_processes=1, wait_for_everyone=lambda: None)
RATE, FILMS, FRAMES = 16000, 6, 40
looked = functools.cache(find_videos)  # a folder here is written once


def strikes(times):
    """Bursts of noise that decay in a few hundredths of a second, 4 s in all."""
    wave, rng = torch.zeros(FRAMES * RATE // 10), torch.Generator().manual_seed(0)
    for time in times:
        at = round(time * RATE)
        burst = 0.5 * torch.randn(RATE // 4, generator=rng) * torch.exp(-torch.arange(RATE // 4) / 400)
        wave[at : at + RATE // 4] += burst[: len(wave) - at]
    return wave.clamp(-1, 1)


def times(i):
    """Three strikes of film i, over half a second apart and from those of any other."""
    return [0.3 + 0.11 * i, 1.5 + 0.07 * i, 2.8 + 0.09 * i]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    kinds = {
        "real": times, "late": lambda i: np.add(times(i), 0.5), "near": lambda i: np.add(times(i), 0.06),
        "silent": lambda i: [], "half": lambda i: times(i)[:2], "busy": lambda i: np.arange(0.1, 3.9, 0.15),
        "some": lambda i: times(i) if i % 2 else [],
    }  # fmt: skip
    for name, of in kinds.items():
        (root / name).mkdir()
        for i in range(FILMS):
            write_clip(
                root / name / f"{i}.mp4", torch.full((FRAMES, 16, 16, 3), 20 * i, dtype=torch.uint8), strikes(of(i))
            )
    return root


@pytest.fixture(scope="module")
def accuracy(root, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def of(fake, real="real", tolerance=0.1):
        folders = [looked(root / name, "test", True) for name in (fake, real)]
        where = Setting(*folders, None, 100, {}, cache, ALONE, 4, 0, bar, onset_tolerance=tolerance)
        measures()["onset-acc"].check(where)
        result = measures()["onset-acc"].run(where)
        (figure,) = result.figures
        return figure, result.data[figure.name]

    return of


def bar(**_):
    return nullcontext(SimpleNamespace(update=lambda: None))


def test_equal_sounds_agree_wholly_and_those_half_a_second_late_do_not(accuracy):
    same, about = accuracy("real")
    late, _ = accuracy("late")
    assert same.value == 1 == same.reference and late.value < 0.2 < about["chance"] + 0.2
    assert (same.name, same.fake, same.real) == ("onset-acc@0.1s", FILMS, FILMS)
    assert [pair["right"] for pair in about["pairs"]] == [pair["real"] for pair in about["pairs"]]
    assert about["right"] == 1 and same.low == same.high == 1


def test_tolerance_decides_and_stands_in_the_name(accuracy):
    wide, narrow = accuracy("near")[0], accuracy("near", tolerance=0.03)[0]
    assert wide.value == 1 and narrow.value < 0.2
    assert narrow.name == "onset-acc@0.03s" and "at most 0.03 s apart" in narrow.protocol


def test_silence_scores_0_and_where_nothing_is_asked_for_too(accuracy):
    assert accuracy("silent")[0].value == 0
    none, _ = accuracy("real", "silent")
    assert none.value == 0 and none.fake == 0 and none.low is None and "0 of 6 videos" in none.note
    assert accuracy("silent", "silent")[0].value == 0


def test_videos_whose_real_sound_has_no_onset_are_left_out_and_counted(accuracy):
    some, _ = accuracy("real", "some")
    assert some.value == 1 and some.fake == 3 and "3 of 6 videos" in some.note


def test_missing_strikes_cost_their_share(accuracy):
    half, about = accuracy("half")
    assert half.value == pytest.approx(2 / 3, abs=0.02) and about["right"] == 1


def test_sound_of_onsets_everywhere_hits_all_and_is_told_by_chance_and_what_stands_beside(accuracy):
    busy, about = accuracy("busy", tolerance=0.1)
    assert busy.value > 0.9 and about["chance"] > 0.9 and about["right"] < 0.3
    assert f"chance {about['chance']:.3g}" in busy.note and "of generated onsets right" in busy.note
    assert accuracy("real")[1]["chance"] < 0.5
