"""Random weights for tests: fresh models output zeros, so a check on one passes for any code."""

import torch
from torch import nn


def randomised(module: nn.Module, std: float, seed: int = 0) -> nn.Module:
    """The module, each of its parameters drawn anew."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(std * torch.randn(p.shape, generator=rng))
    return module
