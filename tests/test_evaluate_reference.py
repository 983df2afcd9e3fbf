"""evaluate.py where no real video has sound: what can be measured is, and what cannot is named in one sentence."""

import json

import pytest

import evaluate
from evaluation.measures import measures
from tests.evaluation.test_videos import silent_film
from tests.networks import small_networks
from tests.test_evaluate import argv, complaint, figures, no_features, place, run

COMPARING = {"fad", "long", "clap-sound", "kl", "onset-acc"}


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    small_networks(monkeypatch.setattr)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """`fake` with sound and prompts; `set` without a sound track, of the same names."""
    root = tmp_path_factory.mktemp("films")
    place(root / "fake", *range(8), shift=20, frames=20)
    rows = ({"file": f"{i:03d}.mp4", "prompt": f"a ball {i}"} for i in range(8))
    (root / "fake" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "set").mkdir()
    for i in range(8):
        silent_film(root / "set" / f"{i:03d}.mp4", comment=str(i), movflags="use_metadata_tags")
    return root


def test_what_needs_no_real_sound_is_measured_and_the_rest_is_named_once(films, tmp_path, capsys):
    asked = ("fvd12", "fid", "fad", "clap", "kl", "onset-acc", "inception", "sync")
    found = run(films, tmp_path / "out", "--metrics", *asked)
    said = [line for line in capsys.readouterr().err.splitlines() if "sound track" in line]
    what = "so what compares with real sounds is left out: fad, kl, onset-acc"
    assert said == [f"no video of {films / 'set'} has a sound track, {what}"]
    assert {"FVD12", "FID", "CLAP score", "inception score", "AV-Align over chance", "lag (frames)"} <= set(
        figures(found)
    )
    assert not [name for name in figures(found) if name.startswith(("FAD", "KL", "onset-acc"))]
    assert found["left_out"] == ["fad", "kl", "onset-acc"]
    assert "left out, for want of real sounds" in (tmp_path / "out" / "report.html").read_text()
    for name in ("inception score", "AV-Align over chance", "CLAP score"):
        figure = figures(found)[name]
        assert figure["reference"] is None and figure["real"] == 0 and not figure["reference_is"], name


def test_where_nothing_is_left_the_run_is_refused_before_anything_is_computed(films, tmp_path, capsys):
    line = complaint(capsys, *argv(films, tmp_path / "out"), "--metrics", "fad", "kl")
    assert "has a sound track, and fad, kl compare with real sounds; give videos with sound, or other --metrics" in line
    assert no_features(tmp_path)


def test_generated_videos_may_be_silent_too_where_only_pictures_are_left(films, tmp_path):
    found = run(films, tmp_path / "out", "--metrics", "fvd", "fad", fake=films / "set")
    assert set(figures(found)) == {"FVD"} and found["left_out"] == ["fad"]


def test_one_real_video_with_sound_is_enough_and_the_silent_ones_are_named(films, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    place(mixed, *range(20, 26))
    silent_film(mixed / "silent.mp4")
    found = run(films, tmp_path / "out", "--metrics", "fad", real=mixed, num=6)
    assert "left out" not in capsys.readouterr().err and found["left_out"] == []
    assert found["folders"]["real"]["problems"] == [[str(mixed / "silent.mp4"), "no sound track"]]


def test_measures_that_compare_with_real_sounds_are_those_that_help_names(capsys):
    assert {name for name, measure in measures().items() if measure.compares} == COMPARING
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    said = "".join(capsys.readouterr().out.split())  # lines may end at the hyphen of a name
    assert "fad,long,clap-sound,klandonset-acccomparewithrealsoundsandareleftout" in said
