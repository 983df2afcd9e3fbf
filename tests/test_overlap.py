"""Streams in threads: the same to the bit, never far ahead, in order; errors and early ends leave nothing behind."""

import signal
import threading
import time
import traceback
from contextlib import closing
from dataclasses import fields, is_dataclass
from itertools import islice

import pytest
from torch import Tensor

from diffusion.guidance import Guidance
from diffusion.noise import Modality
from pipeline import AVPipeline, Streams, StreamState
from pipeline.overlap import overlapped_steps
from tests.test_streams import T, clip, known, pipeline

FAR = 5.0  # s, after which what should happen at once does not happen


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before, threading.enumerate()


def one_stream(pipe, frames=None, **how):
    streams = Streams(pipe, **how)
    streams.join("one", pipe.new_stream(3, y=1, seed=4), frames)
    return streams


def of_different_age(pipe, **how):
    """Streams that joined one after the other: with labels, extended, given a sound; three with an end, one without."""
    streams = Streams(pipe, **how)
    given = known(Modality.AUDIO, pipe.model.frame_shapes[1], 5)
    for name, state, more in (
        ("labels", pipe.new_stream(0, y=0), dict(frames=7, labels=lambda frame: frame // 3 % 3)),
        ("extended", pipe.extending(*clip(pipe, T + 2), sample=1, y=1), dict(frames=T + 6)),
        ("given", pipe.new_stream(2, y=2, seed=8), dict(frames=T + 2, given=given)),
        ("endless", pipe.new_stream(3, y=0), {}),
    ):
        streams.join(name, state, **more)
        for _ in range(3):
            streams.step()
    return streams


def same(one, two) -> bool:
    """Whether two values are the same in type and to the bit, through lists, dicts and dataclasses."""
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and one.equal(two)
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def overlapped(streams, depth=2):
    """Chunks of all streams, overlapped, as iterating over `streams` gives them."""
    with closing(overlapped_steps(streams, depth)) as steps:
        for chunks in steps:
            yield from chunks


def states(streams):
    return {name: streams.state(name) for name in streams.rows}


def comes_to(count, expected) -> bool:
    """Whether a count reaches a number and stays there."""
    deadline = time.monotonic() + FAR
    while count() < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    return count() == expected


def slowed(streams, seconds):
    """Make each call of the model take a while; a list that grows as they end."""
    velocity, ends = streams.velocity, []

    def slow(*args, **conditions):
        time.sleep(seconds)
        ends.append(True)
        return velocity(*args, **conditions)

    streams.velocity = slow
    return ends


# ------------------------------------------------------------------------------------------------------- the same


@pytest.mark.parametrize(
    "how",
    [{}, dict(num_timesteps=3, cfg_scale=1.5), dict(sound=False), dict(picture=False)],
    ids=["plain", "guided", "silent", "blind"],
)
def test_steps_their_chunks_and_states_are_those_of_the_serial_form_to_the_bit(pipe, how):
    serial, threaded = of_different_age(pipe, **how), of_different_age(pipe, **how)
    with closing(overlapped_steps(threaded)) as steps:
        for expected, got in islice(zip(serial.steps(), steps, strict=True), 36):
            assert same(got, expected) and same(states(threaded), states(serial))
    assert list(threaded.rows) == ["endless"]


def test_gradients_of_guidance_are_the_same_in_a_thread(pipe):
    serial, threaded = (one_stream(pipe, 6, guidance=Guidance(25.0), sound=False) for _ in range(2))
    for streams in (serial, threaded):
        streams.give("one", known(Modality.AUDIO, pipe.model.frame_shapes[1], 4))
    assert same(list(overlapped(threaded)), list(serial))


@pytest.mark.parametrize("depth", [1, 4])
def test_streams_that_end_give_the_same_at_any_depth(pipe, depth):
    serial, threaded = (of_different_age(pipe, resumable=False) for _ in range(2))
    for streams in (serial, threaded):
        streams.leave("endless")
    assert same(list(overlapped(threaded, depth)), list(serial))
    assert not threaded.rows and not threaded.waiting and threaded.window is None


def test_the_pipeline_streams_the_same_with_and_without(pipe):
    one, two = (list(pipe.stream(y=0, frames=7, overlap=overlap)) for overlap in (True, False))
    assert same(one, two)


def test_resuming_from_the_state_of_any_chunk_is_exact(pipe, tmp_path):
    whole = list(pipe.stream(y=0, frames=6))
    for i in range(len(whole) - 1):
        whole[i].state.save(tmp_path / "state")
        assert same(list(pipe.stream(state=StreamState.load(tmp_path / "state")[0], frames=6)), whole[i + 1 :])


def test_stages_and_the_caller_work_at_the_same_time(pipe, monkeypatch):
    """Each goes on only when another has begun something while it was waiting."""
    streams, called, decoded, seen = one_stream(pipe), *(threading.Event() for _ in range(3))
    slowed(streams, 0.05)  # so that it is not `depth` frames ahead before the first is decoded
    velocity, decode = streams.velocity, pipe.codec.decode_frames

    def denoising(*args, **conditions):
        called.set()
        return velocity(*args, **conditions)

    def decoding(v):
        called.clear()
        decoded.set()
        assert seen.is_set() or called.wait(FAR)
        return decode(v)

    streams.velocity = denoising
    monkeypatch.setattr(pipe.codec, "decode_frames", decoding)
    with closing(overlapped(streams, depth=4)) as chunks:
        next(chunks)
        decoded.clear()
        assert decoded.wait(FAR)
        seen.set()
        called.set()


# ------------------------------------------------------------------------------------------------- changes on the way


def changed(streams, steps, pipe):
    """All steps, between which streams come, go and change."""
    seen = []
    for i, chunks in enumerate(islice(steps, 60)):
        seen.append((chunks, states(streams)))
        if i == 4:
            streams.give("extended", known(Modality.VIDEO, pipe.model.frame_shapes[0], 99))
        if i == 7:
            streams.join("late", pipe.new_stream(7, y=2), 3)
        if i == 11:
            seen.append(streams.leave("endless"))
    return seen


def test_streams_join_leave_and_are_given_things_as_in_the_serial_form(pipe):
    serial, threaded = of_different_age(pipe), of_different_age(pipe)
    expected = changed(serial, serial.steps(), pipe)
    assert len(expected) > 20 and same(changed(threaded, overlapped_steps(threaded), pipe), expected)


def test_steps_per_frame_change_as_in_the_serial_form(pipe):
    def retimed(streams, chunks):
        for i, (_, chunk) in enumerate(chunks):
            yield chunk
            if i == 3:
                streams.retime(3)

    serial, threaded = one_stream(pipe, 8), one_stream(pipe, 8)
    expected = list(retimed(serial, serial))
    assert expected[-1].state.num_timesteps == 3
    assert same(list(retimed(threaded, overlapped(threaded))), expected)


def test_a_stream_that_joins_when_the_last_one_has_ended_is_made_too(pipe):
    streams, seen = one_stream(pipe, 3), []
    for name, chunk in overlapped(streams):
        seen.append(chunk)
        if name == "one" and not streams.rows:
            streams.join("two", pipe.new_stream(5, y=2), 4)
    expected = [*pipe.stream(sample=3, y=1, seed=4, frames=3), *pipe.stream(sample=5, y=2, frames=4)]
    assert same(seen, expected)


@pytest.mark.parametrize("steps", [3, 2 * T + 8])
def test_after_an_early_end_the_streams_stand_after_the_last_step_given_out(pipe, steps):
    serial, threaded = of_different_age(pipe), of_different_age(pipe)
    before = list(islice(serial.steps(), steps))
    with closing(overlapped_steps(threaded)) as ahead:
        assert same(list(islice(ahead, steps)), before)
    assert same(states(threaded), states(serial))
    assert same(threaded.step(), serial.step())
    assert same(list(islice(overlapped_steps(threaded), 9)), list(islice(serial.steps(), 9)))


# ------------------------------------------------------------------------------------------------------ back-pressure


@pytest.mark.parametrize(("depth", "n"), [(1, 2), (2, 2), (3, 1)])
def test_a_slow_caller_is_never_more_than_depth_frames_behind(pipe, monkeypatch, depth, n):
    made, denoise = [], Streams.denoise
    monkeypatch.setattr(Streams, "denoise", lambda self: made.extend(new := denoise(self)) or new)
    streams = one_stream(pipe, num_timesteps=n, sound=False)
    with closing(overlapped(streams, depth)) as chunks:
        for taken in range(1, 5):
            next(chunks)
            assert comes_to(lambda: len(made), taken + depth)


# ------------------------------------------------------------------------------------------------------------- errors


class Broken(Exception):
    """Of a test."""


def breaking(work, at):
    """The function, which fails once, at a call; and the numbers of its calls."""
    calls = []

    def breaks(*args, **how):
        calls.append(len(calls))
        if len(calls) == at:
            raise Broken("here")
        return work(*args, **how)

    return breaks, calls


@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_an_error_comes_after_all_that_was_made_before_it_and_the_streams_can_go_on(pipe, monkeypatch, stage):
    expected, streams, seen = list(one_stream(pipe, 6)), one_stream(pipe, 6), []
    if stage == "denoise":
        streams.velocity, _ = breaking(streams.velocity, at=2 * T + 5)
    else:
        broken, _ = breaking(pipe.codec.decode_frames, at=3)
        monkeypatch.setattr(pipe.codec, "decode_frames", broken)
    with pytest.raises(Broken, match="here") as error:
        for chunk in overlapped(streams):
            seen.append(chunk)
            time.sleep(0.1)  # the error has happened long before it is seen
    assert "breaks" in [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    assert len(seen) == 2 and same(seen + list(overlapped(streams)), expected)


def test_nothing_is_denoised_after_an_error(pipe):
    streams = one_stream(pipe)
    streams.velocity, calls = breaking(streams.velocity, at=3)
    with pytest.raises(Broken), closing(overlapped_steps(streams, depth=8)) as steps:
        next(steps)
        assert comes_to(lambda: len(calls), 3)
        list(steps)


def test_an_error_of_the_caller_ends_the_threads(pipe):
    with pytest.raises(Broken):
        for i, _ in enumerate(pipe.stream(y=0, overlap=True)):
            if i == 2:
                raise Broken


# --------------------------------------------------------------------------------------------------------- early ends


def test_closing_waits_for_the_call_that_is_running_and_for_no_other(pipe):
    streams = one_stream(pipe)
    ends = slowed(streams, 0.5)
    steps = overlapped_steps(streams, depth=10)
    next(steps)
    steps.close()
    ended = len(ends)
    assert ended <= 3 and comes_to(lambda: len(ends), ended)


def test_iterating_that_is_broken_off_ends_the_threads(pipe):
    before = threading.active_count()
    for _ in pipe.stream(y=0, overlap=True):
        assert threading.active_count() == before + 2
        break
    assert threading.active_count() == before
    unused = pipe.stream(y=0, overlap=True)
    assert threading.active_count() == before
    unused.close()


@pytest.fixture
def heard():
    """SIGINT as Python hears it, also where tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_waiting_for_a_step_ends_the_threads(pipe, heard):
    streams = one_stream(pipe, frames=99)
    velocity, calls = streams.velocity, []

    def interrupting(*args, **conditions):
        calls.append(len(calls))
        if len(calls) == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # wakes it, as _thread's would not
            time.sleep(1)
        return velocity(*args, **conditions)

    streams.velocity = interrupting
    with pytest.raises(KeyboardInterrupt):
        for _ in overlapped(streams):
            pass
    assert len(calls) <= 6 and comes_to(lambda: len(calls), len(calls))


# --------------------------------------------------------------------------------------------------------------- CUDA


@pytest.mark.gpu
def test_on_cuda_chunks_are_the_serial_ones_in_pinned_memory():
    small = pipeline()
    pipe = AVPipeline(small.model, small.codec, "cuda")
    serial, threaded = of_different_age(pipe), of_different_age(pipe)
    with closing(overlapped_steps(threaded)) as steps:
        for expected, got in islice(zip(serial.steps(), steps, strict=True), 50):
            for (_, one), (_, other) in zip(expected, got, strict=True):
                assert other.frames.is_pinned() and other.wave.is_pinned() and other.first == one.first
                assert other.v.equal(one.v) and other.a.equal(one.a) and same(other.state, one.state)
                assert other.frames.equal(one.frames.cpu()) and other.wave.equal(one.wave.cpu())
