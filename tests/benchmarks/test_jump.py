"""benchmarks/jump.py: balls that fall alike have no jump; films that begin worse than they go on are told from them."""

import json

import pytest

from benchmarks import jump
from data.av import write_clip
from data.synthetic import FPS, GRAVITY, TEST_START, draw_clip, render, sound

T = 8
LENGTH = jump.WINDOWS * T


def film(k: int, hovers: bool = False):
    """Frames and wave of a ball; one that hovers hangs in the air in the first window, and sounds."""
    clip = draw_clip(0, TEST_START + k)
    frames, wave = render(clip, LENGTH).clone(), sound(clip, LENGTH, jump.RATE)
    if hovers:
        frames[:T] = frames[4]
    return frames, wave


@pytest.fixture(scope="module")
def found():
    return {name: jump.judged([[film(k, hovers) for k in range(s, s + 5)] for s in (0, 5)], T)
            for name, hovers in (("real", False), ("hovering", True))}  # fmt: skip


def test_balls_that_go_on_as_they_began_have_no_jump(found):
    real = found["real"]
    assert real["films"] == 10 and [x["value"] for x in real["f1"]["windows"]] == [1, 1, 1]
    assert all(x["value"] < 0.1 for x in real["motion"]["windows"])
    low, high = real["change"]["step"]["interval"]
    assert low < 0 < high and real["f1"]["by_seed"] == [0, 0]


def test_films_that_begin_worse_are_told_by_each_figure_of_the_first_window_alone(found):
    real, hovering = found["real"], found["hovering"]
    assert hovering["change"]["windows"][0]["value"] == 0 and hovering["change"]["step"]["interval"][0] > 5
    assert hovering["motion"]["windows"][0]["value"] == pytest.approx(GRAVITY, rel=1e-6)
    assert hovering["motion"]["by_seed"] == pytest.approx([-GRAVITY] * 2, abs=0.1)
    assert hovering["f1"]["windows"][0]["value"] == 0 and hovering["f1"]["by_seed"] == [1, 1]
    for of in jump.OF:
        assert hovering[of]["windows"][1:] == real[of]["windows"][1:]


def test_folders_of_films_are_read_and_empty_ones_refused(tmp_path, capsys):
    (tmp_path / "seed").mkdir()
    for k in range(2):
        frames, wave = film(k)
        write_clip(tmp_path / "seed" / f"{k}.mp4", frames, wave, FPS, jump.RATE)
    jump.main(["--films", "balls", str(tmp_path / "seed"), "--out", str(tmp_path / "x.json")])
    assert json.loads((tmp_path / "x.json").read_text())["figures"]["balls"]["films"] == 2
    assert "balls, 2 | motion error" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for wrong in (["nothing", str(tmp_path / "empty")], ["nothing"]):
        with pytest.raises(SystemExit):
            jump.main(["--films", *wrong])
        assert "give their folders" in capsys.readouterr().err
