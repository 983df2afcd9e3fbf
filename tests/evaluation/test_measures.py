"""Measures on films whose answer is known: copies, fresh samples, balls in and out of step, drift, loops."""

import functools
import math
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from data.av import iter_frames, write_clip
from data.synthetic import TEST_START, draw_clip, render, sound
from evaluation import plots
from evaluation.drift import loops
from evaluation.features import RANDOM, CompatSound, Motion, Sound
from evaluation.measures import measures
from evaluation.report import page
from evaluation.setting import Setting
from evaluation.videos import find_videos
from tests.networks import Eye, small_networks

ALONE = SimpleNamespace(process_index=0, num_processes=1, wait_for_everyone=lambda: None)
KINDS = (Motion, Sound, CompatSound)


looked = functools.cache(find_videos)  # a folder here is written once


@pytest.fixture(scope="module", autouse=True)
def _small_networks():
    with pytest.MonkeyPatch.context() as patch:
        small_networks(patch.setattr)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The features of all tests that do not ask when they are computed."""
    return tmp_path_factory.mktemp("cache")


def bar(**_):
    return nullcontext(SimpleNamespace(update=lambda: None))


def setting(cache, fake, real, train=None, num=100, file=None):
    folders = [folder and looked(folder, "test", False) for folder in (fake, real, train)]
    extractors = {kind: kind(file) if kind is Motion else kind(None) for kind in KINDS}
    return Setting(*folders, num, extractors, cache, ALONE, 4, 0, bar)


def measured(name, where):
    """The figures of a measure by name, and the whole result."""
    chosen = measures()[name]
    chosen.check(where)
    result = chosen.run(where)
    return {figure.name: figure for figure in result.figures}, result


def place(folder, *seeds, shift=0.0, frames=16):
    """Films of noise of one mean; `shift` makes them brighter."""
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        picture = 90 + shift + 30 * torch.randn(1, 4, 4, 3, generator=rng)
        still = picture.clamp(0, 255).byte().repeat_interleave(4, 1).repeat_interleave(4, 2)
        wave = (0.1 + 0.002 * shift) * torch.randn(frames * 1600, generator=rng)
        write_clip(folder / f"{seed:03d}.mp4", still.repeat(frames, 1, 1, 1), wave)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three folders of ten films: two drawn alike, and a brighter and louder one."""
    root = tmp_path_factory.mktemp("films")
    place(root / "a", *range(10))
    place(root / "b", *range(10, 20))
    place(root / "bright", *range(20, 30), shift=80)
    return root


# ---------------------------------------------------------------------------------------------------------- distances


def distances(where):
    return {name: figure for measure in ("fvd", "kvd", "fad") for name, figure in measured(measure, where)[0].items()}


@pytest.fixture(scope="module")
def alike(films, cache):
    return distances(setting(cache, films / "a", films / "b"))


@pytest.fixture(scope="module")
def apart(films, cache):
    """Without FAD compat: the stand-in's groups have mean 0 by construction."""
    found = distances(setting(cache, films / "bright", films / "b"))
    return {name: figure for name, figure in found.items() if name != "FAD compat"}


def test_brighter_and_louder_films_are_farther_from_real_than_those_drawn_alike(alike, apart):
    assert apart.keys() == {"FVD", "KVD", "FAD sound"}
    for name, figure in apart.items():
        assert figure.value > 3 * abs(alike[name].value) and figure.value > 2 * figure.reference, name


def test_identical_folders_have_no_distance_and_an_unbiased_one_below_zero(films, cache):
    """The published root leaves variances under 1e-5 as they are, so FAD compat keeps a trace."""
    same = setting(cache, films / "a", films / "a")
    (fvd,), (kvd,), (compat, sound) = (measured(name, same)[0].values() for name in ("fvd", "kvd", "fad"))
    assert abs(fvd.value) < 1e-6 and abs(sound.value) < 1e-6 and kvd.value < 0
    assert abs(compat.value) < 0.05 * compat.reference
    assert fvd.reference > 0.01  # halves of the real clips are not alike


def test_figure_brings_its_counts_protocol_interval_and_floor(films, cache):
    (fvd,) = measured("fvd", setting(cache, films / "a", films / "b", num=7))[0].values()
    assert (fvd.fake, fvd.real) == (7, 7) and fvd.low < fvd.value < fvd.high
    assert fvd.reference_is == "real against real, 5 clips a side" and "no confidence interval" in fvd.interval
    assert "antialias False" in fvd.protocol and "nuclear norm" in fvd.protocol


def test_unequal_numbers_of_clips_are_compared_and_told(films, cache, tmp_path):
    shutil.copytree(films / "a", tmp_path, ignore=shutil.ignore_patterns("00[5-9].mp4"), dirs_exist_ok=True)
    for figure in distances(setting(cache, tmp_path, films / "b")).values():
        assert (figure.fake, figure.real) == (5, 10) and math.isfinite(figure.value)


def test_features_of_two_measures_are_computed_once(films, cache):
    where = setting(cache, films / "a", films / "b")
    measured("fvd", where)
    before = dict(where.extracted)
    measured("kvd", where)
    assert where.extracted == before and set(before) == {"fake i3d", "real i3d"}


@pytest.mark.parametrize("name", ["fvd", "kvd", "fad"])
def test_fewer_clips_than_an_interval_needs_are_refused_before_features_are_computed(films, tmp_path, name):
    with pytest.raises(ValueError, match="gives 3 clips, and distances need 4; give more, or a --num of at least 4"):
        measured(name, setting(tmp_path / "cache", films / "a", films / "b", num=3))
    assert not list(tmp_path.rglob("*.npz"))


def test_real_against_real_has_as_many_clips_a_side_as_the_figure_where_the_folder_has_twice_as_many(films, cache):
    where = setting(cache, films / "a", films / "b", num=4)
    (fvd,) = measured("fvd", where)[0].values()
    assert (fvd.fake, fvd.real, fvd.reference_is) == (4, 4, "real against real, 4 clips a side")
    assert {name: len(found.features) for name, found in where.extracted.items()} == {
        "fake i3d": 4, "real i3d": 4, "real against real i3d": 8}  # fmt: skip


def test_real_against_real_takes_no_second_window_of_the_videos_judged(films, cache, tmp_path):
    """Windows of a video are alike: one on either side would bring real and real together."""
    where = setting(cache, films / "a", place(tmp_path / "long", *range(4), frames=32), num=4)
    (fvd,) = measured("fvd", where)[0].values()
    assert set(where.extracted) == {"fake i3d", "real i3d"} and fvd.reference_is.endswith("2 clips a side")


def test_distance_of_films_that_may_be_real_warns_with_real_against_real_and_that_of_others_does_not(alike, apart):
    assert alike.keys() == {"FVD", "KVD", "FAD compat", "FAD sound"}
    for figure in alike.values():
        assert figure.warning.startswith(f"{figure.name} {figure.value:.4g} ({figure.low:.4g} to")
        assert f"real against real, 5 clips a side, is {figure.reference:.4g}; give more clips" in figure.warning
    assert not any(figure.warning for figure in apart.values())


def test_distance_of_a_handful_of_clips_warns_however_large_it_is(films, cache):
    (fvd,) = measured("fvd", setting(cache, films / "bright", films / "b", num=7))[0].values()
    assert fvd.low > fvd.reference and "of 7 clips says nothing" in fvd.warning


# -------------------------------------------------------------------------------------------------------------- notes


NETWORKS = {"FVD", "KVD", "FAD compat", "FAD sound", "memorisation ratio", "memorised share", "FVD of the last window",
            "FAD sound of the last window", "picture drift", "sound drift"}  # fmt: skip


def test_every_figure_of_a_network_without_weights_says_so_and_no_other(films, lively, still, cache):
    where = setting(cache, lively / "still", films / "a", films / "b", num=12)
    figures = still | distances(where) | measured("memorisation", where)[0]
    assert {name for name, figure in figures.items() if RANDOM in figure.note} == NETWORKS
    assert len(figures) == len(NETWORKS) + 5  # the jump, the mean picture, loops, replay, amplitude


def test_figure_of_published_weights_has_no_such_note(films, cache, tmp_path):
    torch.save(Eye().state_dict(), tmp_path / "eye.pt")
    (fvd,) = measured("fvd", setting(cache, films / "a", films / "b", file=tmp_path / "eye.pt"))[0].values()
    assert fvd.note == ""


# ------------------------------------------------------------------------------------------------------- memorisation


def test_copies_of_training_films_are_memorised_and_fresh_films_are_not(films, cache, tmp_path):
    train, real = films / "a", films / "b"
    copied, result = measured("memorisation", setting(cache, films / "a", real, train))
    assert copied["memorisation ratio"].value < 1e-6 and copied["memorised share"].value == 1
    place(tmp_path / "fresh", *range(30, 40))
    fresh, _ = measured("memorisation", setting(cache, tmp_path / "fresh", real, train))
    assert 0.7 < fresh["memorisation ratio"].value < 1.4 and fresh["memorised share"].value <= 0.2
    assert all(pair["fake"] == pair["train"] for pair in result.data["closest"]) and len(result.data["closest"]) == 10


def test_all_training_videos_are_looked_at_however_few_clips_are_judged(films, cache, tmp_path):
    shutil.copy(films / "a" / "009.mp4", tmp_path)
    found, _ = measured("memorisation", setting(cache, tmp_path, films / "b", films / "a", num=1))
    assert found["memorised share"].value == 1 and "10 training clips" in found["memorised share"].protocol


# ---------------------------------------------------------------------------------------------------------- synchrony


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """`real`: 12 films of bouncing balls; `strange`: the same pictures, each with the sound of another film.

    Chance moves sounds by 1, 3 and 5 places. Strange ones are moved by 2 the other way, so none comes home.
    """
    root = tmp_path_factory.mktemp("balls")
    clips = sorted((draw_clip(0, TEST_START + i) for i in range(12)), key=lambda clip: clip.label)
    pictures, sounds = [render(clip, 32)[:, ::2, ::2] for clip in clips], [sound(clip, 32) for clip in clips]
    for folder, places in (("real", 0), ("strange", 2)):
        (root / folder).mkdir()
        for i, picture in enumerate(pictures):
            write_clip(root / folder / f"{i:02d}.mp4", picture, sounds[i - places])
    return root


def test_balls_are_in_step_and_their_pictures_with_other_sounds_are_not(balls, tmp_path):
    """The real folder is the reference of both, and looked at once."""
    found, result = measured("sync", setting(tmp_path, balls / "strange", balls / "real"))
    scores = result.data["sync"]
    for name in ("AV-Align", "matched IoU", "onset accuracy", "onset AP"):
        assert scores[name]["real"]["z"] > 3 and abs(scores[name]["fake"]["z"]) < 3, name
        figure = found[f"{name} over chance"]
        assert figure.value == scores[name]["fake"]["difference"] and figure.low < figure.value < figure.high
        assert figure.reference == scores[name]["real"]["difference"] and (figure.fake, figure.real) == (12, 12)
    assert found["lag peak"].reference > found["lag peak"].value
    assert len(list(tmp_path.rglob("*.npz"))) == 24
    again, _ = measured("sync", setting(tmp_path, balls / "real", balls / "real"))
    assert len(list(tmp_path.rglob("*.npz"))) == 24
    assert all(figure.value == figure.reference for figure in again.values())


def test_too_few_videos_to_shuffle_are_refused_before_they_are_looked_at(films, tmp_path):
    with pytest.raises(ValueError, match="gives 5 videos, and sync shuffles at least 6; give more"):
        measured("sync", setting(tmp_path, films / "a", films / "b", num=5))
    assert not list(tmp_path.rglob("*.npz"))


def test_films_in_which_nothing_moves_or_sounds_have_no_lag_and_no_score(tmp_path):
    (tmp_path / "dead").mkdir()
    for i in range(6):
        write_clip(
            tmp_path / "dead" / f"{i}.mp4", torch.full((16, 16, 16, 3), 20 * i, dtype=torch.uint8), torch.zeros(1)
        )
    found, result = measured("sync", setting(tmp_path / "cache", tmp_path / "dead", tmp_path / "dead"))
    assert math.isnan(found["lag (frames)"].value) and found["lag (frames)"].fake == 0
    assert found["AV-Align over chance"].value == 0 and page(result, {})


# -------------------------------------------------------------------------------------------------------- long videos


def long_film(path, seed, kind, frames=72):
    """Moving noise about one mean; `brighten` lifts the mean by 100 levels, `loop` plays 17 frames again and again."""
    rng = torch.Generator().manual_seed(seed)
    x = 80 + 25 * torch.randn(frames, 4, 4, 3, generator=rng)
    if kind == "brighten":
        x += torch.linspace(0, 100, frames)[:, None, None, None]
    if kind == "loop":
        x = x[torch.arange(frames) % 17]
    big = x.clamp(0, 255).byte().repeat_interleave(4, 1).repeat_interleave(4, 2)
    loud = torch.linspace(0.1, 0.6 if kind == "brighten" else 0.1, 1600 * frames)
    write_clip(path, big, loud * torch.randn(1600 * frames, generator=rng).clamp(-1.5, 1.5))


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """Folders of five long films each."""
    root = tmp_path_factory.mktemp("lively")
    for k, kind in enumerate(("still", "brighten", "loop")):
        (root / kind).mkdir()
        for i in range(5):
            long_film(root / kind / f"{i}.mp4", 10 * k + i, kind)
    return root


def z_of(figure):
    """Its value in standard errors, from the interval that it shows."""
    return (figure.value - figure.reference) / ((figure.high - figure.low) / (2 * 1.96))


@pytest.fixture(scope="module")
def still(films, lively, cache):
    """Figures of the stationary films."""
    return measured("long", setting(cache, lively / "still", films / "a", films / "b", num=12))[0]


DRIFTS = ("picture drift", "sound drift", "drift of the mean picture")


def test_stationary_films_do_not_drift_and_brightening_ones_do(films, lively, still, cache):
    rising, result = measured("long", setting(cache, lively / "brighten", films / "a"))
    for name in DRIFTS:
        assert abs(z_of(still[name])) < 3 < z_of(rising[name]), name
    for name in ("FVD of the last window", "FAD sound of the last window"):
        assert rising[name].value > 2 * rising[name].reference
        assert 0.3 < still[name].value / still[name].reference < 3
    assert all(abs(z_of(found["jump after pre-rolling"])) < 3 for found in (still, rising))
    curve = result.data["drift_picture"]
    assert len(curve["seconds"]) == 8 and curve["seconds"][:2] == [0, 0.8] and curve["moved"][0] == 0
    assert all(low <= moved <= high for low, moved, high in
               zip(curve["moved_low"], curve["moved"], curve["moved_high"]))  # fmt: skip


def test_looping_films_are_counted_with_their_period_and_others_are_not(lively, cache):
    found, result = measured("loops", setting(cache, lively / "loop", lively / "still"))
    assert found["loops"].value == 1 and result.data["loops"]["periods"] == [17] * 5
    none, result = measured("loops", setting(cache, lively / "still", lively / "loop"))
    assert none["loops"].value == 0 and result.data["loops"]["periods"] == [] and "0/5" in none["loops"].note
    assert found["replay ratio"].value < 0.5 < 0.9 < none["replay ratio"].value


def test_step_where_pre_rolling_ends_is_a_jump(lively, cache, tmp_path):
    """Films that stand still for ten frames and move from then on."""
    (tmp_path / "films").mkdir()
    for i in range(4):
        frames = torch.stack(list(iter_frames(lively / "still" / f"{i}.mp4", count=64)))
        frames[:10] = frames[:1]
        write_clip(tmp_path / "films" / f"{i}.mp4", frames, torch.zeros(1))
    found, _ = measured("loops", setting(cache, tmp_path / "films", lively / "still"))
    assert z_of(found["jump after pre-rolling"]) > 3


def test_films_too_short_for_drift_are_refused_before_features_are_computed(films, tmp_path):
    for name in ("long", "loops"):
        with pytest.raises(ValueError, match=r"has 0 videos of 64 frames or more at 10 fps, .* from 2; make some with"):
            measured(name, setting(tmp_path, films / "a", films / "b"))
    assert not list(tmp_path.rglob("*.npz"))


def test_window_longer_than_the_films_is_refused(lively, cache):
    where = setting(cache, lively / "still", lively / "loop")
    where.prerolled = 120
    with pytest.raises(ValueError, match="--predict-frames 120 leaves nothing to compare in 72 frames"):
        measured("loops", where)


# ----------------------------------------------------------------------------------------------------------- pictures


def test_file_names_are_no_formulas_in_pictures_nor_tags_in_the_page(lively, tmp_path):
    """A lone $\\x$ in a legend would end the run after all the work."""
    (tmp_path / "films").mkdir()
    for i, name in enumerate((r"$\x$ & <b>.mp4", "кино $5.mp4")):
        (tmp_path / "films" / name).write_bytes((lively / "still" / f"{i}.mp4").read_bytes())
    result = loops(setting(tmp_path / "cache", tmp_path / "films", lively / "still"))
    assert "<b>" not in page(result, {"fake": tmp_path / "films" / "<b>&"})
    clips = find_videos(tmp_path / "films", "test", False).clips(2)
    plots.closest_pairs([tuple(clips)], [0.5]).savefig(tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
