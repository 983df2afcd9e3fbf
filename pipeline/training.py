"""The parts of a training step around the model: what is drawn, how fast to learn, what is measured."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from einops import rearrange
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffusion.flow import FlowLoss, flow_loss
from diffusion.noise import TrainingDraws, sent, training_draws
from diffusion.times import draw_times

BINS = 10  # of flow time, in which the loss is logged


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


def backward(accelerator: Accelerator, model: nn.Module, inputs: dict, weight: Callable, parts: int) -> FlowLoss:
    """Loss of a batch and its gradients, in `parts` of equal size that follow each other, so with less memory.

    Args:
        inputs: of `flow_loss`, as `Draws` gives them.
        parts: divides the batch; processes exchange gradients after the last one only.
    """
    losses = []
    for i, part in enumerate(_parted(inputs, parts)):
        with accelerator.no_sync(model) if i < parts - 1 else nullcontext():
            with accelerator.autocast():  # which wraps a whole model already, not one in shards
                losses.append(flow_loss(model, **part, weight=weight))
            accelerator.backward(losses[-1].total / parts)
    total, video, audio, *errors = zip(*losses)
    means = (torch.stack(x).detach().mean() for x in (total, video, audio))
    return FlowLoss(*means, *(torch.cat(x) for x in errors))


def batch_loss(accelerator: Accelerator, model: nn.Module, inputs: dict, weight: Callable, parts: int) -> Tensor:
    """The total loss of `backward` alone, as a number on the device."""
    with accelerator.autocast():
        losses = [flow_loss(model, **part, weight=weight).total for part in _parted(inputs, parts)]
    return torch.stack(losses).detach().mean()


def _parted(inputs: dict, parts: int) -> Iterator[dict]:
    """The batch in equal parts; what is None or a pair stays so."""
    size = len(inputs["v"]) // parts

    def cut(x, rows: slice):
        return x if x is None else tuple(part[rows] for part in x) if isinstance(x, tuple) else x[rows]

    for start in range(0, size * parts, size):
        yield {name: cut(x, slice(start, start + size)) for name, x in inputs.items()}


def skip_if_not_finite(accelerator: Accelerator, optimiser: AcceleratedOptimizer, norm: Tensor) -> Tensor:
    """Make the optimiser's next step change nothing if the gradient's norm is not finite; returns the norm, whole.

    Without a wait for the device: the fused kernel reads a flag there. A scaler of fp16 looks for infinities itself.
    """
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if accelerator.scaler is None:
        optimiser.optimizer.found_inf = (~norm.isfinite()).float()
    return norm


def learning_rate(step: int, base: float, warmup: int, schedule: str, last: int) -> float:
    """Rate of a step: linear warm-up, then "constant", or "cosine" down to 5 % of the base at the last step."""
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "constant":
        return base * warm
    left = min(1.0, (last - step) / max(1, last - warmup))
    return base * warm * (0.05 + 0.95 * (1 - math.cos(math.pi * left)) / 2)


class Meter:
    """Sums of what is logged, kept on the device: reading them, once per --log-every, is the only synchronisation.

    Args:
        images, flops: frames, and operations of the model without recomputing, in a step of one process.
        peaks: FLOP/s of its device by what they are called, of which the log tells the share that is used (MFU).
    """

    def __init__(self, device: torch.device, images: int = 0, flops: float = 0, peaks: dict[str, float] | None = None):
        self.images, self.flops, self.peaks = images, flops, peaks or {}
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)  # steps, loss, video, audio, gradient norm
        self.bins = torch.zeros(2, 2, BINS, dtype=torch.float64, device=device)  # of video and audio: frames, error
        self.skipped = torch.zeros(2, dtype=torch.float64, device=device)  # steps in all, and in a row until now
        self.waited = 0.0  # seconds for data

    def add(self, loss: FlowLoss, times: tuple[Tensor, Tensor], norm: Tensor) -> None:
        """Take in a step at these times of video and audio; one whose gradient norm is not finite counts as skipped."""
        bad = ~norm.isfinite()
        row = torch.stack([torch.ones_like(norm), loss.total, loss.video, loss.audio, norm]).detach().double()
        self.sums += torch.where(bad, 0, row)
        self.skipped[0] += bad
        self.skipped[1] = (self.skipped[1] + 1) * bad
        for bins, t, error in zip(self.bins, times, (loss.error_v, loss.error_a)):
            frames = torch.stack([torch.ones_like(error), error]).flatten(1).double()
            bins.index_add_(1, (t * BINS).long().clamp(max=BINS - 1).flatten(), torch.where(bad, 0, frames))

    def read(
        self, accelerator: Accelerator, seconds: float, last: FlowLoss | None = None, of_average: Tensor | None = None
    ) -> dict:
        """Means over all processes since the last reading; the sums start again.

        Args:
            last, of_average: loss of the last batch, by the weights before its step and by their average.
        """
        steps, *means = accelerator.reduce(self.sums).tolist()
        loss, video, audio, norm = (x / steps if steps else None for x in means)
        video_at, audio_at = ([e / n if n else None for n, e in zip(*bins)] for bins in
                              accelerator.reduce(self.bins).tolist())  # fmt: skip
        skipped, in_a_row = self.skipped.tolist()
        own = None if last is None else accelerator.reduce(last.total, "mean")
        pair = {"batch_loss": own, "batch_loss_ema": of_average}
        record = {
            "loss": loss,
            "loss_video": video,
            "loss_audio": audio,
            **{name: x.item() if x.isfinite() else None for name, x in pair.items() if x is not None},
            "grad_norm": norm,
            "video_at": video_at,
            "audio_at": audio_at,
            "images_per_s": self.images * steps / seconds,
            "data_wait": self.waited / seconds,
            **{
                f"mfu_of_{name}": self.flops * steps / seconds / peak / accelerator.num_processes
                for name, peak in self.peaks.items()
            },
            "skipped_steps": int(skipped),
            "skipped_in_a_row": int(in_a_row),
        }
        self.sums.zero_()
        self.bins.zero_()
        self.waited = 0.0
        return record
