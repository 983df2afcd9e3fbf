"""The curtain of benchmarks/memory.py hides what it should, and its score tells remembering from forgetting."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import curtain, memory
from benchmarks.curtain import TASKS, Shown
from data.av import read_audio, read_frames
from data.synthetic import FPS, BallClip, calibrate, detect_pings, draw_clip, render, sound

RATE, SAMPLES = 16000, 1600  # Hz, samples per frame
SEEN, HEARD = TASKS["seen"], TASKS["heard"]
LENGTH = max(task.length for task in TASKS.values())
SILENCE = np.zeros(LENGTH * SAMPLES, np.float32)


@pytest.fixture(scope="module")
def clips():
    return curtain.held_out()


@pytest.fixture(scope="module")
def truths(clips):
    return [curtain.truth(clip, LENGTH) for clip in clips]


@pytest.fixture(scope="module")
def half(truths):
    """Those that are enough where nothing is left to chance."""
    return truths[:12]


@pytest.fixture(scope="module")
def strangers():
    """Other balls than those of `clips`, of any colour: what a model shows that has forgotten."""
    return [curtain.truth(draw_clip(7, int(i)), LENGTH) for i in np.random.default_rng(0).integers(0, 10**6, 40)]


def films(truths, goes_on, extra=0, task=SEEN, wave=SILENCE):
    """A film of each clip and length; goes_on(k, i, hidden): frames of film k of clip i, from behind the curtain.

    It ends two frames after those that are judged.
    """
    made = []
    for k, (hidden, i) in enumerate((h, i) for h in curtain.LENGTHS for i in range(len(truths))):
        up = task.past + hidden + extra
        frames = goes_on(k, i, hidden + extra)[: up + curtain.JUDGED + 2].copy()
        frames[task.past * task.seen : up] = curtain.CURTAIN
        made.append(Shown(i, task.past + hidden, curtain.told(task, truths[i].clip), frames, wave))
    return made


def judged(made, truths, task=SEEN):
    return curtain.summary(curtain.scores(made, task, truths))


# ----------------------------------------------------------------------------------------------------- what is covered


def test_curtain_covers_exactly_its_frames_in_a_real_mp4(clips, tmp_path):
    hidden = np.isin(np.arange(32), [5, 12, 13, 14, 15, 16, 31])
    for i in range(3):
        curtain.write_hidden(tmp_path / f"{i}.mp4", clips[i], hidden, hidden)
        frames = read_frames(tmp_path / f"{i}.mp4", 0, 32, FPS)
        assert curtain.under_curtain(frames).tolist() == hidden.tolist()
        assert (frames[hidden].int() - curtain.CURTAIN).abs().max() <= 3
        difference = (frames[~hidden].float() - render(clips[i], 32)[~hidden].float()).abs()
        assert difference.mean() < 2
    assert len(list(tmp_path.iterdir())) == 3


def test_frames_may_be_hidden_and_heard():
    hidden, silent = np.arange(32) < 25, np.isin(np.arange(32), range(12, 20))
    clip = BallClip(label=2, period=7.0, phase=0.3)
    wave = sound(clip, 32)
    frames, covered = curtain.hide(render(clip, 32), wave, hidden, silent)
    assert frames[:25].eq(curtain.CURTAIN).all() and frames[25:].equal(render(clip, 32)[25:])
    assert wave[12 * SAMPLES : 20 * SAMPLES].abs().max() > 0.9 and not covered[12 * SAMPLES : 20 * SAMPLES].any()
    assert covered[: 12 * SAMPLES].equal(wave[: 12 * SAMPLES]) and covered[20 * SAMPLES :].equal(wave[20 * SAMPLES :])


def test_silence_in_a_real_mp4_begins_after_the_frame_into_which_sound_coding_spreads(tmp_path):
    hidden, clip = np.isin(np.arange(32), range(12, 20)), BallClip(label=2, period=7.0, phase=0.3)
    curtain.write_hidden(tmp_path / "a.mp4", clip, hidden, hidden)
    wave = read_audio(tmp_path / "a.mp4", 0, 32 * SAMPLES)
    assert wave[13 * SAMPLES : 19 * SAMPLES].abs().max() < 1e-4
    heard = [j for j in clip.bounce_times(32) if not 11.5 < j < 20]
    assert all(wave[int(j * SAMPLES) :][:160].abs().max() > 0.5 for j in heard) and len(heard) == 2


def stretches(task, clips=200, frames=96):
    """Lengths of whole stretches of training clips by (hidden, silent), and which kind follows which."""
    lengths, order = {}, set()
    for i in range(clips):
        covered = list(zip(*(x.tolist() for x in curtain.cover(task, i, frames))))
        edges = [k for k in range(1, frames) if covered[k] != covered[k - 1]]
        order |= {(covered[k - 1], covered[k]) for k in edges}
        for begin, end in pairwise(edges):
            lengths.setdefault(covered[begin], set()).add(end - begin)
    return lengths, order


def test_curtains_of_a_training_clip_are_1_to_16_frames_long_and_12_to_28_apart():
    lengths, _ = stretches(SEEN)
    assert lengths == {(False, False): set(range(12, 29)), (True, True): set(range(1, 17))}
    drawn = [curtain.cover(SEEN, i, 96)[0] for i in range(200)]
    assert 0.2 < np.mean(drawn) < 0.4 and {True, False} == {bool(hidden[0]) for hidden in drawn}


def test_balls_that_are_heard_behind_the_curtain_are_silent_before_it_rises():
    lengths, order = stretches(HEARD)
    open_, silent, heard = (False, False), (True, True), (True, False)
    assert lengths == {open_: set(range(12, 29)), silent: set(range(1, 17)), heard: set(range(12, 25))}
    assert order == {(heard, silent), (silent, open_), (open_, silent), (silent, heard)}


def test_beginning_of_a_film_that_is_heard_shows_nothing_and_pings_at_least_once_in_the_pitch_of_its_ball(clips):
    threshold = calibrate(sound(clip, 64) for clip in clips)
    for clip in clips:
        hidden, silent = curtain.covered(HEARD, 6)
        frames, wave = (x.numpy() for x in curtain.hide(render(clip, 22), sound(clip, 22), hidden, silent))
        pings = detect_pings(wave, RATE, FPS, threshold)
        assert (frames == curtain.CURTAIN).all() and len(pings) >= 1
        assert curtain.told(HEARD, clip) - 1 <= pings[-1] + 0.1 and pings[-1] < curtain.told(HEARD, clip)
        assert not wave[16 * SAMPLES :].any()
        after = np.abs(np.fft.rfft(wave[int(pings[0] * SAMPLES) :][:SAMPLES]))
        assert after.argmax() * 10 == pytest.approx(clip.ball.pitch, abs=15)


def test_beginning_of_a_film_that_is_seen_is_told_until_the_curtain_falls(clips):
    hidden, silent = curtain.covered(SEEN, 3)
    assert hidden.tolist() == silent.tolist() == [False] * 12 + [True] * 3 and curtain.told(SEEN, clips[0]) == 12


# ------------------------------------------------------------------------------------------------------- what is scored


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_model_that_remembers_scores_1_at_every_length(truths, task):
    result = judged(films(truths, lambda k, i, hidden: truths[i].frames, task=task), truths, task)
    assert sum(r["clips"] for r in result["given"].values()) == 24 * 7
    for r in (result["all"], *result["given"].values()):
        assert r["colour"]["value"] == 1 and r["f1"]["value"] == 1 and r["error"]["value"] < 1e-6
    assert result["all"]["f1"]["chance"] < 0.4 and result["all"]["colour"]["chance"] == pytest.approx(1 / 3)
    assert result["all"]["error"]["chance"] == pytest.approx(9 / 4, abs=0.4)  # a quarter of a period, 9 on average
    low, high = result["all"]["error"]["chance_interval"]
    assert low < result["all"]["error"]["chance"] < high < low + 1


def test_model_that_forgets_scores_about_chance(truths, strangers):
    r = judged(films(truths, lambda k, i, hidden: strangers[k % 40].frames), truths)["all"]
    assert r["colour"]["value"] == pytest.approx(1 / 3, abs=0.1) and r["colour"]["interval"][1] < 0.5
    assert r["f1"]["value"] == pytest.approx(r["f1"]["chance"], abs=0.1) and r["f1"]["interval"][1] < 0.45
    assert r["error"]["value"] == pytest.approx(r["error"]["chance"], abs=0.4) and r["error"]["interval"][0] > 1.5


def test_memory_that_ends_with_the_window_shows_between_7_and_8_hidden_frames(half, strangers):
    def goes_on(k, i, hidden):
        return (half[i] if hidden < 8 else strangers[k % 40]).frames

    hidden = judged(films(half, goes_on), half)["hidden"]
    assert hidden["1-7"]["colour"]["value"] == 1 and hidden["1-7"]["f1"]["value"] == 1
    assert hidden["8+"]["colour"]["value"] < 0.5 and hidden["8+"]["f1"]["value"] < 0.5
    assert hidden["9-12"]["clips"] == 2 * 12 and hidden["5-12"]["clips"] == 4 * 12


def test_colour_without_phase_is_told_apart(half):
    clips = [one.clip for one in half]
    late = [curtain.truth(replace(clip, phase=(clip.phase + 0.5) % 1), LENGTH) for clip in clips]
    r = judged(films(half, lambda k, i, hidden: late[i].frames), half)["all"]
    assert r["colour"]["value"] == 1 and r["f1"]["value"] == 0
    assert r["error"]["value"] == pytest.approx(np.mean([clip.period for clip in clips]) / 2, abs=0.2)


def test_error_is_the_time_by_which_the_ball_is_early_or_late(half):
    clips = [one.clip for one in half]
    early = [(-2, 1.5)[i % 2] / clip.period for i, clip in enumerate(clips)]  # periods
    moved = [curtain.truth(replace(clip, phase=(clip.phase + e) % 1), LENGTH) for clip, e in zip(clips, early)]
    shown = films(half, lambda k, i, hidden: moved[i].frames)[:12]
    errors = [curtain.bounce_error(curtain.find_return(film), half[film.clip]) for film in shown]
    np.testing.assert_allclose(errors, [2, 1.5] * 6, atol=0.3)


def test_frames_that_the_model_keeps_the_curtain_down_count_as_hidden(half):
    result = judged(films(half, lambda k, i, hidden: half[i].frames, extra=3), half)
    assert result["given"]["4"]["mean_hidden"] == 7 and result["given"]["4"]["f1"]["value"] == 1
    assert result["hidden"]["1-7"]["clips"] == 3 * 12 and result["hidden"]["8+"]["clips"] == 4 * 12


def test_frames_since_the_last_ping_count_as_hidden_where_the_ball_was_only_heard(half):
    made = films(half, lambda k, i, hidden: half[i].frames, task=HEARD)
    found = curtain.scores(made, HEARD, half)
    for score in found:
        last = half[score.clip].clip.bounce_times(16)[-1]
        assert score.hidden == 16 + score.lowered - (int(last) + 1) and score.lowered in curtain.LENGTHS


def test_pings_of_the_model_under_the_curtain_are_told(half):
    wave = np.concatenate([sound(half[0].clip, 20).numpy()[: 20 * SAMPLES], SILENCE])[: len(SILENCE)]
    made = films(half, lambda k, i, hidden: half[i].frames, extra=8, wave=wave)
    found = curtain.scores(made, SEEN, half)
    expected = {h: sum(12 + h <= time < 20 for time in half[0].clip.bounce_times(20)) for h in curtain.LENGTHS}
    assert {score.lowered: score.pings for score in found} == expected and 0 < max(expected.values())
    assert curtain.summary(found)["given"]["12"]["with_pings"] == 0


def test_curtain_that_falls_again_ends_what_is_judged_and_one_that_never_rises_is_left_out(truths):
    frames = truths[0].frames.copy()
    frames[12:18] = curtain.CURTAIN
    frames[23:] = curtain.CURTAIN
    back = curtain.find_return(Shown(0, 16, 12, frames, SILENCE))
    assert (back.hidden, back.first, back.stop) == (6, 18, 23)
    frames[12:] = curtain.CURTAIN
    assert curtain.scores([Shown(0, 16, 12, frames, SILENCE)], SEEN, truths) == []
    assert curtain.summary([])["all"] is None


def test_visible_frames_without_a_ball_are_no_colour(truths):
    empty = np.broadcast_to(curtain.EMPTY, truths[0].frames.shape).astype(np.uint8)
    back = curtain.find_return(Shown(0, 14, 12, empty, SILENCE))
    assert back.colour == -1 and len(back.bounces) == 0 and back.hidden == 2
    assert np.isnan(curtain.bounce_error(back, truths[0]))


# --------------------------------------------------------------------------------------------------------- what is run


@pytest.fixture
def small(half, monkeypatch, tmp_path):
    """benchmarks/memory.py with few videos, whose training and sampling are none: the commands that it calls."""
    import demo

    calls = []

    def call(script, *arguments, log, threads):
        calls.append((script, *map(str, arguments)))
        if script == "train.py":
            export = log.parent / "export"
            export.mkdir(parents=True, exist_ok=True)
            (export / "pipeline.json").write_text(json.dumps({"step": int(option(calls[-1], "--max-steps")[0])}))

    monkeypatch.setattr(demo, "call", call)
    for name, value in {"TRAIN": 2, "CLIPS": 12, "LENGTHS": (0, 12), "AFTER": 10}.items():
        monkeypatch.setattr(curtain, name, value)
    made = {task: films(half, lambda k, i, hidden: half[i].frames, task=task) for task in TASKS.values()}
    monkeypatch.setattr(memory.Run, "films", lambda run, clips: made[run.task])
    where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "memory.json")]
    return calls, lambda *how: memory.main([*where, *how]), tmp_path / "memory.json"


def option(call, name):
    """What follows an argument, up to the next."""
    rest = call[call.index(name) + 1 :]
    return rest[: next((i for i, x in enumerate(rest) if x.startswith("--")), len(rest))]


def test_both_sides_of_a_task_are_trained_alike_but_for_the_memory_and_kept(small, capsys):
    calls, run, out = small
    run("--tasks", "seen", "--seeds", "0", "1", "--memory", "1", "4", "--memory-noise", "0.2", "--steps", "700")
    trainings = [call for call in calls if call[0] == "train.py"]
    assert [option(call, "--memory") if "--memory" in call else () for call in trainings] == [("1", "4"), ()] * 2
    assert [option(call, "--seed") for call in trainings] == [("0",), ("0",), ("1",), ("1",)]
    assert option(trainings[0], "--memory-noise") == ("0.2",) and "--memory-noise" not in trainings[1]
    assert {option(call, "--max-steps") for call in trainings} == {("700",)}
    result = json.loads(out.read_text())
    assert {"machine", "versions", "method", "memory", "given_hidden", "tasks"} <= set(result)
    whole = result["figures"]["seen/all seeds/with"]["hidden"]["8+"]
    assert whole["clips"] == 2 * result["figures"]["seen/with/0"]["hidden"]["8+"]["clips"] == 24
    told = capsys.readouterr().out
    assert "seen, with, 0" in told and "| 8+ | 12 | 1.00 (1.00 to 1.00) | 0.33 |" in told and "real films" in told
    before = out.read_text()
    run("--tasks", "seen", "--seeds", "0", "1", "--memory", "1", "4", "--memory-noise", "0.2", "--steps", "700")
    assert len(calls) == 4 and json.loads(out.read_text()) == json.loads(before)


def test_videos_have_no_class_folder_and_tell_nothing_under_the_curtain(small, tmp_path):
    _, run, out = small
    run("--memory")
    figures = json.loads(out.read_text())["figures"]
    assert not [key for key in figures if "/with/" in key] and {"seen/without/0", "heard/without/0"} <= set(figures)
    for task in TASKS:
        data = tmp_path / "work" / task / "data"
        assert {path.parent for path in data.rglob("*.mp4")} == {data / "train"}
        assert (
            figures[f"{task}/under_curtain"]["sample"] < 1e-4 and figures[f"{task}/under_curtain"]["grey_levels"] <= 3
        )
        real = figures[f"{task}/real"]
        assert real["colour"]["value"] == 1 and real["f1"]["value"] == 1 and real["error"]["value"] < 0.2


def test_training_that_was_broken_off_goes_on_and_table_runs_nothing(small, tmp_path, capsys):
    calls, run, out = small
    run("--tasks", "heard", "--sides", "without", "--steps", "900")
    (tmp_path / "work/heard/no_ages_steps_900_seed_0/scores.json").unlink()
    spec = tmp_path / "work/heard/no_ages_steps_900_seed_0/export/pipeline.json"
    spec.write_text(json.dumps({"step": 500}))
    out.unlink()
    run("--tasks", "heard", "--sides", "without", "--steps", "900")
    assert len(calls) == 2 and calls[0] == calls[1] and option(calls[0], "--ckpt-every") == ("500",)
    capsys.readouterr()
    run("--table", "--steps", "900")
    assert len(calls) == 2 and "heard, without, 0" in capsys.readouterr().out
