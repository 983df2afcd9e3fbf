"""The exponential moving average of weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Averages of parameters, whose decay grows with the steps up to `decay`.

    What diffusers' EMAModel does, whose checkpoints are read as well: importing that one brings transformers and peft
    along, and takes twice as long as all else that training imports.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.9999):
        self.shadow_params = [p.detach().clone() for p in parameters]
        self.decay, self.optimization_step = decay, 0

    def get_decay(self, step: int) -> float:
        """At the s-th step s / (9 + s), `decay` at most; the first one takes the weights as they are."""
        return min(self.decay, step / (9 + step)) if step > 1 else 0.0

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move each average towards its parameter: after every step of the optimiser."""
        self.optimization_step += 1
        get_ema_multi_avg_fn(self.get_decay(self.optimization_step))(self.shadow_params, list(parameters), None)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give parameters their averages."""
        for mean, p in zip(self.shadow_params, parameters, strict=True):
            p.copy_(mean)

    def state_dict(self) -> dict[str, int | float | list[Tensor]]:
        """The tensors themselves, and the numbers."""
        return dict(vars(self))

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Averages stay on their device."""
        self.decay, self.optimization_step = state["decay"], state["optimization_step"]
        for mean, stored in zip(self.shadow_params, state["shadow_params"], strict=True):
            mean.copy_(stored)
