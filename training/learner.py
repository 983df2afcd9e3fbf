"""What learns: a model with its optimiser and its average, as accelerate prepared them, and a step of it."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from diffusion.flow import FlowLoss, flow_loss
from training.ema import EMA
from training.finetune import trainable
from training.sharding import State


class Learner:
    """The trainable parameters of a model under AdamW, with their exponential moving average.

    Args:
        model: in the dtype of its weights; `raw` afterwards, `model` being what accelerate makes of it.
        weight: of the loss, by flow time. parts: of a batch, that follow each other.
        clip: largest gradient norm. ema_decay: largest decay of the average.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        weight: Callable,
        parts: int = 1,
        beta2: float = 0.999,
        weight_decay: float = 0.02,
        clip: float = 1.0,
        ema_decay: float = 0.9999,
    ):
        self.accelerator, self.raw, self.weight, self.parts, self.clip = accelerator, model, weight, parts, clip
        optimiser = torch.optim.AdamW(trainable(model), betas=(0.9, beta2), weight_decay=weight_decay, fused=True)
        self._plain = copy.deepcopy(model).to("meta")  # as it is before processes share its weights out
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        self.params = trainable(model)
        self.ema = EMA(self.params, decay=ema_decay)
        accelerator.register_for_checkpointing(self.ema)
        self.state = State(model, self.optimiser.optimizer, self.ema, accelerator.scaler)

    def step(self, inputs: dict, lr: float) -> tuple[FlowLoss, Tensor]:
        """One step of the optimiser: the loss before it and the gradient's norm. Not finite, it changes no weight.

        inputs: of `flow_loss`, for this process's clips.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        loss = backward(self.accelerator, self.model, inputs, self.weight, self.parts)
        self.accelerator.unscale_gradients()
        norm = get_total_norm([p.grad for p in self.params if p.grad is not None])
        norm = skip_if_not_finite(self.accelerator, self.optimiser, norm)
        self.optimiser.optimizer.grad_scale = ((norm + 1e-6) / self.clip).clamp(min=1).float()  # clipped as it is read
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.ema.step(self.params)
        return loss, norm

    @torch.no_grad()
    def averaged_loss(self, *batches: dict) -> Tensor:
        """Loss (3,) of the averaged weights: total, of the picture, of the sound; the mean of batches and processes.

        batches: of inputs as of `step`, the same number in each process. Called by all of them.
        """
        with self._averaged_weights():
            losses = [batch_loss(self.accelerator, self.model, x, self.weight, self.parts) for x in batches]
        return self.accelerator.reduce(torch.stack(losses).mean(0), "mean")

    def averaged(self) -> nn.Module | None:
        """A plain model on the CPU with the averaged weights, on the main process. Called by all if it is sharded."""
        return self.state.averaged(self._plain)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Inside the block the parameters have their averaged values."""
        own = [p.detach().clone() for p in self.params]
        for p, mean in zip(self.params, self.ema.shadow_params):
            p.copy_(mean)
        try:
            yield
        finally:
            for p, x in zip(self.params, own):
                p.copy_(x)
            if isinstance(self.raw, FSDPModule):
                self.raw.reshard()  # what it gathered of the average would serve the next step


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
    """The losses of `backward` alone, (3,) on the device: total, of the picture, of the sound."""
    with accelerator.autocast():
        losses = [torch.stack(flow_loss(model, **part, weight=weight)[:3]) for part in _parted(inputs, parts)]
    return torch.stack(losses).detach().mean(0)


def _parted(inputs: dict, parts: int) -> Iterator[dict]:
    """The batch in equal parts; what is None, a word or a pair stays so."""
    size = len(inputs["v"]) // parts

    def cut(x, rows: slice):
        if x is None or isinstance(x, str | bool):
            return x
        return tuple(part[rows] for part in x) if isinstance(x, tuple) else x[rows]

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
