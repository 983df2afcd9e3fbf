"""benchmarks/memory_drift.py: pieces of a film that goes on as it began score as real ones; what drifts is told."""

import json

import numpy as np
import pytest

from benchmarks import memory_drift as drift
from data.synthetic import GRAVITY, BallClip, render, sound

FRAMES = 3 * drift.PIECE
CLIP = BallClip(label=1, period=9.0, phase=0.3)
SAMPLES = 1600  # per frame


@pytest.fixture(scope="module")
def film():
    return render(CLIP, FRAMES).numpy(), sound(CLIP, FRAMES).numpy()


@pytest.fixture(scope="module")
def threshold():
    return drift.threshold()


def judged(frames, wave, threshold, label=1):
    return drift.judged([drift.pieces(frames, wave, label, threshold)] * 2)["pieces"]


def test_ball_that_goes_on_scores_as_a_real_one_in_every_piece(film, threshold):
    for piece in judged(*film, threshold):
        assert piece["f1"]["value"] == 1 and piece["colour"]["value"] == 1 and piece["motion"]["value"] < 0.05
        assert piece["moved_mean"]["value"] < 1 and piece["moved_spread"]["value"] < 1
        assert abs(piece["sound"]["value"]) < 0.3 and piece["motion"]["films"] == 2


def test_brighter_piece_has_moved_by_as_many_grey_levels_and_one_that_flickers_in_its_spread(film, threshold):
    frames, wave = film[0].copy(), film[1]
    frames[drift.PIECE : 2 * drift.PIECE] += 6
    frames[2 * drift.PIECE :: 2] += 6
    _, brighter, flickering = judged(frames, wave, threshold)
    assert brighter["moved_mean"]["value"] == pytest.approx(6, abs=0.5)
    assert brighter["moved_spread"]["value"] < 1 < 2 < flickering["moved_spread"]["value"]
    assert brighter["moved_mean"]["interval"][0] <= brighter["moved_mean"]["value"]


def test_what_a_piece_loses_is_told_of_it_alone(film, threshold):
    other, frames, wave = BallClip(label=2, period=9.0, phase=0.3), film[0].copy(), film[1].copy()
    second = slice(drift.PIECE, 2 * drift.PIECE)
    frames[second] = render(other, FRAMES).numpy()[second]
    wave[second.start * SAMPLES : second.stop * SAMPLES] *= 0.5
    wave[second.stop * SAMPLES :] = 0
    frames[second.stop :] = frames[second.stop]
    one, two, three = judged(frames, wave, threshold)
    assert [piece["colour"]["value"] for piece in (one, two, three)] == [1, 0, 1]
    assert two["sound"]["value"] == pytest.approx(-6, abs=0.3) and two["f1"]["value"] == 1
    assert three["f1"]["value"] == 0 and three["sound"]["value"] < -60
    assert three["motion"]["value"] == pytest.approx(GRAVITY, rel=1e-6)  # it hangs in the air


def test_short_end_is_left_out_and_a_film_without_a_ball_says_nothing_of_motion(threshold):
    empty = render(CLIP, 1).numpy()[:, :, :1].repeat(64, 2).repeat(drift.PIECE + 30, 0)
    (piece,) = judged(empty, np.zeros(len(empty) * SAMPLES, np.float32), threshold)
    assert piece["motion"] is None and piece["f1"]["value"] == 0 and piece["colour"]["value"] == 0


def test_sides_are_trained_once_and_what_is_there_is_kept(monkeypatch, tmp_path, capsys):
    import demo

    calls = []
    monkeypatch.setattr(demo, "call", lambda *command, **how: (calls.append([*map(str, command)]), command[1:3] == (
        "data.synthetic", tmp_path / "work/data") and command[2].mkdir(parents=True)))  # fmt: skip
    clips = [BallClip(label=k % 3, period=9.0, phase=0.1 * k) for k in range(2)]
    read = lambda path, frames: [x(clips[int(path.stem[-1])], frames).numpy() for x in (render, sound)]  # noqa: E731
    monkeypatch.setattr(drift, "read", read)
    how = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "x.json"), "--films", "2", "--frames", "480"]
    drift.main([*how, "--memory", "1", "3", "--noises", "0", "0.5"])
    trainings = [" ".join(call) for call in calls if call[0] == "train.py"]
    assert [text.partition("--memory ")[2][:3] for text in trainings] == ["", "1 3", "1 3"]
    assert "--memory-noise 0.5" in trainings[2] and len({text.partition("--memory")[0][:99] for text in trainings}) == 1
    figures = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert set(figures) == {"real", "without/0", "with/0", "with, noise 0.5/0"}
    assert all(piece["colour"]["value"] == 1 for found in figures.values() for piece in found["pieces"])
    told, before = capsys.readouterr().out, len(calls)
    assert "with, noise 0.5, seed 0, 2 films" in told and "| 240 to 480 |" in told
    drift.main([*how, "--memory", "1", "3", "--noises", "0", "0.5", "--plot", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert len(calls) == before == 1 + 2 * 3
    with pytest.raises(SystemExit):
        drift.main([*how[:-1], "479"])
    assert "--frames 479 has no second piece of 240 frames; give at least 480" in capsys.readouterr().err
