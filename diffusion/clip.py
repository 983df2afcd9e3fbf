"""Whole clips: picture and sound on their lines from noise to data together, in any number of Euler steps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.flow import interpolate, per_frame


@dataclass(frozen=True)
class Given:
    """A modality that is given: clean (B,T,...), its noise eps, drawn once.

    t: None to move it along its own line with the other (SyncFlow's V2A); or the flow time at which it is held while
    the other is made (AV-Link), where 1 shows it clean.
    mask: (B,T) bool, the frames or tokens that are given, of which the others are made; all if None.
    """

    clean: Tensor
    eps: Tensor
    t: float | None = None
    mask: Tensor | None = None

    def __post_init__(self):
        if self.t is not None and not 0 < self.t <= 1:
            raise ValueError(f"conditioning time {self.t} is not in (0, 1]; 1 shows the given side clean")
        if self.t is not None and self.mask is not None:
            raise ValueError(f"a part cannot be held at {self.t} while the rest of its clip moves; leave the time out")

    @property
    def whole(self) -> bool:
        """Whether nothing of it is left to make."""
        return self.mask is None

    def at(self, t: float, x: Tensor) -> tuple[Tensor, float]:
        """What the model is shown of it when what is made is at t, and the time of that.

        x: the modality as far as it is made.
        """
        t = t if self.t is None else self.t
        line = interpolate(self.clean, self.eps, torch.full((len(self.clean),), t, dtype=torch.float64))
        return (line if self.whole else torch.where(per_frame(self.mask, x).bool(), line, x)), t


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
            that is given whole is not looked at, and where it is None the modality stays as it is.
        v, a: (B,...) noise. steps: N. given_v, given_a: modalities, or parts of them, that are not made.
        progress: wraps the range of steps, as tqdm does.
    Raises:
        ValueError: there is no step, or nothing is left to make.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps make no clip; take at least 1")
    if given_v and given_a and given_v.whole and given_a.whole:
        raise ValueError("picture and sound are both given, so nothing is left to make; give one of them")
    given = given_v, given_a
    for k in progress(range(steps)):
        (v, t), (a, t_a) = (_shown(side, x, k / steps) for side, x in zip(given, (v, a)))
        t, t_a = (torch.full((len(v),), time, dtype=torch.float64) for time in (t, t_a))
        v, a = (_moved(side, x, dx, steps) for side, x, dx in zip(given, (v, a), velocity(v, a, t, t_a=t_a)))
    return tuple(side.clean if side and side.whole else _shown(side, x, 1.0)[0] for side, x in zip(given, (v, a)))


def _shown(given: Given | None, x: Tensor, t: float) -> tuple[Tensor, float]:
    """What the model sees of a modality at t, and at which time."""
    return given.at(t, x) if given else (x, t)


def _moved(given: Given | None, x: Tensor, dx: Tensor | None, steps: int) -> Tensor:
    """A modality after a step."""
    return x if dx is None or (given and given.whole) else x + dx.to(x.dtype) / steps
