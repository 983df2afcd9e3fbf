"""FID and FVD12: which frames of which films, at which size, and distances whose answer is known."""

import functools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from data.av import write_clip
from evaluation.features import RANDOM, Motion, Motion12, Pictures
from evaluation.measures import measures
from evaluation.setting import Setting
from evaluation.videos import find_videos
from metrics.distances import frechet
from tests.networks import small_networks

ALONE = SimpleNamespace(process_index=0, num_processes=1, wait_for_everyone=lambda: None)
looked = functools.cache(find_videos)  # a folder here is written once


@pytest.fixture(scope="module", autouse=True)
def _small_networks():
    with pytest.MonkeyPatch.context() as patch:
        small_networks(patch.setattr)
        yield


def film(path, levels, fps=10, size=(16, 16)):
    """A frame of each grey level."""
    path.parent.mkdir(exist_ok=True)
    frames = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, *size, 3)
    write_clip(path, frames, torch.zeros(1), fps)
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Films of 2 s that brighten: `real` and, brighter, `bright`; `short` are of 1.9 s."""
    root, rng = tmp_path_factory.mktemp("films"), torch.Generator().manual_seed(0)
    for name, shift, frames in (("real", 0, 20), ("bright", 60, 20), ("short", 0, 19)):
        for i in range(6):
            start = 60 + shift + int(40 * torch.rand(1, generator=rng))
            film(root / name / f"{i}.mp4", [start + 2 * k for k in range(frames)])
    return root


def bar(**_):
    return nullcontext(SimpleNamespace(update=lambda: None))


def measured(name, fake, real, cache, num=100):
    chosen, folders = measures()[name], [looked(path, "test", False) for path in (fake, real)]
    (kind,) = chosen.networks
    where = Setting(*folders, None, num, {kind: kind(None)}, cache, ALONE, 4, 0, bar)
    chosen.check(where)
    (figure,) = chosen.run(where).figures
    return figure, where


def test_pictures_are_the_middles_of_eighths_of_the_whole_film_at_its_own_size(tmp_path):
    film(tmp_path / "a" / "0.mp4", [7 * k for k in range(32)], size=(36, 64))
    (still,) = Pictures.of(find_videos(tmp_path / "a", "test", False), 9)
    pictures = still.picture()
    assert pictures.shape == (8, 36, 64, 3)
    assert pictures.float().mean((1, 2, 3)).tolist() == pytest.approx([7 * k for k in range(2, 32, 4)], abs=3)
    assert str(still).endswith("0.mp4")


def test_fid_is_the_distance_of_all_pictures_and_0_between_copies(films, tmp_path):
    figure, where = measured("fid", films / "bright", films / "real", tmp_path)
    sides = [where.features(name, [], Pictures).features for name in ("fake", "real")]
    assert [side.shape for side in sides] == [(6, 8 * 3)] * 2
    assert figure.value == pytest.approx(frechet(*(side.reshape(48, 3) for side in sides)).distance, rel=1e-6)
    assert (figure.name, figure.fake, figure.real) == ("FID", 6, 6) and figure.low < figure.value < figure.high
    assert "Inception v3 of FID (1008 classes)" in figure.protocol and "8 frames of each video" in figure.protocol
    assert (
        figure.note == RANDOM and figure.value > 10 * measured("fid", films / "real", films / "real", tmp_path)[0].value
    )
    assert measured("fid", films / "real", films / "real", tmp_path)[0].value == pytest.approx(0, abs=1e-6)


def test_clip_of_fvd12_is_12_frames_of_2_s_of_any_file(tmp_path):
    levels = [20 * k for k in range(12)]
    film(tmp_path / "a" / "0.mp4", levels, fps=6)
    film(tmp_path / "a" / "1.mp4", [level for level in levels for _ in range(5)], fps=30)
    clips = Motion12.of(find_videos(tmp_path / "a", "test", False), 9)
    assert [clip.start for clip in clips] == [0, 0]
    for clip in clips:
        assert clip.picture().float().mean((1, 2, 3)).tolist() == pytest.approx(levels, abs=6)
        assert clip.sound(16000).shape == (32000,)


def test_second_clip_of_fvd12_begins_where_the_first_ends(tmp_path):
    film(tmp_path / "a" / "0.mp4", [9 * k for k in range(24)], fps=6)
    first, second = Motion12.of(find_videos(tmp_path / "a", "test", False), 9)
    assert (first.start, second.start) == (0, 12) and first.key != second.key
    assert second.picture()[0].float().mean().item() == pytest.approx(9 * 12, abs=3)


def test_fvd12_has_its_own_name_and_features_beside_those_of_fvd(films, tmp_path):
    twelve, _ = measured("fvd12", films / "bright", films / "real", tmp_path)
    sixteen, _ = measured("fvd", films / "bright", films / "real", tmp_path)
    assert (twelve.name, sixteen.name) == ("FVD12", "FVD") and twelve.value != pytest.approx(sixteen.value, rel=1e-3)
    assert "12 frames at 6 fps" in twelve.protocol and "16 frames at 10 fps" in sixteen.protocol
    assert Motion12(None).identity != Motion(None).identity


def test_features_of_fvd_and_fvd12_are_kept_apart_in_one_evaluation(films, tmp_path):
    folders = [looked(films / name, "test", False) for name in ("bright", "real")]
    networks = {kind: kind(None) for kind in (Motion, Motion12)}
    where = Setting(*folders, None, 100, networks, tmp_path, ALONE, 4, 0, bar)
    together = [measures()[name].run(where).figures[0].value for name in ("fvd", "fvd12")]
    assert together[0] != together[1] == measured("fvd12", films / "bright", films / "real", tmp_path)[0].value


def test_films_shorter_than_2_s_are_refused_for_fvd12_with_what_it_needs(films, tmp_path):
    with pytest.raises(ValueError, match="short gives 0 clips of 12 frames at 6 fps, and distances need 4"):
        measured("fvd12", films / "short", films / "real", tmp_path)
    with pytest.raises(ValueError, match="real gives 3 videos, and distances need 4; give more, or a --num"):
        measured("fid", films / "real", films / "real", tmp_path, num=3)
