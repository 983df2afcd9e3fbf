"""Where what a picture shows to a link comes from: its tower's layers, or a network (an ablation of AV-Link).

    features = SOURCES["network"](channels, patch, dim)(v)   # (B,T,C,H,W) as the tower takes it -> (B,T,L,dim)

A network shows the same to all blocks of the link and is told nothing. Its weights are never trained. A new one is one
class and one line in SOURCES; one with trained weights would look at decoded pictures, which a model is not given.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

WIDTH, SEED = 64, 2412_15191  # of the random network's inner layers; of its weights


class RandomNetwork(nn.Module):
    """Three convolutions of each frame by itself, whose weights are drawn from a fixed seed: it needs none.

    A token for each patch, as of the tower; it sees 5x5 patches around.

    Args:
        channels, patch: of pictures. dim: of tokens.
    """

    def __init__(self, channels: int, patch: int, dim: int):
        super().__init__()
        first = nn.Conv2d(channels, WIDTH, patch, stride=patch)
        self.convs = nn.ModuleList([first, *(nn.Conv2d(WIDTH, out, 3, padding=1) for out in (WIDTH, dim))])
        self.requires_grad_(False)

    def draw(self) -> None:
        """Let the weights be those of the seed, which keep the size of what passes (He et al., 2015)."""
        draws = torch.Generator().manual_seed(SEED)
        for conv in self.convs:
            weight = torch.randn(conv.weight.shape, generator=draws, device="cpu")
            conv.weight.data.copy_(weight * math.sqrt(2 / conv.weight[0].numel()))
            nn.init.zeros_(conv.bias)

    def forward(self, v: Tensor) -> Tensor:
        """(B,T,C,H,W), H and W any multiples of the patch -> (B,T,L,dim)."""
        x = v.flatten(0, 1)
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return rearrange(self.convs[-1](x), "(b t) d h w -> b t (h w) d", b=len(v))


SOURCES: dict[str, type[nn.Module] | None] = {
    "tower": None,  # its layers themselves
    "network": RandomNetwork,
}
