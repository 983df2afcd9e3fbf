"""The parts of a training step around the model: what is drawn, how fast to learn, what is measured."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffusion.flow import FlowLoss
from diffusion.noise import training_draws
from diffusion.times import draw_times

BINS = 10  # of flow time, in which the loss is logged


class Draws:
    """The random part of a step: what the loss needs, as functions of (seed, step, place in the global batch).

    Args:
        rows: places of this process in the global batch.
        shapes: of one clip, (T,C,H,W) and (T,S,M).
        theta: share of clips in pre-rolling. drop: share of labels that become `null_label`, for both branches alike.
        null_label: None for a model without classes.
    """

    def __init__(
        self,
        seed: int,
        rows: range,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        theta: float,
        drop: float,
        null_label: int | None,
    ):
        self.seed, self.rows, self.shapes = seed, rows, shapes
        self.theta, self.drop, self.null_label = theta, drop, null_label

    def __call__(self, step: int, mean: Tensor, std: Tensor, a: Tensor, y: Tensor) -> dict:
        """Arguments of `flow_loss` for latents (B,T,...) of this process's clips."""
        drawn = training_draws(self.seed, step, self.rows, *self.shapes)
        times = draw_times(drawn.w, drawn.pre_rolling < self.theta, self.shapes[0][0])
        gaussians = (drawn.posterior, drawn.eps_v, drawn.eps_a)
        posterior, eps_v, eps_a = (_sent(x.to(mean.dtype), mean.device) for x in gaussians)
        dropped = _sent(drawn.drop < self.drop, y.device)
        y = None if self.null_label is None else y.masked_fill(dropped, self.null_label)
        times = _sent(times, mean.device)
        return dict(v=mean + std * posterior, a=a, y=y, times=times, noise=(eps_v, eps_a))


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, without waiting for it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def learning_rate(step: int, base: float, warmup: int, schedule: str, last: int) -> float:
    """Rate of a step: linear warm-up, then "constant", or "cosine" down to 5 % of the base at the last step."""
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "constant":
        return base * warm
    left = min(1.0, (last - step) / max(1, last - warmup))
    return base * warm * (0.05 + 0.95 * (1 - math.cos(math.pi * left)) / 2)


class Meter:
    """Sums of what is logged, kept on the device: reading them, once per --log-every, is the only synchronisation."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)  # steps, loss, video, audio, gradient norm
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)  # frames, video error, audio error
        self.skipped = torch.zeros(2, dtype=torch.float64, device=device)  # steps in all, and in a row until now
        self.waited = 0.0  # seconds for data

    def add(self, loss: FlowLoss, times: Tensor, norm: Tensor) -> None:
        """Take in a step; one with a gradient norm that is not finite counts as skipped."""
        bad = ~norm.isfinite()
        row = torch.stack([torch.ones_like(norm), loss.total, loss.video, loss.audio, norm]).detach().double()
        self.sums += torch.where(bad, 0, row)
        self.skipped[0] += bad
        self.skipped[1] = (self.skipped[1] + 1) * bad
        frames = torch.stack([torch.ones_like(times), loss.error_v.double(), loss.error_a.double()]).flatten(1)
        self.bins.index_add_(1, (times * BINS).long().clamp(max=BINS - 1).flatten(), torch.where(bad, 0, frames))

    def read(self, accelerator: Accelerator, seconds: float, images_per_step: int) -> dict:
        """Means over all processes since the last reading; the sums start again."""
        steps, *means = accelerator.reduce(self.sums).tolist()
        loss, video, audio, norm = (x / steps if steps else None for x in means)
        frames, video_bins, audio_bins = accelerator.reduce(self.bins).tolist()
        skipped, in_a_row = self.skipped.tolist()
        record = {
            "loss": loss,
            "loss_video": video,
            "loss_audio": audio,
            "grad_norm": norm,
            "video_at": [e / n if n else None for e, n in zip(video_bins, frames)],
            "audio_at": [e / n if n else None for e, n in zip(audio_bins, frames)],
            "images_per_s": images_per_step * steps / seconds,
            "data_wait": self.waited / seconds,
            "skipped_steps": int(skipped),
            "skipped_in_a_row": int(in_a_row),
        }
        self.sums.zero_()
        self.bins.zero_()
        self.waited = 0.0
        return record


@contextmanager
def averaged(ema: EMAModel, model: nn.Module) -> Iterator[None]:
    """Inside the block the model has its averaged weights."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    try:
        yield
    finally:
        ema.restore(model.parameters())
