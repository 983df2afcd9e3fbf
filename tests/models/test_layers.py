"""Layers that are written otherwise than torch has them."""

import torch
import torch.nn.functional as F

from models.layers import PatchEmbed


def test_patches_are_those_of_a_convolution_row_by_row():
    torch.manual_seed(0)
    embed, v = PatchEmbed(3, 8, 2).double(), torch.randn(2, 4, 3, 6, 6, dtype=torch.float64)
    convolved = F.conv2d(v.flatten(0, 1), embed.weight, embed.bias, stride=2)  # (8,8,3,3)
    assert torch.allclose(embed(v).flatten(0, 1), convolved.flatten(2).transpose(1, 2), atol=1e-12)
