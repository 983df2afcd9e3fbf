"""One step along the flow: Euler, or Adams-Bashforth of second order, which looks one velocity of each frame back.

AB2 costs no call of the model more. What it looks back at is part of a `Window`: the velocity that each frame had last,
and the flow time at which it had it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.flow import per_frame
from diffusion.pace import SOLVERS
from diffusion.times import sampling_times

if TYPE_CHECKING:
    from diffusion.rolling import Window


def solved_by(window: Window, solver: str, n: float) -> Window:
    """The window as a solver needs it, "euler" or "ab2"; frames of which no velocity is known begin with Euler.

    Raises:
        ValueError: no such solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; choose {' or '.join(SOLVERS)}")
    if solver == "euler":
        return replace(window, dv=None, da=None, t_before=None)
    if window.dv is not None:
        return window
    t = sampling_times(window.T, n)[window.step]
    return replace(window, dv=torch.zeros_like(window.v), da=torch.zeros_like(window.a), t_before=t)


def weights(t: Tensor, t_next: Tensor, t_before: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What a step from t to t_next multiplies the present and the last velocity with, all (B,T).

    AB2 takes dt (1 + r/2) and -dt r/2 with r = dt / (t - t_before), 3/2 and -1/2 of dt where the steps are equal; a
    frame without a last velocity, at t = t_before, has r = 0, which is Euler. Euler, with t_before None, takes dt.
    """
    dt = t_next - t
    if t_before is None:
        return dt, None
    before = t - t_before
    half = dt * torch.where(before > 0, dt / before.where(before > 0, 1), 0) / 2
    return dt + half, -half


def moved(x: Tensor, dx: Tensor, dx_before: Tensor | None, weights: tuple[Tensor, Tensor | None]) -> Tensor:
    """x (B,T,...) after a step along its velocity, weighed as `weights` says."""
    now, before = weights
    x = x + per_frame(now, x) * dx
    return x if before is None else x + per_frame(before, x) * dx_before
