"""Calls that are replayed: the same as the model's, whatever changes from call to call; the rest runs as ever."""

import threading
from contextlib import closing
from unittest.mock import patch

import pytest
import torch

from diffusion.guidance import Guidance
from diffusion.known import known_clip
from diffusion.noise import Modality
from models import FLAV
from pipeline import AVPipeline, Streams, graphed
from pipeline.graphed import CUDAGraphs, Graphed
from pipeline.overlap import overlapped_steps
from tests.randomised import randomised
from tests.test_streams import T, pipeline


class Recorder:
    """Stands in for CUDA graphs: replays a call by doing it again, into the results that it left at first."""

    def __init__(self):
        self.captures = self.replays = 0
        self.threads = set()

    def __call__(self, run):
        results = run()
        self.captures += 1
        self.threads.add(threading.current_thread().name)

        def replay():
            self.replays += 1
            for result, anew in zip(results, run()):
                result.copy_(anew)

        return replay, results


def recorded(**how):
    """A pipeline whose calls are replayed, its recorder, and the same pipeline without."""
    plain = pipeline()
    pipe, recorder = AVPipeline(plain.model, plain.codec, **how), Recorder()
    pipe._forward = Graphed(pipe.model, recorder)
    return pipe, recorder, AVPipeline(plain.model, plain.codec, **how)


def same(one, other):
    return all(x.equal(y) for x, y in zip((one.v, one.a), (other.v, other.a)))


@pytest.mark.parametrize("how", [{}, {"solver": "ab2"}, {"cfg_scale": 1.0}, {"num_timesteps": 0.5}], ids=str)
def test_clips_are_the_same_to_the_bit_and_the_second_one_needs_no_call_by_itself(how):
    pipe, recorder, plain = recorded()
    for seed, y in enumerate([torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([1, 1])]):
        captures, replays, calls = recorder.captures, recorder.replays, []
        hook = pipe.model.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        clips = pipe.sample([3, 5], 12, y, seed, **how)
        hook.remove()
        assert same(clips, plain.sample([3, 5], 12, y, seed, **how))
    assert recorder.captures == captures > 0 and recorder.replays - replays == len(calls)


def test_results_stay_when_the_next_call_writes_over_those_of_the_graph():
    pipe, recorder, _ = recorded()
    velocity, window = pipe.velocity(1.0), pipe.windows([0], 1)
    t = torch.full((1, T), 0.5, dtype=torch.float64)
    with torch.no_grad():
        seen = [velocity(k * window.v, window.a, t, y=window.y)[0] for k in range(graphed.MET + 2)]
        again = [velocity(k * window.v, window.a, t, y=window.y)[0] for k in range(graphed.MET + 2)]
    assert recorder.replays == 2 + len(again) and all(x.equal(y) for x, y in zip(seen, again))
    assert not seen[-1].equal(seen[-2])


def test_first_clip_of_two_steps_a_frame_captures_whole_windows_alone():
    pipe, recorder, _ = recorded()
    for _ in pipe.stream(frames=3, num_timesteps=2, cfg_scale=1.0):
        pass
    assert recorder.captures == 1 and recorder.replays > 0


def test_sound_at_times_of_its_own_is_another_call():
    pipe, recorder, plain = recorded()
    clean = known_clip(torch.randn(1, 20, *pipe.model.frame_shapes[1]), Modality.AUDIO, t=1.0)
    for _ in range(2):
        for given in (None, lambda window: (None, clean(window))):
            assert same(*(p.sample([0], 9, 1, known=given) for p in (pipe, plain)))
    assert recorder.captures == 2 * T  # of each length of the window


def test_gradients_memories_and_times_without_a_table_run_as_ever():
    pipe, recorder, plain = recorded()
    clean = known_clip(torch.randn(1, 20, *pipe.model.frame_shapes[1]), Modality.AUDIO)
    how = dict(known=lambda window: (None, clean(window)), guidance=Guidance(25.0))
    assert same(*(p.sample([0], 9, 1, **how) for p in (pipe, plain)))
    pipe.tables = plain.tables = False
    assert same(*(p.sample([0], 9, 1) for p in (pipe, plain)))
    remembering = randomised(FLAV(**plain.model._hub_mixin_config | {"memory_ages": [1, 3]}), 0.2)
    pipe = AVPipeline(remembering, plain.codec)
    pipe._forward = Graphed(pipe.model, recorder)
    assert same(*(p.sample([0], 9, 1) for p in (pipe, AVPipeline(remembering, plain.codec))))
    assert recorder.captures == 0


def test_no_more_shapes_are_captured_than_memory_is_meant_for(monkeypatch):
    monkeypatch.setattr(graphed, "MOST", 2)
    pipe, recorder, plain = recorded()
    for _ in range(2):
        assert same(*(p.sample([0], 12, 1) for p in (pipe, plain)))
    assert recorder.captures == 2


def test_thread_that_denoises_captures():
    pipe, recorder, plain = recorded()
    streams, serial = Streams(pipe), Streams(plain)
    for one in (streams, serial):
        one.join("one", one.pipe.new_stream(3, y=1, seed=4), 8)
    with closing(overlapped_steps(streams)) as steps:
        for expected, got in zip(serial.steps(), steps, strict=True):
            assert all(same(x, y) for (_, x), (_, y) in zip(expected, got, strict=True))
    assert recorder.replays and all(name.startswith("denoise") for name in recorder.threads)


def test_on_a_cpu_the_switch_does_nothing():
    plain = pipeline()
    assert AVPipeline(plain.model, plain.codec, graphs=True)._forward is plain.model


# --------------------------------------------------------------------------------------------------------------- CUDA


def test_capture_warms_up_before_it_and_lets_other_threads_go_on():
    """Torch's own classes stood in for, by their signatures: what a GPU does with it is for the next test."""
    names = ("Stream", "CUDAGraph", "graph", "device", "stream", "current_stream", "graph_pool_handle")
    said, calls = {}, []
    patches = {name: patch.object(torch.cuda, name, autospec=True) for name in names}
    for name, one in patches.items():
        said[name] = one.start()
    try:
        said["graph"].return_value.__enter__.side_effect = lambda *_: calls.append("begin")
        said["graph"].return_value.__exit__.side_effect = lambda *_: calls.append("end")
        capture = CUDAGraphs(torch.device("cuda", 1))
        replay, results = capture(lambda: calls.append("run") or ("dv", "da"))
    finally:
        for one in patches.values():
            one.stop()
    assert calls == ["run", "begin", "run", "end"] and results == ("dv", "da")
    assert replay == said["CUDAGraph"].return_value.replay and said["device"].call_args.args == (capture.device,)
    assert said["graph"].call_args.args[1:] == (capture.pool, capture.stream, "thread_local")
    assert capture.stream.wait_stream.call_args.args == (said["current_stream"].return_value,)
    assert said["current_stream"].return_value.wait_stream.call_args.args == (capture.stream,)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("overlap", [False, True])
def test_on_cuda_graphs_make_the_same_film(dtype, close, overlap):
    small = pipeline()
    plain, pipe = (AVPipeline(small.model, small.codec, "cuda", dtype, graphs=graphs) for graphs in (False, True))
    for seed in range(3):
        films = [list(p.stream(y=1, seed=seed, frames=12, overlap=overlap)) for p in (plain, pipe)]
        for one, other in zip(*films, strict=True):
            torch.testing.assert_close(other.v, one.v, rtol=0, atol=close)
            torch.testing.assert_close(other.a, one.a, rtol=0, atol=close)
    assert pipe._forward._graphs
