"""Whole clips: picture and sound on their lines from noise to data together, in any number of Euler steps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.flow import interpolate


@dataclass(frozen=True)
class Given:
    """A modality that is given: clean (B,...), its noise eps, drawn once.

    t: None to move it along its own line with the other (SyncFlow's V2A); or the flow time at which it is held while
    the other is made (AV-Link), where 1 shows it clean.
    """

    clean: Tensor
    eps: Tensor
    t: float | None = None

    def __post_init__(self):
        if self.t is not None and not 0 < self.t <= 1:
            raise ValueError(f"conditioning time {self.t} is not in (0, 1]; 1 shows the given side clean")

    def at(self, t: float) -> tuple[Tensor, float]:
        """What the model is shown of it when the other modality is at t, and the time of that."""
        t = t if self.t is None else self.t
        return interpolate(self.clean, self.eps, torch.full((len(self.clean),), t, dtype=torch.float64)), t


def sample_clip(
    velocity: Callable,
    v: Tensor,
    a: Tensor,
    steps: int,
    given_v: Given | None = None,
    given_a: Given | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> tuple[Tensor, Tensor]:
    """Clean picture and sound: x_1 = x_0 + sum over N steps of u(x_t, t) / N (SyncFlow, Eq. 1).

    Args:
        velocity: called as velocity(v, a, t, t_a=) -> (dv, da), with times (B,) float64 on the CPU; one of a modality
            that is given is not looked at.
        v, a: (B,...) noise. steps: N. given_v, given_a: modalities that are not made.
        progress: wraps the range of steps, as tqdm does.
    Raises:
        ValueError: there is no step, or nothing is left to make.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps make no clip; take at least 1")
    if given_v and given_a:
        raise ValueError("picture and sound are both given, so nothing is left to make; give one of them")
    for k in progress(range(steps)):
        v, t = given_v.at(k / steps) if given_v else (v, k / steps)
        a, t_a = given_a.at(k / steps) if given_a else (a, k / steps)
        t, t_a = (torch.full((len(v),), time, dtype=torch.float64) for time in (t, t_a))
        dv, da = velocity(v, a, t, t_a=t_a)
        v = v if given_v else v + dv.to(v.dtype) / steps
        a = a if given_a else a + da.to(a.dtype) / steps
    return given_v.clean if given_v else v, given_a.clean if given_a else a
