"""Streams of several frames per call, and of AB2: of any age, resumed, retimed, with their whole sound; scripts."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save

import cli
import sample
import sample_long
from diffusion.noise import Modality
from diffusion.rolling import advance
from diffusion.solvers import solved_by
from models import FLAV
from pipeline import Streams, StreamState
from pipeline.overlap import overlapped_steps
from tests.given import tiny
from tests.test_streams import (
    SIZE,
    T,
    assert_as_alone,
    assert_identical,
    clip,
    film,
    known,
    pipeline,
    run_together,
    since,
    stepped,
)

HOW = [dict(num_timesteps=2, solver="ab2"), dict(num_timesteps=0.5), dict(num_timesteps=0.5, solver="ab2"),
       dict(num_timesteps=0.25, solver="ab2")]  # fmt: skip
each_way = pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(map(str, how.values())))


@pytest.fixture(scope="module")
def exact():
    return pipeline(torch.float64)


@pytest.fixture(scope="module", params=["hifigan", "griffin-lim"])
def any_pipe(request):
    return pipeline(vocoder=request.param)


# ----------------------------------------------------------------------------------------------------------- any age


@each_way
def test_rows_of_any_age_equal_the_same_streams_alone(exact, how):
    joins = {
        "long": (exact.new_stream(0, y=0, seed=0), 11, {}),
        "short": (exact.new_stream(2, y=1, seed=5), 5, {"labels": lambda frame: frame // 3 % 3}),
        "late": (exact.new_stream(0, y=None, seed=7), 37, {}),
    }
    assert_as_alone(run_together(exact, joins, **how), exact, joins, **how)


@each_way
def test_rows_in_which_other_things_are_given_equal_the_same_streams_alone(exact, how):
    video, audio = exact.model.frame_shapes
    joins = {
        "sound given": (exact.new_stream(0, y=0), 9, {"given": known(Modality.AUDIO, audio, 4)}),
        "picture given": (exact.new_stream(1, y=1), 7, {"given": known(Modality.VIDEO, video, 9)}),
        "extended": (exact.extending(*clip(exact, 3), sample=1, y=1), 9, {}),
        "rolling on": (exact.extending(*clip(exact, T), sample=1, y=1), 37, {}),
    }
    assert_as_alone(run_together(exact, joins, **how), exact, joins, **how)


def test_real_frames_come_back_as_they_were(exact):
    """Of a window that begins between the calls of n = 1/2, all four frames are real: the first step is a short one."""
    state = exact.extending(*clip(exact, T), y=1)
    assert int(state.window.step) == T - 1
    made = film(exact.stream(state=state, frames=9, num_timesteps=0.5, solver="ab2"))
    torch.testing.assert_close(made.v[:T], state.past.v.double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(made.a[:T], state.past.a.double(), atol=1e-12, rtol=0)
    assert len(made.v) == 9


# ------------------------------------------------------------------------------------------- saving, resuming, retiming


@pytest.mark.parametrize("steps", [1, 3, 6])
@each_way
def test_stream_resumed_from_its_file_goes_on_bit_for_bit(any_pipe, how, steps, tmp_path):
    steps, end = steps * 3 if how["num_timesteps"] == 2 else steps, 31 if how["num_timesteps"] == 0.25 else 13
    start = any_pipe.new_stream(3, y=1, seed=4)
    whole = film(any_pipe.stream(state=start, frames=end, **how))
    streams = Streams(any_pipe, **how)
    streams.join("", start)
    before = stepped(streams, steps).get("", [])
    streams.state("").save(tmp_path / "state")
    state, _ = StreamState.load(tmp_path / "state")
    assert state.frame == sum(len(c.v) for c in before) and state.solver == how.get("solver", "euler")
    assert_identical(film(any_pipe.stream(state=state, frames=end, **how)), since(whole, state.frame))


def test_a_file_of_euler_says_what_it_always_said_and_that_of_another_solver_no_halves(exact, tmp_path):
    streams = Streams(exact, num_timesteps=0.5)
    streams.join("", exact.new_stream(y=0))
    stepped(streams, 3)
    streams.state("").save(tmp_path / "euler")
    names = {"v", "a", "y", "first", "step", "seed", "sample"}
    assert {k for k in load_file(tmp_path / "euler") if k.startswith("window")} == {f"window.{k}" for k in names}
    state, facts = StreamState.load(tmp_path / "euler")
    assert facts["num_timesteps"] == 1 and int(state.window.step) == T - 2  # in frames

    window = solved_by(state.window, "ab2", 0.5)
    replace(state, window=window).save(tmp_path / "ab2")
    tensors = load_file(tmp_path / "ab2")
    for broken in ({"window.t_before": None}, {"window.dv": None}, {"window.da": tensors["window.v"].clone()},
                   {"window.t_before": tensors["window.t_before"].float()}):  # fmt: skip
        kept = {k: x for k, x in (tensors | broken).items() if x is not None}
        (tmp_path / "broken").write_bytes(save(kept, {"facts": json.dumps(facts)}))
        with pytest.raises(ValueError, match=r"no complete stream state .its velocities are not those of its frames"):
            StreamState.load(tmp_path / "broken")


def rolled_by_hand(pipe, window, plan):
    """Latents of a roll with n steps a frame, of which the plan holds how many calls each."""
    made, before = [], 1
    for n, calls in plan:
        unit = max(n, 1)
        window, before = replace(window, step=window.step * unit // before), unit
        for _ in range(calls):
            window, emitted = advance(window, pipe.velocity(None, n), n)
            made += [emitted.v] if emitted else []
    return torch.cat(made)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("plan", [
    [(2, 2 * T), (0.5, 4)],  # after the first frame, at a row that n = 1/2 does not visit itself
    [(2, 2 * T + 4), (0.5, 3), (2, 6), (1, 2)],
    [(2, 2), (0.25, 2), (3, 3)],  # while pre-rolling
    [(0.5, 1), (1, 3), (0.5, 3)],
])  # fmt: skip
def test_steps_change_at_a_frame_boundary_as_in_a_roll_by_hand(exact, plan, solver):
    start = exact.new_stream(y=1, seed=2)
    window = solved_by(exact.placed(start.window), solver, 1)
    expected = rolled_by_hand(exact, window, plan)
    running, state, resumed = Streams(exact, plan[0][0], sound=False, solver=solver), start, []
    running.join("", start)
    ran = []
    for n, calls in plan:
        running.retime(n)
        ran += stepped(running, calls).get("", [])
        again = Streams(exact, n, sound=False, solver=solver)
        again.join("", state)
        resumed += stepped(again, calls).get("", [])
        state = again.leave("")
    torch.testing.assert_close(film(ran).v, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(film(resumed).v, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [2, 0.5, 0.25])
def test_frames_that_enter_together_have_each_the_label_of_its_schedule(exact, n):
    streams = Streams(exact, n, sound=False)
    streams.join("", exact.new_stream(), labels=lambda frame: frame // 3 % 3)
    stepped(streams, 3 * T)
    assert streams.window.y[0].tolist() == [frame // 3 % 3 for frame in streams.window.frames[0].tolist()]


def test_steps_do_not_change_in_mid_frame(exact):
    streams = Streams(exact, num_timesteps=2)
    streams.join("", exact.new_stream())
    stepped(streams, 2 * T + 3)
    with pytest.raises(ValueError, match=r"cannot change from 2 to 0\.5 in mid-frame"):
        streams.retime(0.5)
    assert streams.n == 2 and not streams.between_frames
    stepped(streams, 1)
    assert streams.between_frames
    with pytest.raises(ValueError, match=r"give 0\.5 or 0\.25, the nearest"):
        streams.retime(1 / 3)
    assert streams.n == 2
    stepped(streams, 1)


# ---------------------------------------------------------------------------------------------- picture, sound, memory


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("n", [0.5, 0.25])
def test_an_odd_end_has_its_whole_sound_and_no_sound_of_what_lies_behind(any_pipe, n, resumable):
    chunks = list(any_pipe.stream(y=1, seed=4, frames=7, num_timesteps=n, resumable=resumable))
    assert all(len(c.wave) == SIZE * len(c.v) == SIZE * len(c.frames) for c in chunks)
    assert [c.first + len(c.v) for c in chunks] == [*(c.first for c in chunks[1:]), 7]
    made, longer = film(chunks), film(any_pipe.stream(y=1, seed=4, frames=12, num_timesteps=n))
    whole = any_pipe.sample([0], 7, y=1, seed=4, num_timesteps=n)
    torch.testing.assert_close(made.v, whole.v[0], rtol=0, atol=1e-4)
    if resumable:  # cut, so that what follows joins on
        torch.testing.assert_close(made.wave, longer.wave[: 7 * SIZE], rtol=0, atol=1e-4)
        state = chunks[-1].state
        one_more = film(any_pipe.stream(state=state, frames=8, num_timesteps=n))  # it may be made already
        assert one_more.first == 7 and len(one_more.v) == 1
        going_on = film(any_pipe.stream(state=state, frames=12, num_timesteps=n))
        assert going_on.first == 7
        torch.testing.assert_close(torch.cat([made.wave, going_on.wave]), longer.wave, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.cat([made.v, going_on.v]), longer.v, rtol=0, atol=1e-4)
    else:  # ended, as a clip is
        assert len(made.wave) == len(whole.wave[0])
        torch.testing.assert_close(made.wave, whole.wave[0], rtol=0, atol=1e-3)


def test_threads_make_the_same_chunks(any_pipe):
    def chunks(steps):
        streams = Streams(any_pipe, num_timesteps=0.5, solver="ab2")
        for name, end in (("one", 7), ("two", 4)):
            streams.join(name, any_pipe.new_stream(len(name), y=1), end)
        return [chunk for some in steps(streams) for _, chunk in some]

    serial, threaded = chunks(Streams.steps), chunks(overlapped_steps)
    assert len(serial) == len(threaded)
    for one, two in zip(serial, threaded):
        assert one.first == two.first and one.frames.equal(two.frames) and one.wave.equal(two.wave)


def test_a_memory_takes_in_all_frames_that_leave_and_is_computed_once_per_call(monkeypatch):
    pipe, seen, remember = tiny(memory_ages=[1, 3]), [], FLAV.remember
    monkeypatch.setattr(FLAV, "remember", lambda self, v, *more: seen.append(v) or remember(self, v, *more))
    how = dict(num_timesteps=0.5, solver="ab2")
    streams = Streams(pipe, **how, sound=False, cfg_scale=1)
    streams.join("", pipe.new_stream(y=1))
    made, calls = film(stepped(streams, 6)[""]), len(seen)
    assert len(made.v) == 10 and calls == 1 + 4  # before the first frame, then after each two
    assert streams.window.past_v[0].equal(made.v[-3:])
    for leaving, shown in enumerate(seen[1:], 1):
        there = [2 * leaving - age for age in (3, 1) if 2 * leaving >= age]
        torch.testing.assert_close(shown[0, -len(there) :], made.v[there], rtol=0, atol=0)
    joins = {"one": (pipe.new_stream(0, y=0), 9, {}), "two": (pipe.new_stream(1, y=1), 7, {})}
    assert_as_alone(run_together(pipe, joins, **how), pipe, joins, **how)


# ------------------------------------------------------------------------------------------------------------- scripts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny().save(folder)
    return folder


def complaint(capsys, script, *argv):
    """The last line of stderr with which a script refuses."""
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: script.main(list(argv)))
    out, err = capsys.readouterr()
    assert end.value.code == 2 and "Traceback" not in err and not out
    return err.splitlines()[-1]


@pytest.mark.parametrize(("text", "n"), [("0.5", 1 / 2), ("1/2", 1 / 2), ("0.25", 1 / 4), ("0.33", 1 / 3), ("3", 3)])
def test_steps_are_read_as_people_write_them(text, n):
    assert sample.parse(["--model-ckpt", "m", "--num-timesteps", text]).num_timesteps == n


@pytest.mark.parametrize(("text", "said"), [
    ("0.3", "give 0.25 or 1/3, the nearest"),
    ("0.9", "give 0.5 or 1, the nearest"),
    ("2/3", "give 0.5 or 1, the nearest"),
    ("1.5", "give 1 or 2, the nearest"),
    ("1/0", "1/0 is not a whole number of 1 or more, nor 0.5, 0.25 or another 1/m; give such as 2"),
])  # fmt: skip
def test_other_steps_are_refused_with_the_nearest(capsys, text, said):
    assert said in complaint(capsys, sample, "--model-ckpt=m", f"--num-timesteps={text}")


def test_steps_that_do_not_divide_the_window_are_refused_before_long_work(checkpoint, tmp_path, capsys):
    for script in (sample, sample_long):
        argv = [f"--model-ckpt={checkpoint}", f"--results-dir={tmp_path}", "--num-timesteps=1/3"]
        line = complaint(capsys, script, *argv)
        assert "lets 3 frames leave per call, which do not divide a window of 4; give 0.5 or 0.25, the nearest" in line
    assert not list(tmp_path.glob("*"))


def test_films_and_clips_by_both_and_a_film_that_goes_on_keeps_its_solver(checkpoint, tmp_path):
    def made(script, folder, *more):
        command = [f"--model-ckpt={checkpoint}", f"--results-dir={tmp_path / folder}", "--num-timesteps=0.5",
                   "--save-latents", "--device=cpu", *map(str, more)]  # fmt: skip
        script.main(command)
        return load_file(next((tmp_path / folder).glob("*.latents.safetensors")))["v"]

    clips = made(sample, "clips", "--video-length=7", "--num-videos=1", "--solver=ab2")
    first = made(sample_long, "film", "--frames=7", "--solver=ab2")
    assert len(clips) == len(first) == 7 and (clips - first).abs().max() < 1e-4
    state = tmp_path / "film" / "long_00000.state.safetensors"
    went_on = made(sample_long, "on", "--resume", state, "--frames=12")
    whole = made(sample_long, "whole", "--frames=12", "--solver=ab2")
    assert torch.equal(torch.cat([first, went_on]), whole)
    run = json.loads((tmp_path / "on" / "run.json").read_text())
    assert run["arguments"]["solver"] == "ab2" and run["arguments"]["num_timesteps"] == 0.5
    assert run["timed_frames"] == 6 or run["timed_frames"] == 4
