"""The random part of a training step, as functions of (seed, step, place in the global batch)."""

import torch
from einops import rearrange
from torch import Tensor

from diffusion.noise import TrainingDraws, sent, training_draws
from diffusion.times import draw_times


class Draws:
    """The random part of a step: what the loss needs, as functions of (seed, step, place in the global batch).

    Args:
        rows: places of this process in the global batch.
        shapes: of one clip, (T,C,H,W) and (T,S,M).
        theta: share of clips in pre-rolling. drop: share of labels that become `null_label`, for both branches alike.
        null_label: None for a model without classes.
        independent: share of clips whose picture and sound have different times (`paired_times`).
    """

    def __init__(
        self,
        seed: int,
        rows: range,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        theta: float,
        drop: float,
        null_label: int | None,
        independent: float = 0.0,
    ):
        self.seed, self.rows, self.shapes = seed, rows, shapes
        self.theta, self.drop, self.null_label, self.independent = theta, drop, null_label, independent

    def __call__(self, step: int, mean: Tensor, std: Tensor, a: Tensor, y: Tensor) -> dict:
        """Arguments of `flow_loss` for latents (B,T,...) of this process's clips."""
        drawn = training_draws(self.seed, step, self.rows, *self.shapes)
        gaussians = (drawn.posterior, drawn.eps_v, drawn.eps_a)
        posterior, eps_v, eps_a = (sent(x.to(mean.dtype), mean.device) for x in gaussians)
        dropped = sent(drawn.drop < self.drop, y.device)
        y = None if self.null_label is None else y.masked_fill(dropped, self.null_label)
        t_v, t_a = (sent(t, mean.device) for t in self._times(drawn))
        return dict(v=mean + std * posterior, a=a, y=y, times=(t_v, t_a), noise=(eps_v, eps_a))

    def _times(self, drawn: TrainingDraws) -> tuple[Tensor, Tensor]:
        """Times (B,T) of video and audio."""
        early, T = drawn.pre_rolling < self.theta, self.shapes[0][0]
        t, t_a = draw_times(drawn.w, early, T), draw_times(drawn.w_a, early, T)
        return paired_times(t, t_a, drawn.independent, self.independent)


def paired_times(t: Tensor, t_a: Tensor, u: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Times (B,T) of video and audio: `t` for both, but in a share of the clips different ones.

    Of these a quarter has a clean picture (t = 1 in every frame), a quarter a clean sound, and half have a sound at
    `t_a`. The clean quarters are what A2V and V2A without guidance meet; independent phases alone, as in UniDiffuser
    (Bao et al., 2023), would never show them. The other half lies between them and the common time, so that the model
    learns to read its two times apart. Pure noise beside a clip is not trained: no mode of sampling asks for it.

    Args:
        t, t_a: (B,T) common times, and those of a second phase. u: (B,) uniform in [0, 1). share: in [0, 1].
    """
    u = rearrange(u, "b -> b 1")
    picture, sound, phase = share / 4, share / 2, share  # the ends of the three kinds
    t_v = t.masked_fill(u < picture, 1)
    t_a = torch.where((sound <= u) & (u < phase), t_a, t)
    return t_v, t_a.masked_fill((picture <= u) & (u < sound), 1)
