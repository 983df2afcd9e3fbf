"""Corrections of the velocity: towards a class (classifier-free), towards a given modality (gradient)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffusion.flow import per_frame
from diffusion.known import Known
from diffusion.memory import Memory


def class_guided(model: Callable, scale: float, null_label: int | Tensor) -> Callable:
    """Classifier-free guidance: null + scale (conditional - null) for both modalities, in one doubled batch.

    At scale 1 this is the model itself, called once; where all labels are null it is called once too.

    Args:
        null_label: that guidance leads away from; of all rows, or (B,).
    """
    if scale == 1:
        return model
    null = torch.as_tensor(null_label).unsqueeze(-1)  # (1,) or (B,1)
    remembered = None, None  # a memory and its double, which stay the same for all steps of a frame

    def velocity(
        v: Tensor, a: Tensor, t: Tensor, y: Tensor, t_a: Tensor | None = None, memory: Memory | None = None
    ) -> tuple[Tensor, Tensor]:
        nonlocal remembered
        how = {} if memory is None else {"memory": memory}
        if (y == null).all():
            return model(v, a, t, y=y, t_a=t_a, **how)
        if memory is not None:
            if memory is not remembered[0]:
                remembered = memory, _doubled(memory, null)
            how = {"memory": remembered[1]}
        both = torch.cat([y, null.to(y).expand_as(y)])
        t_a = None if t_a is None else t_a.repeat(2, 1)
        dv, da = model(torch.cat([v, v]), torch.cat([a, a]), t.repeat(2, 1), y=both, t_a=t_a, **how)
        return tuple(_led(*x.chunk(2), scale) for x in (dv, da))

    return velocity


def clip_guided(model: Callable, scale: float, given: dict, both: dict) -> Callable:
    """Classifier-free guidance of whole clips: null + scale (given - null) for both modalities (SyncFlow, Eq. 3).

    At scale 1 the model is called once for each clip, else on a doubled batch.

    Args:
        model: called as model(v, a, t, t_a=, **conditions), with times (B,); its velocity of a side that is not made is
            None.
        given: conditions of the clips (B,...). both: those of the doubled batch, the null side after the given one.
    """
    if scale == 1:
        return partial(model, **given)

    def velocity(v: Tensor, a: Tensor, t: Tensor, t_a: Tensor) -> tuple[Tensor, Tensor]:
        velocities = model(torch.cat([v, v]), torch.cat([a, a]), t.repeat(2), t_a=t_a.repeat(2), **both)
        return tuple(None if x is None else _led(*x.chunk(2), scale) for x in velocities)

    return velocity


def _doubled(memory: Memory, null: Tensor) -> Memory:
    """The memory of both sides of guidance."""
    y = torch.cat([memory.y, null.to(memory.y).expand_as(memory.y)])
    return Memory(*(torch.cat([x, x]) for x in (memory.v, memory.a, memory.t)), y)


def _led(given: Tensor, base: Tensor, scale: float) -> Tensor:
    """A velocity led away from another."""
    return base + scale * (given - base)


def link_guided(linked: Callable, alone: Callable, scale: float) -> Callable:
    """Guidance by a given side: alone + scale (linked - alone) for the side that is made (AV-Link, App. C.2).

    Given side and text are dropped together by the tower that makes the side by itself, so its pass costs that tower
    alone. At scale 1 only the linked model is called.

    Args:
        linked, alone: called as f(v, a, t, t_a=) -> (dv, da), None for a side that is not made, the same one by both.
    """
    if scale == 1:
        return linked

    def velocity(v: Tensor, a: Tensor, t: Tensor, t_a: Tensor) -> tuple[Tensor | None, Tensor | None]:
        pairs = zip(linked(v, a, t, t_a=t_a), alone(v, a, t, t_a=t_a))
        return tuple(None if there is None else _led(there, base, scale) for there, base in pairs)

    return velocity


@dataclass(frozen=True)
class Guidance:
    """Gradient guidance of the generated modality by the known one's velocity error.

    scale: 25 per sample is the released 100 at its batch of 4. reduction: "sample" takes the mean error of each
    sample, so none depends on its neighbours; "batch" averages over the batch as the released code does.
    """

    scale: float = 25.0
    reduction: str = "sample"

    def __post_init__(self):
        if self.reduction not in ("sample", "batch"):
            raise ValueError(f"reduction {self.reduction!r} is unknown; choose sample or batch")


def guided_velocity(
    velocity: Callable,
    v: Tensor,
    a: Tensor,
    t: Tensor,
    known: tuple[Known | None, Known | None],
    moves: Tensor,
    guidance: Guidance,
    **conditions,
) -> tuple[Tensor, Tensor]:
    """Velocities with the generated modality's corrected by - scale * d(known modality's velocity error) / dx.

    Args:
        velocity: called as velocity(v, a, t, **conditions).
        known: what is known of video and audio; exactly one of them.
        moves: (B,T) frames that move in this step and do not become clean by it; only they are corrected.
    Raises:
        ValueError: both modalities or neither are known.
    """
    known_v, known_a = known
    if (known_v is None) == (known_a is None):
        raise ValueError("gradient guidance needs one given and one generated modality; give a sound or a picture")
    given = known_v or known_a
    x = (a if known_a is None else v).detach().requires_grad_(True)
    with torch.enable_grad():
        dv, da = velocity(v if known_a is None else x, x if known_a is None else a, t, **conditions)
        error = _known_error(dv if known_a is None else da, given)
        (gradient,) = torch.autograd.grad(error.sum(), x)
    if guidance.reduction == "batch":
        gradient = gradient / len(x)
    correction = guidance.scale * per_frame(moves, x) * gradient
    dv, da = dv.detach(), da.detach()
    return (dv, da - correction) if known_a is None else (dv - correction, da)


def _known_error(predicted: Tensor, known: Known) -> Tensor:
    """Each sample's mean squared velocity error over the known elements of its window, (B,)."""
    mask = per_frame(known.mask, predicted)
    squared = ((known.clean - known.eps - predicted) ** 2) * mask
    return squared.flatten(1).sum(1) / (mask.flatten(1).sum(1) * predicted[0, 0].numel()).clamp(min=1)
