"""What autograd holds between a forward and a backward pass, measured by its hooks."""

import contextlib
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class Holder:
    """A tensor as autograd holds it; gone when autograd lets go."""

    def __init__(self, x: Tensor):
        self.x, self.copied = x.detach(), copies_a_parameter(x)  # with its graph an output would hold itself


@contextlib.contextmanager
def held(model: nn.Module) -> Iterator[Callable[[], tuple[int, int]]]:
    """Inside the block, a function that tells the bytes that autograd holds just then: (activations, copied weights).

    Each storage counts once, the model's own weights not at all.
    """
    own, holders = {p.untyped_storage()._cdata for p in model.parameters()}, []

    def pack(x: Tensor) -> Holder:
        holder = Holder(x)
        holders.append(weakref.ref(holder))
        return holder

    def told() -> tuple[int, int]:
        sizes = {False: {}, True: {}}
        for holder in filter(None, (ref() for ref in holders)):
            storage = holder.x.untyped_storage()
            if storage._cdata not in own:
                sizes[holder.copied][storage._cdata] = storage.nbytes()
        return tuple(sum(sizes[copied].values()) for copied in (False, True))

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.x):
        yield told


def copies_a_parameter(x: Tensor) -> bool:
    """Whether x is a parameter that autocast cast, seen through the transpose that a linear map saves."""
    node = x.grad_fn
    while node is not None and node.name() in ("TBackward0", "ToCopyBackward0"):
        node = node.next_functions[0][0]
    return node is not None and "AccumulateGrad" in node.name()
