"""The model's call as a CUDA graph: one launch a step instead of one for each of its kernels."""

from collections import Counter
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from models.flav import FLAV, Conditioned

MET = 2  # calls of a shape before it is captured: at n = 2 pre-rolling meets each length twice, and maybe never again
MOST = 32  # graphs of a model, each with buffers of its own; shapes met later run as ever
ALONE = Lock()  # a process may capture one graph at a time, and buffers serve one call at a time

Capture = Callable[[Callable[[], tuple[Tensor, ...]]], tuple[Callable[[], None], tuple[Tensor, ...]]]


class Graphed:
    """A FLAV, called as such, whose calls are replayed once some like them were met.

    Alike are calls of the same shapes, with t_a or without. Those that need a gradient, have a memory (`kept`) or no
    `conditions` at hand run as ever. The weights must stay where they are in memory.

    Args:
        capture: does a call once and returns what does it again, and where that leaves its results.
    """

    def __init__(self, model: FLAV, capture: Capture):
        self.model, self._capture, self._met, self._graphs = model, capture, Counter(), {}

    def __call__(
        self,
        v: Tensor,
        a: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        t_a: Tensor | None = None,
        conditions: Conditioned | None = None,
        kept=None,
        **more,
    ) -> tuple[Tensor, Tensor]:
        """As `FLAV.forward`."""
        if conditions is not None and kept is None and not torch.is_grad_enabled():
            inputs = (v, a, t, *conditions.rows, *([] if t_a is None else [t_a]))
            with ALONE:
                if graph := self._graph_for(inputs):
                    return _replayed(*graph, inputs)
        return self.model(v, a, t, y, t_a, conditions=conditions, kept=kept, **more)

    def _graph_for(self, inputs: tuple[Tensor, ...]) -> tuple | None:
        """Buffers for such inputs, what replays the model on them, and where it leaves its velocities."""
        key = tuple((x.shape, x.dtype) for x in inputs)
        if key not in self._graphs:
            self._met[key] += 1
            if self._met[key] <= MET or len(self._graphs) == MOST:
                return None
            v, a, t, of_v, of_a, *t_a = buffers = [x.clone() for x in inputs]
            graph = self._capture(lambda: self.model(v, a, t, None, *t_a, conditions=self.model.parted(of_v, of_a)))
            self._graphs[key] = buffers, *graph
        return self._graphs[key]


def _replayed(buffers: list[Tensor], replay: Callable, results: tuple[Tensor, ...], inputs) -> tuple[Tensor, ...]:
    """The results for these inputs, in memory of their own: the next replay writes over the graph's."""
    for buffer, x in zip(buffers, inputs):
        buffer.copy_(x, non_blocking=True)
    replay()
    return tuple(x.clone() for x in results)


class CUDAGraphs:
    """Captures calls as CUDA graphs on a device, in whichever thread asks for it. Not verified on a GPU yet.

    The graphs share their memory, so none may run beside another, nor be asked for results once another has run.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """As `Capture`."""
        with torch.cuda.device(self.device):
            now = torch.cuda.current_stream()
            self.stream.wait_stream(now)
            with torch.cuda.stream(self.stream):
                run()  # this thread's libraries begin and choose their kernels, which is forbidden in a capture
            now.wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self.pool, self.stream, "thread_local"):  # another thread may be decoding
                results = run()
        return graph.replay, results
