"""Flow matching on straight lines from noise to data, and the loss over both modalities (R-FLAV, Eq. 1-5, 9, 10)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NEGLIGIBLE_WEIGHT = 1e-6  # the density underflows towards t = 0 and 1, and denormals make CPU kernels 4-8 times slower


class FlowLoss(NamedTuple):
    """total = video + audio; error_v, error_a (B, T): each frame's weighted squared velocity error, detached.

    Of a side that is not made all are zero.
    """

    total: Tensor
    video: Tensor
    audio: Tensor
    error_v: Tensor
    error_a: Tensor


def interpolate(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Point at time t on the line from noise to data: x_t = t x + (1 - t) eps (Eq. 1).

    Args:
        x, eps: (B,T,...); t: (B,T), taken in the dtype of x.
    """
    t = per_frame(t, x)
    return t * x + (1 - t) * eps


def per_frame(t: Tensor, x: Tensor) -> Tensor:
    """One number per frame, (B,T), shaped to multiply x (B,T,...), where x is and in its dtype."""
    return t.to(x.device, x.dtype, non_blocking=True).reshape(*t.shape, *[1] * (x.ndim - t.ndim))


def logit_normal_weight(t: Tensor) -> Tensor:
    """Density of the logit-normal(0, 1) distribution at t: exp(-logit(t)^2 / 2) / (sqrt(2 pi) t (1 - t)) (Eq. 5).

    0 at both ends, and wherever it is under `NEGLIGIBLE_WEIGHT`.
    """
    inside = t.clamp(1e-9, 1 - 1e-9) if t.dtype == torch.float64 else t.clamp(1e-7, 1 - 1e-7)
    density = torch.exp(-(inside.logit() ** 2) / 2) / (math.sqrt(2 * math.pi) * inside * (1 - inside))
    return density.where(density >= NEGLIGIBLE_WEIGHT, 0)


def uniform_weight(t: Tensor) -> Tensor:
    """Weight 1 everywhere: frames that still wait at t = 0 count too, as in the released code."""
    return torch.ones_like(t)


def noise_end_weight(t: Tensor) -> Tensor:
    """The logit-normal density plus (1 - t)^2 / 50: what the model makes of pure noise counts a little too.

    The density alone leaves it free there, where every frame begins, and what a small model then makes may overflow. A
    hundred times as much keeps it from that too, but the demo's pings then fall less on their bounces.
    """
    return logit_normal_weight(t) + 0.02 * (1 - t) ** 2


def data_error_weight(t: Tensor) -> Tensor:
    """(1 - t)^2 (4 x the logit-normal density + 1/2): what the error of the clean frame counts, not of the velocity.

    A velocity's error is that of the frame over 1 - t, so the density by itself counts a frame at t = 0.9 eighty
    times as much as one at 0.1, where it is decided what happens in it, such as where a ball is.
    """
    return (1 - t) ** 2 * (4 * logit_normal_weight(t) + 0.5)


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": logit_normal_weight,
    "logit-noise": noise_end_weight,
    "data": data_error_weight,
    "uniform": uniform_weight,
}


def flow_loss(
    model: Callable,
    v: Tensor,
    a: Tensor,
    y: Tensor | None,
    times: Tensor | tuple[Tensor, Tensor],
    noise: tuple[Tensor, Tensor],
    weight: Callable[[Tensor], Tensor] = logit_normal_weight,
    y_a: Tensor | None = None,
    shares: tuple[Tensor, Tensor] | None = None,
    **conditions,
) -> FlowLoss:
    """Weighted squared error of the predicted velocity, video term + audio term (Eq. 9, 10).

    Args:
        model: called as model(v_t, a_t, t, y=, t_a=, y_a=) -> (dv, da), with `conditions` such as text; None is the
            velocity of a side that is not made, and one of fewer frames that of the last ones, after a memory.
        v: (B,T,C,H,W) and a: (B,T,S,M) clean frames; y: (B,) or (B,T) labels or None, y_a: those of the sound.
        times: (B,T), or (B,) of whole clips; or a pair of them for video and audio.
        noise: (eps_v, eps_a), shaped like v and a.
        weight: weight of a frame at time t.
        shares: (B,) and (B,), how much of each clip's picture and sound counts, 0 or False where that is given, with an
            error of 0; None for all.
    Returns:
        FlowLoss; each term is a mean over the batch, the frames and the elements of a frame.
    """
    t_v, t_a = times if isinstance(times, tuple) else (times, times)
    eps_v, eps_a = noise
    labels = conditions if y is None else {"y": y, "y_a": y_a, **conditions}
    dv, da = model(interpolate(v, eps_v, t_v), interpolate(a, eps_a, t_a), t_v, t_a=t_a, **labels)
    error_v = _frame_error(dv, v, eps_v) * _weighed(weight, t_v, dv)
    error_a = _frame_error(da, a, eps_a) * _weighed(weight, t_a, da)
    share_v, share_a = (x.unsqueeze(1) for x in shares) if shares else (1, 1)
    video, audio = (error_v * share_v).mean(), (error_a * share_a).mean()
    if shares:
        error_v, error_a = error_v * (share_v > 0), error_a * (share_a > 0)
    return FlowLoss(video + audio, video, audio, error_v.detach(), error_a.detach())


def _weighed(weight: Callable, t: Tensor, predicted: Tensor | None) -> Tensor:
    """Weight of each frame that is predicted, (B,T), or (B,1) of all frames of a clip."""
    return weight(t.unsqueeze(1) if t.ndim == 1 else t if predicted is None else t[:, -predicted.shape[1] :])


def _frame_error(predicted: Tensor | None, clean: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of each frame's velocity, (B,T,...) -> (B,T); at least float32, and zero if there is none."""
    if predicted is None:
        return clean.new_zeros(clean.shape[:2], dtype=torch.promote_types(clean.dtype, torch.float32))
    predicted, T = predicted.to(torch.promote_types(predicted.dtype, torch.float32)), predicted.shape[1]
    return ((predicted - (clean[:, -T:] - eps[:, -T:])) ** 2).flatten(2).mean(2)
