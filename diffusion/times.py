"""Flow time of each frame of a window: in training (R-FLAV, Eq. 6-8) and, in whole steps, in sampling."""

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from diffusion.pace import check_pace, pace


def rolling_times(w: Tensor, T: int) -> Tensor:
    """Flow time of each window frame while rolling: t_k = 1 - (k + w) / T (R-FLAV, Eq. 6).

    Args:
        w: (B,) phase in [0, 1]; 1 when a noise frame has just entered, 0 when frame 0 is clean.
        T: frames in the window (10 frames last 1 s at 10 fps).
    Returns:
        (B, T) in [0, 1], falling by exactly 1/T from frame to frame.
    Raises:
        ValueError: w is not one number per clip.
    """
    return 1 - (_frames(w, T) + rearrange(w, "b -> b 1")) / T


def pre_rolling_times(w: Tensor, T: int) -> Tensor:
    """Flow time of each window frame before the first is clean: t_k = clamp(1 - (k/T + w), 0, 1) (R-FLAV, Eq. 7).

    Args:
        w: (B,) phase in [0, 1]; 1 when all frames are noise, 0 when frame 0 is clean.
    Returns:
        (B, T); frames whose turn has not come wait at 0.
    """
    return (1 - (_frames(w, T) / T + rearrange(w, "b -> b 1"))).clamp(0, 1)


def draw_times(w: Tensor, pre_rolling: Tensor, T: int, margin: float = 0.0) -> Tensor:
    """Training times of a batch: pre-rolling where drawn so, rolling elsewhere (R-FLAV, Eq. 8).

    Args:
        w: (B,) uniform in [0, 1).
        pre_rolling: (B,) bool, true with probability theta = 0.2.
        margin: keep times in [margin, 1 - margin]; the released code takes 1e-6, ours needs none since the loss
            weight is zero at both ends.
    Returns:
        (B, T).
    """
    t = torch.where(rearrange(pre_rolling, "b -> b 1"), pre_rolling_times(w, T), rolling_times(w, T))
    return t.clamp(margin, 1 - margin)


def logit_normal_times(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Flow times of clips whose logit is Gaussian: t = sigmoid(mean + std Phi^-1(u)), as AV-Link draws them.

    Args:
        u: (B,) uniform in [0, 1).
    Returns:
        (B,) in (0, 1), as dense as `u`.
    """
    return torch.sigmoid(mean + std * torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12)))


@lru_cache(maxsize=32)
def sampling_times(T: int, n: float) -> Tensor:
    """Every time that sampling visits, by whole step: t_k(s) = clamp(s - n k, 0, n T) / (n T).

    Steps 0 .. n T pre-roll the window (w from 1 to 0 in Eq. 7). At step n T frame 0 is clean and leaves; the window
    is then at step n T - n, where Eq. 7 and Eq. 6 agree, and n further steps make the next frame clean.

    For n = 1/m the rows are those of n = 1, and a call goes on to the next multiple of m (`following`). At row T the
    first m frames leave together, so there all of them are clean: the last step of the k-th is k/T longer. The window
    is then at step T - m, its last m frames noise at t = 0, at the very times of Eq. 7.

    Returns:
        (n T + 1, T), for n = 1/m (T + 1, T), float64 on the CPU. Do not write to it: it is shared.
    Raises:
        ValueError: no steps, n neither whole nor 1/m, or T no multiple of m.
    """
    if T < 1 or n <= 0:
        raise ValueError(f"a window of {T} frames with num_timesteps {n} has no steps; both are at least 1")
    check_pace(n, T)
    unit, m = pace(n)
    s, k = torch.arange(unit * T + 1).unsqueeze(1), torch.arange(T)
    t = (s - unit * k).clamp(0, unit * T).double() / (unit * T)
    t[-1, :m] = 1
    return t


def following(step: Tensor, n: float) -> Tensor:
    """The row of `sampling_times` after a call: the next one, for n = 1/m the next multiple of m; (B,) -> (B,)."""
    m = pace(n)[1]
    return (step // m + 1) * m


def moving_frames(step: Tensor, n: float) -> Tensor:
    """How many leading frames of a window leave t = 0 by the end of this step: (B,) step -> (B,)."""
    return (following(step, n) - 1) // pace(n)[0] + 1


def _frames(w: Tensor, T: int) -> Tensor:
    if w.ndim != 1:
        raise ValueError(f"w has shape {tuple(w.shape)}, expected (B,): one phase per clip, not one per frame")
    return torch.arange(T, device=w.device, dtype=w.dtype)
