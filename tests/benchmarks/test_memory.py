"""benchmarks/memory.py: the curtain hides what it should, and the score tells remembering from forgetting."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks import memory
from data.av import read_audio, read_frames
from data.synthetic import FPS, TEST_START, BallClip, draw_clip, render, sound

RATE, SAMPLES = 16000, 1600  # Hz, samples per frame


@pytest.fixture(scope="module")
def clips():
    return [draw_clip(0, TEST_START + i) for i in range(24)]


@pytest.fixture(scope="module")
def truths(clips):
    return [memory.truth(clip) for clip in clips]


@pytest.fixture(scope="module")
def half(truths):
    """Those that are enough where nothing is left to chance."""
    return truths[:12]


@pytest.fixture(scope="module")
def strangers():
    """Other balls than those of `clips`, of any colour: what a model shows that has forgotten."""
    return [memory.truth(draw_clip(7, int(i))) for i in np.random.default_rng(0).integers(0, 10**6, 40)]


def films(truths, goes_on, extra=0):
    """A film of each clip and length; goes_on(k, i, hidden): frames of film k of clip i, from behind the curtain.

    It ends two frames after those that are judged.
    """
    made = []
    for k, (hidden, i) in enumerate((h, i) for h in memory.LENGTHS for i in range(len(truths))):
        up = memory.PAST + hidden + extra
        frames = goes_on(k, i, hidden + extra)[: up + memory.JUDGED + 2].copy()
        frames[memory.PAST : up] = memory.CURTAIN
        made.append(memory.Shown(i, memory.PAST + hidden, frames))
    return made


def test_curtain_covers_exactly_its_frames_in_a_real_mp4(clips, tmp_path):
    hidden = np.isin(np.arange(32), [5, 12, 13, 14, 15, 16, 31])
    for i in range(3):
        memory.write_hidden(tmp_path / f"{i}.mp4", clips[i], hidden)
        frames = read_frames(tmp_path / f"{i}.mp4", 0, 32, FPS)
        assert memory.under_curtain(frames).tolist() == hidden.tolist()
        assert (frames[hidden].int() - memory.CURTAIN).abs().max() <= 3
        difference = (frames[~hidden].float() - render(clips[i], 32)[~hidden].float()).abs()
        assert difference.mean() < 2


def test_curtain_silences_the_samples_of_its_frames_and_no_others():
    hidden, clip = np.isin(np.arange(32), range(12, 20)), BallClip(label=2, period=7.0, phase=0.3)
    wave = sound(clip, 32)
    _, covered = memory.hide(render(clip, 32), wave, hidden)
    assert wave[12 * SAMPLES : 20 * SAMPLES].abs().max() > 0.9 and not covered[12 * SAMPLES : 20 * SAMPLES].any()
    torch.testing.assert_close(covered[: 12 * SAMPLES], wave[: 12 * SAMPLES])
    torch.testing.assert_close(covered[20 * SAMPLES :], wave[20 * SAMPLES :])


def test_curtain_is_silent_in_a_real_mp4_beyond_the_frame_into_which_sound_coding_spreads(tmp_path):
    hidden, clip = np.isin(np.arange(32), range(12, 20)), BallClip(label=2, period=7.0, phase=0.3)
    memory.write_hidden(tmp_path / "a.mp4", clip, hidden)
    wave = read_audio(tmp_path / "a.mp4", 0, 32 * SAMPLES)
    assert wave[13 * SAMPLES : 19 * SAMPLES].abs().max() < 1e-4
    heard = [j for j in clip.bounce_times(32) if not 11.5 < j < 20]
    assert all(wave[int(j * SAMPLES) :][:160].abs().max() > 0.5 for j in heard) and len(heard) == 2


def test_curtains_of_a_training_clip_are_1_to_16_frames_long_and_12_to_28_apart():
    drawn = [memory.draw_curtains(i, 96) for i in range(200)]
    lengths = {False: set(), True: set()}
    for hidden in drawn:
        edges = np.flatnonzero(np.diff(hidden)) + 1
        for begin, end in pairwise(edges):  # whole stretches only
            lengths[bool(hidden[begin])].add(int(end - begin))
    assert lengths == {False: set(range(12, 29)), True: set(range(1, 17))}
    assert 0.2 < np.mean(drawn) < 0.4 and {True, False} == {bool(hidden[0]) for hidden in drawn}


def test_model_that_remembers_scores_1_at_every_length(truths):
    result = memory.judge(films(truths, lambda k, i, hidden: truths[i].frames), truths)
    assert result["never_risen"] == 0 and sum(r["clips"] for r in result["given"].values()) == 24 * 7
    for r in (result["all"], *result["given"].values()):
        assert r["colour"]["value"] == 1 and r["f1"]["value"] == 1 and r["error"]["value"] < 1e-6
    assert result["all"]["f1"]["chance"] < 0.4 and result["all"]["colour"]["chance"] == pytest.approx(1 / 3)
    assert result["all"]["error"]["chance"] == pytest.approx(9 / 4, abs=0.4)  # a quarter of a period, 9 on average


def test_model_that_forgets_scores_about_chance(truths, strangers):
    r = memory.judge(films(truths, lambda k, i, hidden: strangers[k % 40].frames), truths)["all"]
    assert r["colour"]["value"] == pytest.approx(1 / 3, abs=0.1) and r["colour"]["interval"][1] < 0.5
    assert r["f1"]["value"] == pytest.approx(r["f1"]["chance"], abs=0.1) and r["f1"]["interval"][1] < 0.45
    assert r["error"]["value"] == pytest.approx(r["error"]["chance"], abs=0.4) and r["error"]["interval"][0] > 1.5


def test_memory_that_ends_with_the_window_shows_between_7_and_8_hidden_frames(half, strangers):
    def goes_on(k, i, hidden):
        return (half[i] if hidden < 8 else strangers[k % 40]).frames

    hidden = memory.judge(films(half, goes_on), half)["hidden"]
    assert hidden["1-7"]["colour"]["value"] == 1 and hidden["1-7"]["f1"]["value"] == 1
    assert hidden["8+"]["colour"]["value"] < 0.5 and hidden["8+"]["f1"]["value"] < 0.5


def test_colour_without_phase_is_told_apart(half):
    clips = [one.clip for one in half]
    late = [memory.truth(replace(clip, phase=(clip.phase + 0.5) % 1)) for clip in clips]
    r = memory.judge(films(half, lambda k, i, hidden: late[i].frames), half)["all"]
    assert r["colour"]["value"] == 1 and r["f1"]["value"] == 0
    assert r["error"]["value"] == pytest.approx(np.mean([clip.period for clip in clips]) / 2, abs=0.2)


def test_error_is_the_time_by_which_the_ball_is_early_or_late(half):
    clips = [one.clip for one in half]
    early = [(-2, 1.5)[i % 2] / clip.period for i, clip in enumerate(clips)]  # periods
    moved = [memory.truth(replace(clip, phase=(clip.phase + e) % 1)) for clip, e in zip(clips, early)]
    shown = films(half, lambda k, i, hidden: moved[i].frames)[:12]
    errors = [memory.bounce_error(memory.find_return(film), half[film.clip]) for film in shown]
    np.testing.assert_allclose(errors, [2, 1.5] * 6, atol=0.3)


def test_frames_that_the_model_keeps_the_curtain_down_count_as_hidden(half):
    result = memory.judge(films(half, lambda k, i, hidden: half[i].frames, extra=3), half)
    assert result["given"]["4"]["mean_hidden"] == 7 and result["given"]["4"]["f1"]["value"] == 1
    assert result["hidden"]["1-7"]["clips"] == 3 * 12 and result["hidden"]["8+"]["clips"] == 4 * 12


def test_curtain_that_falls_again_ends_what_is_judged_and_one_that_never_rises_is_left_out(truths):
    frames = truths[0].frames.copy()
    frames[12:18] = memory.CURTAIN
    frames[23:] = memory.CURTAIN
    back = memory.find_return(memory.Shown(0, 16, frames))
    assert (back.hidden, back.first, back.stop) == (6, 18, 23)
    frames[12:] = memory.CURTAIN
    assert memory.judge([memory.Shown(0, 16, frames)], truths) | {"hidden": 0, "given": 0} == {
        "all": None, "never_risen": 1, "hidden": 0, "given": 0}  # fmt: skip


def test_visible_frames_without_a_ball_are_no_colour(truths):
    empty = np.broadcast_to(memory.EMPTY, truths[0].frames.shape).astype(np.uint8)
    back = memory.find_return(memory.Shown(0, 14, empty))
    assert back.colour == -1 and len(back.bounces) == 0 and back.hidden == 2
    assert np.isnan(memory.bounce_error(back, truths[0]))


def test_training_sees_no_class_and_a_trained_model_is_kept(monkeypatch, tmp_path):
    import demo

    commands = []
    monkeypatch.setattr(demo, "call", lambda *command, **how: commands.append(command))
    monkeypatch.setattr(memory, "TRAIN", 3)
    memory.write_training_set(tmp_path / "data/train")
    export = memory.train(tmp_path, steps=5, seed=2)
    assert len(commands) == 1 and commands[0][0] == "train.py"
    assert {path.parent for path in (tmp_path / "data").rglob("*.mp4")} == {tmp_path / "data/train"}
    export.mkdir(parents=True)
    assert memory.train(tmp_path, steps=5, seed=2) == export and len(commands) == 1
    assert memory.train(tmp_path, steps=6, seed=2) != export and len(commands) == 2


def test_result_says_what_it_was_measured_with_and_prints_a_table(half, monkeypatch, tmp_path, capsys):
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text(json.dumps({"predict_frames": 8}))
    for name, value in {"TRAIN": 1, "CLIPS": 12, "LENGTHS": (0, 12), "AFTER": 10}.items():
        monkeypatch.setattr(memory, name, value)
    monkeypatch.setattr(memory, "train", lambda work, steps, seed: export)
    remembered = films(half, lambda k, i, hidden: half[i].frames)
    monkeypatch.setattr(memory, "extend", lambda work, export, seed: remembered)
    memory.main(["--work", str(tmp_path / "work"), "--out", str(tmp_path / "memory.json")])
    result = json.loads((tmp_path / "memory.json").read_text())
    assert {"machine", "versions", "method", "arguments", "window", "given_hidden"} <= set(result)
    assert result["real"]["colour"]["value"] == 1 and result["real"]["f1"]["value"] == 1
    assert result["real"]["error"]["value"] < 0.2
    assert result["under_curtain"]["sample"] < 1e-4 and result["under_curtain"]["grey_levels"] <= 3
    assert "hidden" in (told := capsys.readouterr().out) and "8+" in told and "real" in told
