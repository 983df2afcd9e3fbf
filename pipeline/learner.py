"""What learns: a model with its optimiser and its average, as accelerate prepared them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from diffusion.flow import FlowLoss
from pipeline.ema import EMA
from pipeline.finetune import trainable
from pipeline.sharding import State
from pipeline.training import backward, batch_loss, skip_if_not_finite


class Learner:
    """The trainable parameters of a model under AdamW, with their exponential moving average.

    Args:
        model: FLAV in the dtype of its weights; `raw` afterwards, `model` being what accelerate makes of it.
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
        norm = self.accelerator.clip_grad_norm_(self.params, self.clip)
        norm = skip_if_not_finite(self.accelerator, self.optimiser, norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.ema.step(self.params)
        return loss, norm

    @torch.no_grad()
    def averaged_loss(self, inputs: dict) -> Tensor:
        """Loss of the averaged weights on a batch. Called by all processes; the mean over them."""
        with self._averaged_weights():
            loss = batch_loss(self.accelerator, self.model, inputs, self.weight, self.parts)
        return self.accelerator.reduce(loss, "mean")

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
