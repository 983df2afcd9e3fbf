"""Streams: rows of any age as if alone; stopped, resumed, forked, retimed, relabelled; real clips that go on."""

import json
import threading
from dataclasses import replace
from itertools import cycle, islice, pairwise
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save

from diffusion.flow import interpolate
from diffusion.guidance import Guidance
from diffusion.noise import Modality, frame_noise
from diffusion.rolling import advance
from models import FLAV
from models.codec import Pixels
from pipeline import AVCodec, AVPipeline, AVSpec, Streams, StreamState
from tests.closeness import assert_close_by_size
from tests.randomised import randomised
from vocoder import GriffinLim, HiFiGAN, HiFiGANConfig

HIFIGAN = dict(resblock="2", upsample_initial_channel=32, upsample_rates=(8, 5, 4), upsample_kernel_sizes=(16, 10, 8),
               resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 2),))  # fmt: skip
T, SIZE = 4, 1600  # frames in the window, samples per frame


def random(module, std):
    """The module with random weights everywhere: fresh ones give zeros."""
    return randomised(module, std).eval().requires_grad_(False)


def pipeline(dtype=torch.float32, vocoder="hifigan", **facts):
    """16 px pictures, 20 mel bins, three classes, a window of 4."""
    voice = random(HiFiGAN(HiFiGANConfig(num_mels=20, **HIFIGAN)), 0.1)
    voice = voice if vocoder == "hifigan" else GriffinLim(20, iterations=3)
    facts = dict(n_mels=20, audio_scale=2.0, image_size=16, codec="pixels", class_names=("x", "y", "z")) | facts
    spec = AVSpec(**facts, vocoder=vocoder)
    shape = dict(latent_size=16, patch_size=8, in_channels=3, n_mels=20, num_classes=3, predict_frames=T,
                 audio_fr=spec.mel_per_frame)  # fmt: skip
    model = FLAV(**shape, hidden_size=32, depth=1, num_heads=2)
    return AVPipeline(random(model, 0.2), AVCodec(spec, Pixels(), voice), dtype=dtype)


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture(scope="module")
def exact():
    """The same in float64."""
    return pipeline(torch.float64)


@pytest.fixture(scope="module", params=["hifigan", "griffin-lim"])
def any_pipe(request):
    return pipeline(vocoder=request.param)


@pytest.fixture(scope="module")
def whole(any_pipe):
    """An uninterrupted film of 12 frames."""
    return film(any_pipe.stream(state=any_pipe.new_stream(3, y=1, seed=4), frames=12))


def film(chunks):
    """Chunks joined: first, frames, wave, v, a."""
    chunks = list(chunks)
    joined = {name: torch.cat([getattr(c, name) for c in chunks]) for name in ("frames", "wave", "v", "a")}
    return SimpleNamespace(first=chunks[0].first, **joined)


def stepped(streams, steps):
    """The chunks of some steps, by name; fewer where all streams end."""
    seen = {}
    for _ in range(steps):
        for name, chunk in streams.step() if streams.rows else []:
            seen.setdefault(name, []).append(chunk)
    return seen


def assert_identical(one, two):
    for name in ("frames", "wave", "v", "a"):
        assert getattr(one, name).equal(getattr(two, name)), name


def since(whole, frame):
    """The part of a film from a frame on."""
    skip = frame - whole.first
    return SimpleNamespace(
        frames=whole.frames[skip:], wave=whole.wave[skip * SIZE :], v=whole.v[skip:], a=whole.a[skip:]
    )


# ------------------------------------------------------------------------------------------------------ rows of any age


def assert_as_alone(together, pipe, joins, **how):
    """Each stream of a batch gave out what it gives out by itself: latents to 1e-10, sound as far as float32 goes."""
    assert together.keys() == joins.keys()
    for name, (state, frames, more) in joins.items():
        streams = Streams(pipe, **how)
        streams.join(name, state, frames, **more)
        one, other = film(chunk for _, chunk in streams), film(together[name])
        assert len(one.v) == frames and one.v.dtype == torch.float64
        torch.testing.assert_close(other.v, one.v, rtol=0, atol=1e-10)
        torch.testing.assert_close(other.a, one.a, rtol=0, atol=1e-10)
        torch.testing.assert_close(other.wave, one.wave, rtol=0, atol=1e-4)
        assert (other.frames.int() - one.frames.int()).abs().max() <= 1


def run_together(pipe, joins, **how):
    """The streams of `joins` begin 3 steps apart; the last takes a rest of 5 steps in mid-frame."""
    streams, seen = Streams(pipe, **how), {}

    def go_on(steps):
        for name, chunks in stepped(streams, steps).items():
            seen.setdefault(name, []).extend(chunks)

    for name, (state, frames, more) in joins.items():
        streams.join(name, state, frames, **more)
        go_on(3)
    resting = streams.leave(name)
    go_on(5)
    streams.join(name, resting, frames, **more)
    while streams.rows:
        go_on(1)
    return seen


def test_rows_of_any_age_equal_the_same_streams_alone(exact):
    """They join at different times with their own seed, class and length; one ends first, one leaves and returns."""
    joins = {
        "long": (exact.new_stream(0, y=0, seed=0), 8, {}),
        "short": (exact.new_stream(2, y=1, seed=5), 3, {}),
        "late": (exact.new_stream(0, y=None, seed=7), 6, {}),
    }
    for how in (dict(num_timesteps=2), dict(num_timesteps=3, cfg_scale=1.5)):
        assert_as_alone(run_together(exact, joins, **how), exact, joins, **how)


def known(modality, shape, until):
    """Latents of a given modality for the first frames."""
    noise = [frame_noise(1, 0, k, modality, shape) for k in range(until)]
    return {modality: lambda frame: noise[frame] if frame < until else None}


@pytest.mark.parametrize("t", [None, 1.0])
def test_rows_in_which_other_things_are_given_equal_the_same_streams_alone(exact, t):
    video, audio = exact.model.frame_shapes
    joins = {
        "sound given": (exact.new_stream(0, y=0), 6, {"given": known(Modality.AUDIO, audio, 4)}),
        "picture given": (exact.new_stream(1, y=1), 5, {"given": known(Modality.VIDEO, video, 9)}),
        "extended": (exact.extending(*clip(exact, 3), sample=1, y=1), 7, {}),
        "nothing given": (exact.new_stream(2, y=2), 6, {"labels": lambda frame: frame // 5}),
    }
    assert_as_alone(run_together(exact, joins, t=t), exact, joins, t=t)


def test_guided_rows_of_any_age_equal_the_same_streams_alone(exact):
    given = {"given": known(Modality.AUDIO, exact.model.frame_shapes[1], 5)}
    joins = {str(i): (exact.new_stream(i, y=i), 4 + i, given) for i in range(3)}
    assert_as_alone(run_together(exact, joins, guidance=Guidance(25.0)), exact, joins, guidance=Guidance(25.0))


def test_name_that_is_taken_and_end_that_is_past_are_refused(pipe):
    streams = Streams(pipe)
    streams.join("one", pipe.new_stream(y=0))
    with pytest.raises(ValueError, match="'one' is running already; give this one another name"):
        streams.join("one", pipe.new_stream(y=0))
    stepped(streams, 2 * (T + 4))
    state = streams.leave("one")
    for end in (1, state.frame):
        with pytest.raises(ValueError, match=f"is made up to frame {state.frame} and cannot end at {end}"):
            streams.join("one", state, end)
    assert not streams.rows and streams.window is None


# -------------------------------------------------------------------------------------------------- resuming, forking


@pytest.mark.parametrize("steps", [3, 2 * T + 5, 2 * T + 14], ids=["pre-rolling", "between frames", "rolling"])
def test_stream_resumed_from_its_file_goes_on_bit_for_bit(any_pipe, whole, steps, tmp_path):
    streams = Streams(any_pipe)
    streams.join("", any_pipe.new_stream(3, y=1, seed=4))
    before = stepped(streams, steps)
    streams.state("").save(tmp_path / "state", name="a stream")
    state, facts = StreamState.load(tmp_path / "state")
    assert facts["name"] == "a stream" and state.frame == sum(len(c.v) for c in before.get("", []))
    assert_identical(film(any_pipe.stream(state=state, frames=12)), since(whole, state.frame))


def test_state_is_read_whole_while_it_is_being_replaced(any_pipe, tmp_path):
    streams = Streams(any_pipe)
    streams.join("", any_pipe.new_stream(seed=4))
    states, path = [], tmp_path / "state"
    for _ in range(2):  # of one frame or of two that wait for their sound: the files differ in length
        stepped(streams, 2 * T)
        states.append(streams.state(""))
        states[-1].save(path)
    done = threading.Event()

    def replacing():
        for state in cycle(states):
            if done.is_set():
                return
            state.save(path)

    writer = threading.Thread(target=replacing)
    writer.start()
    try:
        read = {StreamState.load(path)[0].frame for _ in range(150)}
    finally:
        done.set()
        writer.join()
    assert read <= {state.frame for state in states}


def test_state_of_every_chunk_is_the_one_right_after_it(any_pipe, tmp_path):
    chunks = list(any_pipe.stream(y=0, frames=6))
    whole, told = film(chunks), 0
    for chunk in chunks[:-1]:
        told += len(chunk.v)
        chunk.state.save(tmp_path / "state")
        assert chunk.state.frame == told
        assert_identical(
            film(any_pipe.stream(state=StreamState.load(tmp_path / "state")[0], frames=6)), since(whole, told)
        )


@pytest.mark.parametrize("more", [1, 4])
def test_film_that_ended_and_what_follows_are_the_uninterrupted_film(any_pipe, more):
    """No frame comes twice and the sound has no seam: a film ends as if it had been cut."""
    whole = film(any_pipe.stream(y=0, frames=4 + more))
    *_, last = before = list(any_pipe.stream(y=0, frames=4))
    after = list(any_pipe.stream(state=last.state, frames=4 + more))
    assert after[0].first == last.state.frame == 4
    assert_identical(film(before + after), whole)


def test_film_that_ends_amid_frames_which_are_ready_together_goes_on_with_the_next():
    """At 25 frames a second a block of Griffin-Lim's is two and a half of them."""
    pipe = pipeline(vocoder="griffin-lim", fps=25)
    whole = list(pipe.stream(y=0, frames=9))
    assert max(len(chunk.v) for chunk in whole) > 1
    for end in (5, 6, 7):
        *_, last = before = list(pipe.stream(y=0, frames=end))
        after = list(pipe.stream(state=last.state, frames=9))
        assert last.first + len(last.v) == after[0].first == end
        assert_identical(film(before + after), film(whole))


def test_film_that_shall_not_go_on_has_its_whole_sound_without_another_frame(any_pipe):
    streams = Streams(any_pipe, resumable=False)
    streams.join("", any_pipe.new_stream(y=0), 6)
    chunks, steps = [], 0
    for ready in streams.steps():
        chunks, steps = chunks + [chunk for _, chunk in ready], steps + 1
    assert steps == 2 * (T + 5) and len(film(chunks).wave) == 6 * SIZE


@pytest.mark.parametrize("steps", [3, 2 * T + 4, 2 * T + 9])
def test_fork_is_the_same_until_the_first_frame_that_was_not_yet_in_the_window(pipe, steps, tmp_path):
    streams = Streams(pipe)
    streams.join("", pipe.new_stream(3, y=1, seed=4))
    stepped(streams, steps)
    state = streams.leave("")
    whole, same, other = (film(pipe.stream(state=s, frames=11)) for s in (state, state.forked(4), state.forked(5)))
    assert_identical(whole, same)
    new = int(state.window.first) + T - whole.first
    assert whole.v[:new].equal(other.v[:new]) and whole.a[:new].equal(other.a[:new])
    assert not any(one.allclose(two) for one, two in zip(whole.v[new:], other.v[new:]))
    assert not any(one.allclose(two) for one, two in zip(whole.a[new:], other.a[new:]))
    heard = new * SIZE - pipe.codec.vocoder.context * 160
    assert whole.wave[:heard].equal(other.wave[:heard]) and not whole.wave[heard:].allclose(other.wave[heard:])


# ------------------------------------------------------------------------------------------------- changes on the way


def rolled_by_hand(pipe, window, plan):
    """Latents v of a window that takes (n, steps) after (n, steps); between them its step is counted anew."""
    made, before = [], plan[0][0]
    for n, steps in plan:
        window = replace(window, step=window.step // before * n)
        for _ in range(steps):
            window, emitted = advance(window, pipe.velocity(), n)
            made += [emitted.v] if emitted else []
        before = n
    return torch.cat(made)


@pytest.mark.parametrize("frames_before", [2, T, T + 3], ids=["pre-rolling", "first frame", "rolling"])
@pytest.mark.parametrize(("n", "m"), [(2, 3), (4, 1)])
def test_number_of_steps_changed_at_a_frame_boundary_is_a_roll_by_hand(exact, frames_before, n, m):
    start, steps = exact.new_stream(y=1, seed=2), n * frames_before
    streams = Streams(exact, num_timesteps=n, sound=False)
    streams.join("", start)
    before = stepped(streams, steps).get("", [])
    after = list(exact.stream(state=streams.leave(""), frames=T + 2, num_timesteps=m, sound=False))
    expected = rolled_by_hand(exact, start.window, [(n, steps), (m, m * (2 * T + 1 - frames_before))])
    torch.testing.assert_close(film(before + after).v, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [3, 2 * T + 1])
def test_number_of_steps_cannot_change_between_frames(pipe, steps):
    streams = Streams(pipe)
    streams.join("", pipe.new_stream(y=0))
    stepped(streams, steps)
    state = streams.leave("")
    with pytest.raises(
        ValueError, match=r"cannot change from 2 to 3 at step \d of this window; change it at a frame b"
    ):
        Streams(pipe, num_timesteps=3).join("", state)


def test_schedule_gives_each_frame_its_class_and_changes_no_earlier_frame(pipe):
    def schedule(frame):
        return 0 if frame < 4 else 2 if frame < 7 else 1

    streams, calls = Streams(pipe), []
    model = streams.velocity

    def watched(v, a, t, y):
        calls.append((streams.window.frames[:, : v.shape[1]], y))
        return model(v, a, t, y=y)

    streams.velocity = watched
    streams.join("", pipe.new_stream(y=0), 9, labels=schedule)
    scheduled, constant = film(chunk for _, chunk in streams), film(pipe.stream(y=0, frames=9))
    assert calls[-1][0][0, 0] >= 8  # every frame went through the model, under no class but its own
    assert all(y.tolist() == [[schedule(k) for k in frames[0].tolist()]] for frames, y in calls)
    assert scheduled.v[:4].equal(constant.v[:4]) and scheduled.a[:4].equal(constant.a[:4])
    assert not any(one.allclose(two) for one, two in zip(scheduled.v[4:], constant.v[4:]))
    again = film(pipe.stream(state=resumed_at(pipe, 2 * T + 5, schedule), frames=9, sound=False))
    assert not again.v[-1].allclose(scheduled.v[-1])  # without the schedule the last class goes on
    streams.join("", resumed_at(pipe, 2 * T + 5, schedule), 9, labels=schedule)
    resumed = film(chunk for _, chunk in streams)
    assert resumed.v.equal(since(scheduled, resumed.first).v)


def resumed_at(pipe, steps, labels):
    """The state of a stream under a schedule after some steps."""
    streams = Streams(pipe)
    streams.join("", pipe.new_stream(y=0), labels=labels)
    stepped(streams, steps)
    return streams.leave("")


def test_sound_that_was_off_for_a_while_comes_back_in_step(any_pipe):
    """What waits for the vocoder when sound goes off is given out without it, and is no part of what comes later."""
    streams = Streams(any_pipe)
    streams.join("", any_pipe.new_stream(y=0))
    heard = stepped(streams, 2 * T + 10)[""]
    silent = Streams(any_pipe, sound=False)
    silent.join("", streams.leave(""))
    unheard = stepped(silent, 6)[""]
    back = list(any_pipe.stream(state=silent.leave(""), frames=12))
    assert not any(len(chunk.wave) for chunk in unheard)
    assert all(len(chunk.wave) == len(chunk.v) * SIZE for chunk in heard + back)
    chunks = [*heard, *unheard, *back]
    assert [c.first + len(c.v) for c in chunks[:-1]] == [c.first for c in chunks[1:]]
    assert film(chunks).v.equal(film(any_pipe.stream(y=0, frames=12)).v)


@pytest.mark.parametrize("n", [1, 4])
def test_steps_per_frame_change_while_streams_run(exact, n):
    running, stopped = Streams(exact), Streams(exact)
    for streams in (running, stopped):
        streams.join("", exact.new_stream(y=0, seed=4))
        stepped(streams, 2 * T + 4)
    running.retime(n)
    resumed = Streams(exact, num_timesteps=n)
    resumed.join("", stopped.leave(""))
    assert_identical(film(stepped(running, 5 * n)[""]), film(stepped(resumed, 5 * n)[""]))


def test_steps_per_frame_do_not_change_in_mid_frame(pipe):
    streams = Streams(pipe)
    streams.join("", pipe.new_stream())
    stepped(streams, 2 * T + 3)
    with pytest.raises(ValueError, match="cannot change from 2 to 1 in mid-frame"):
        streams.retime(1)


def test_a_running_stream_is_given_a_sound_and_loses_it_again(exact):
    """From then on the sound of the window's frames is the given one; before, and once it is gone, it is generated."""
    streams, given = Streams(exact), torch.randn(40, *exact.model.frame_shapes[1])
    streams.join("", exact.new_stream(y=0))
    chunks = stepped(streams, 2 * T + 4).get("", [])
    at = int(streams.window.first)
    streams.give("", {Modality.AUDIO: lambda frame: given[frame]})
    chunks += stepped(streams, 12)[""]
    streams.give("", {})
    chunks += stepped(streams, 2 * T + 8)[""]
    a = film(chunks).a
    fixed = [bool((a[k].float() - given[k]).abs().max() < 1e-6) for k in range(len(a))]
    assert fixed == [at <= k < at + 6 for k in range(len(a))]


# ------------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("frames", [1, T, 11])
def test_chunks_follow_each_other_and_hold_exactly_their_sound(any_pipe, frames):
    chunks = list(any_pipe.stream(y=0, frames=frames))
    assert all(len(c.wave) == len(c.frames) * SIZE and len(c.frames) == len(c.v) == len(c.a) > 0 for c in chunks)
    assert chunks[0].first == 0 and all(two.first == one.first + len(one.v) for one, two in pairwise(chunks))
    assert sum(len(c.frames) for c in chunks) == frames


def test_without_sound_or_picture_the_other_stays_as_it_is(pipe):
    both, seen, heard = (film(pipe.stream(y=0, frames=8, **how)) for how in ({}, {"sound": False}, {"picture": False}))
    assert seen.frames.equal(both.frames) and seen.wave.shape == (0,)
    assert heard.wave.equal(both.wave) and heard.frames.numel() == 0
    assert all(part.v.equal(both.v) and part.a.equal(both.a) for part in (seen, heard))


def test_picture_without_sound_waits_for_nothing(pipe):
    assert [len(chunk.v) for chunk in pipe.stream(y=0, frames=8, sound=False)] == [1] * 8


# -------------------------------------------------------------------------------------------- real clips that go on


def clip(pipe, frames, seed=0):
    """A noisy picture in [-1,1] and sound with its context."""
    rng = torch.Generator().manual_seed(seed)
    picture = torch.rand(frames, 3, 16, 16, generator=rng) * 2 - 1
    return picture, 0.3 * torch.randn(frames * SIZE + 2 * pipe.codec.context, generator=rng)


@pytest.mark.parametrize("frames", [1, T - 1, T, T + 3])
def test_past_comes_out_as_it_was_encoded_and_the_stream_goes_on(any_pipe, frames):
    picture, wave = clip(any_pipe, frames)
    mean, _, a = any_pipe.codec.encode(picture[None], wave[None])
    made = film(any_pipe.stream(state=any_pipe.extending(picture, wave, y=1), frames=frames + 6))
    past = min(frames, T)
    assert made.first == frames - past and len(made.v) == past + 6
    assert made.v[:past].equal(mean[0, -past:]) and made.a[:past].equal(a[0, -past:])
    assert made.frames[:past].equal(any_pipe.codec.decode_frames(mean)[0, -past:])
    assert len(made.wave) == (past + 6) * SIZE and made.v.isfinite().all()


def test_past_that_fills_the_window_needs_no_pre_rolling(pipe):
    for frames, steps in ((T, 2), (T - 1, 2 * T)):
        streams = Streams(pipe, sound=False)
        streams.join("", pipe.extending(*clip(pipe, frames), y=1))
        assert not stepped(streams, steps - 1) and len(stepped(streams, 1)[""]) == 1


def test_sound_of_an_extended_clip_is_that_of_its_whole_mel(pipe):
    made = film(pipe.stream(state=pipe.extending(*clip(pipe, T), y=1), frames=T + 6, resumable=False))
    assert_close_by_size(made.wave, pipe.codec.vocoder(pipe.codec.mel(made.a[None]))[0])


@pytest.mark.parametrize("frames", [2, T + 3])
def test_first_new_frame_follows_from_the_picture_and_from_the_sound_of_the_past(pipe, frames):
    (picture, wave), (other_picture, other_wave) = clip(pipe, frames), clip(pipe, frames, seed=1)
    pasts = [(picture, wave), (other_picture, wave), (picture, other_wave)]
    one, *others = (film(pipe.stream(state=pipe.extending(*p, y=1), frames=frames + 1)) for p in pasts)
    assert not any(one.v[-1].allclose(two.v[-1]) or one.a[-1].allclose(two.a[-1]) for two in others)


@pytest.mark.parametrize("frames", [2, T, T + 3])
def test_past_is_shown_on_the_line_from_its_own_noise_at_the_times_of_the_schedule(exact, frames):
    """As in training. The same noise process goes on: a new frame begins at the noise of its place in the stream."""
    state, calls, streams = exact.extending(*clip(exact, frames), sample=3, y=1, seed=6), [], Streams(exact)
    model = streams.velocity

    def watched(v, a, t, **conditions):
        calls.append((streams.window.frames[0].tolist(), v[0], a[0], t[0]))
        return model(v, a, t, **conditions)

    streams.velocity = watched
    streams.join("", state, frames + 2)
    film(chunk for _, chunk in streams)
    checked = 0
    for places, v, a, t in calls:
        for frame, *shown, time in zip(places, v, a, t):
            fresh = frame >= frames and time == 0
            for x, data, modality in zip(shown, (state.past.v, state.past.a), (Modality.VIDEO, Modality.AUDIO)):
                eps = frame_noise(6, 3, frame, modality, tuple(x.shape)).double()
                if frame < frames or fresh:
                    clean = eps if fresh else data[frame - state.past.first].double()
                    expected = interpolate(clean[None, None], eps[None, None], time[None, None])[0, 0]
                    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
                    checked += 1
    assert checked > 2 * frames


@pytest.mark.parametrize("frames", [T - 1, T + 3])
def test_extended_clip_resumed_while_its_past_is_in_the_window_goes_on_bit_for_bit(pipe, frames, tmp_path):
    start = pipe.extending(*clip(pipe, frames), y=1)
    whole = film(pipe.stream(state=start, frames=frames + 5))
    streams = Streams(pipe)
    streams.join("", start, frames + 5)
    with_past = []
    while streams.rows:
        state = streams.state("")
        with_past.append(state.past is not None)
        state.save(tmp_path / "state")
        resumed = film(pipe.stream(state=StreamState.load(tmp_path / "state")[0], frames=frames + 5))
        assert_identical(resumed, since(whole, resumed.first))
        stepped(streams, 7)
    assert with_past[0] and not with_past[-1] and sorted(with_past, reverse=True) == with_past


def test_fork_leaves_the_noise_of_its_real_frames_as_it_is(pipe):
    """So what is in the window already comes out as without the fork, and differs from the first new frame on."""
    streams = Streams(pipe)
    streams.join("", pipe.extending(*clip(pipe, T + 3), y=1))
    stepped(streams, 2)  # one frame has entered, three real ones are left
    state = streams.state("")
    inside = int(state.window.first) + T - state.frame
    whole, fork = (film(pipe.stream(state=s, frames=T + 9)) for s in (state, state.forked(7)))
    assert state.past and fork.v[:inside].equal(whole.v[:inside]) and fork.a[:inside].equal(whole.a[:inside])
    assert not (fork.v[inside] == whole.v[inside]).any()


def test_clip_given_from_its_middle_keeps_its_place_in_the_stream(pipe):
    picture, wave = clip(pipe, T + 3)
    context = pipe.codec.context
    whole = film(pipe.stream(state=pipe.extending(picture, wave, y=1), frames=T + 8))
    late = pipe.extending(picture[3:], wave[3 * SIZE :], before=3, y=1)
    assert late.frame == 3 and len(wave[3 * SIZE :]) == T * SIZE + 2 * context
    made = film(pipe.stream(state=late, frames=T + 8))
    torch.testing.assert_close(made.v, whole.v, rtol=0, atol=1e-4)
    torch.testing.assert_close(made.a, whole.a, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- state files


def size_of(state, path):
    """Bytes of a state on disk, and of the memory that it keeps alive."""
    state.save(path)
    tensors = [*vars(state.window).values(), state.v, state.a, state.sound, *state.voice.values()]
    return path.stat().st_size, sum(x.untyped_storage().nbytes() for x in tensors if x is not None)


def test_state_does_not_grow_in_40_frames(any_pipe, tmp_path):
    chunks = any_pipe.stream(y=0, num_timesteps=1, picture=False)
    sizes = [size_of(chunk.state, tmp_path / "state") for chunk in islice(chunks, 5, 40, 6)]
    assert len(sizes) == 6 and len({on_disk for on_disk, _ in sizes}) == 1
    assert max(memory for _, memory in sizes) <= 1.1 * sizes[0][1]


def test_state_of_the_papers_model_is_under_half_a_megabyte(tmp_path):
    """Latents, mel and window of FLAV-B/1 behind a network of one block; Griffin-Lim's state is the larger one."""
    spec = AVSpec(image_size=256, codec="sd-vae", vocoder="griffin-lim", class_names=("x",))
    model = FLAV(latent_size=32, patch_size=8, in_channels=4, num_classes=1, hidden_size=8, depth=1, num_heads=1)
    codec = AVCodec(spec, SimpleNamespace(channels=4, factor=8, to=lambda device: None), GriffinLim(256, iterations=3))
    chunks = AVPipeline(model, codec).stream(y=0, num_timesteps=1, picture=False)
    assert all(size_of(chunk.state, tmp_path / "state")[0] < 500_000 for chunk in islice(chunks, 4))


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    """The bytes of a state file that has everything in it."""
    streams = Streams(pipe)
    streams.join("", pipe.extending(*clip(pipe, T), y=1))
    stepped(streams, 5)
    path = tmp_path_factory.mktemp("saved") / "state"
    streams.state("").save(path, checksum=pipe.checksum)
    assert {"window.v", "past.v", "voice.mel"} <= load_file(path).keys()
    return path.read_bytes()


def read_or_refused(path, data) -> bool:
    """Whether a file is refused, in one sentence; anything but reading or refusing fails."""
    path.write_bytes(data)
    try:
        StreamState.load(path)
    except ValueError as error:
        assert str(path) in str(error) and "give one that --save-state wrote" in str(error) and "\n" not in str(error)
        return True
    return False


def mutations(data, rng, count):
    """Damaged copies: cut, lengthened, bytes changed in the header or anywhere, a stretch of zeros, a piece missing."""

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=rng))

    header = 8 + int.from_bytes(data[:8], "little")
    for i in range(count):
        at, end = draw(0, len(data)), draw(0, header)
        changed = bytearray(data)
        changed[draw(0, 8) if i % 4 else end] ^= 1 << draw(0, 8)
        yield (
            data[:at],
            data + bytes(at % 99 + 1),
            bytes(changed),
            data[:end] + bytes([draw(0, 256)]) + data[end + 1 :],
            data[:end] + bytes(draw(1, 40)) + data[end:],
            data[:at] + data[at + draw(1, 99) :],
            data[:end] + data[end + 1 :],
        )[i % 7]


def test_damaged_state_is_read_or_refused_in_a_sentence(saved, tmp_path):
    refused = [read_or_refused(tmp_path / "s", d) for d in mutations(saved, torch.Generator().manual_seed(0), 350)]
    assert sum(refused) > 250 and not read_or_refused(tmp_path / "s", saved)


def test_every_cut_of_a_state_is_refused(saved, tmp_path):
    cuts = [0, 1, 7, 8, 9, *range(100, len(saved), len(saved) // 40), len(saved) - 1]
    assert all(read_or_refused(tmp_path / "s", saved[:cut]) for cut in cuts)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"facts": "{"},
        {"facts": "[]"},
        {"facts": "null"},
        {"facts": '{"num_timesteps": "two"}'},
        {"facts": "{}"},
    ],
)
def test_file_that_is_no_state_is_refused(saved, tmp_path, metadata):
    (tmp_path / "good").write_bytes(saved)
    tensors = load_file(tmp_path / "good")
    assert read_or_refused(tmp_path / "s", save(tensors, metadata))
    assert read_or_refused(tmp_path / "s", save({"weight": torch.zeros(3)}, metadata))
    assert read_or_refused(tmp_path / "s", b"\xff\xd8 a picture" * 9)


@pytest.mark.parametrize("name", ["window.v", "window.first", "window.seed", "v", "sound", "past.a"])
def test_state_without_one_of_its_parts_is_refused(saved, tmp_path, name):
    (tmp_path / "good").write_bytes(saved)
    tensors = load_file(tmp_path / "good")
    del tensors[name]
    facts = {"num_timesteps": 2, "past_first": 0}
    assert read_or_refused(tmp_path / "s", save(tensors, {"facts": json.dumps(facts)}))


def test_saving_that_fails_leaves_the_old_state(pipe, tmp_path, monkeypatch):
    state = pipe.new_stream(y=0)
    state.save(tmp_path / "state", turn=1)
    monkeypatch.setattr("pathlib.Path.write_bytes", half_written)
    with pytest.raises(OSError, match="disk full"):
        state.save(tmp_path / "state", turn=2)
    assert StreamState.load(tmp_path / "state")[1]["turn"] == 1


def half_written(path, data):
    with path.open("wb") as file:
        file.write(data[:100])
    raise OSError("disk full")


# ----------------------------------------------------------------------------------------------------------- checksum


def test_checksum_tells_apart_models_that_differ_in_one_weight(pipe):
    other = pipeline()
    assert other.checksum == pipe.checksum
    for name, weight in other.model.state_dict().items():
        before = weight.clone()
        weight.view(-1)[-1] += 1e-3
        assert AVPipeline(other.model, other.codec).checksum != pipe.checksum, (name, weight.shape)
        weight.copy_(before)
    assert AVPipeline(other.model, other.codec).checksum == pipe.checksum


@pytest.mark.parametrize("fact", [dict(audio_scale=2.5), dict(class_names=("x", "z", "y")), dict(step=1)])
def test_checksum_tells_apart_checkpoints_that_differ_in_one_fact(pipe, fact):
    assert pipeline(**fact).checksum != pipe.checksum


def test_checksum_does_not_know_where_the_codec_came_from(pipe):
    assert pipeline(codec_source="elsewhere").checksum == pipe.checksum
