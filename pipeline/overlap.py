"""Streams whose two stages run beside each other and beside who takes the chunks, each in a thread of its own."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import replace

import torch

from pipeline.streams import Chunk, Made, Streams


def steps_of(streams: Streams, overlap: bool | None = None) -> Iterator[list[tuple[str, Chunk]]]:
    """`streams.steps()`, overlapped if asked for; if not said, on a GPU: on a CPU a small model's threads wait for one
    interpreter.
    """
    overlap = streams.pipe.device.type != "cpu" if overlap is None else overlap
    return overlapped_steps(streams) if overlap else streams.steps()


def overlapped_steps(streams: Streams, depth: int = 2) -> Iterator[list[tuple[str, Chunk]]]:
    """`streams.steps()`, bit for bit, in two threads: one denoises, one decodes, while the caller does as it likes.

    They work on a copy, up to `depth` frames of each stream or one call ahead of the caller, and wait when he is slow.
    `streams` itself stands right after the step given out last, so all of its methods may be called between two steps
    and after an early end; a change (`join`, `leave`, `give`, `retime`, `step`) costs what was made ahead, which is
    made anew. `given` and `labels` are asked by the thread that denoises. On CUDA chunks have their frames and wave in
    pinned memory.

    Raises:
        whatever a stage raises, after all steps before the one that failed.
    """
    while streams.rows:
        yield from _until_changed(streams, depth)


def _until_changed(streams: Streams, depth: int) -> Iterator[list[tuple[str, Chunk]]]:
    """Steps until the last stream ends or the caller changes the streams."""
    ahead = copy(streams)
    calls, side = _calls(ahead), torch.cuda.Stream(ahead.pipe.device) if ahead.pipe.device.type == "cuda" else None
    threads = dict(initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))  # OpenMP counts per thread
    denoiser, decoder = pools = [ThreadPoolExecutor(1, name, **threads) for name in ("denoise", "decode")]

    def begun() -> Future:
        return decoder.submit(_finished, ahead, denoiser.submit(next, calls, None), side)

    try:
        steps = deque(begun() for _ in range(max(1, math.floor(depth * ahead.n))))
        while (step := steps.popleft().result()) is not None:
            place, chunks = step
            steps.append(begun())
            streams.go_to(place)
            yield chunks
            if streams.window is not place.window or streams.rows != place.rows:
                return
    finally:
        for wait in (False, True):  # no thread takes up another step; then the steps they are in come to their end
            for pool in pools:
                pool.shutdown(wait, cancel_futures=True)


def _calls(ahead: Streams) -> Iterator[tuple[Streams, list[Made], torch.cuda.Event | None]]:
    """First stages until the last stream ends or one fails: where they stand then, what is made, from when on."""
    device = ahead.pipe.device
    while ahead.rows:
        made = ahead.denoise()
        yield copy(ahead), made, torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def _finished(
    ahead: Streams, call: Future, side: torch.cuda.Stream | None
) -> tuple[Streams, list[tuple[str, Chunk]]] | None:
    """The second stage of a step once its first is done, and where the streams stand then; None after the last step."""
    if (denoised := call.result()) is None:
        return None
    place, made, event = denoised
    chunks = _finished_aside(ahead, made, event, side) if side else ahead.finish(made)
    place.waiting = ahead.waiting
    return place, chunks


def _finished_aside(
    ahead: Streams, made: list[Made], event: torch.cuda.Event, side: torch.cuda.Stream
) -> list[tuple[str, Chunk]]:
    """`Streams.finish` on a CUDA stream of its own, its chunks in pinned memory. Not verified on a GPU yet."""
    with torch.cuda.stream(side):
        side.wait_event(event)
        for x in (x for frame in made for x in (frame.v, frame.a)):
            x.record_stream(side)
        chunks = [(name, _pinned(chunk)) for name, chunk in ahead.finish(made)]
    side.synchronize()
    return chunks


def _pinned(chunk: Chunk) -> Chunk:
    """A chunk with its frames and wave on their way to pinned memory."""
    parts = {"frames": chunk.frames, "wave": chunk.wave}
    pinned = {name: torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for name, x in parts.items()}
    return replace(chunk, **{name: pinned[name].copy_(x, non_blocking=True) for name, x in parts.items()})
