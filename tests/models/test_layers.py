"""Layers that are written otherwise than torch has them."""

import pytest
import torch
import torch.nn.functional as F

from models.layers import GELU, PatchEmbed


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_gelu_without_gradients_is_torchs(dtype, tolerance):
    x = torch.cat([torch.linspace(-9, 9, 20_001), torch.tensor([-1e4, -60.0, 0.0, 60.0, 1e4])]).to(dtype)
    before = x.clone()
    with torch.no_grad():
        assert torch.allclose(GELU()(x), F.gelu(x, approximate="tanh"), rtol=tolerance, atol=tolerance)
    assert x.equal(before)


def test_gelu_with_gradients_is_torchs_to_the_bit():
    x = torch.linspace(-5, 5, 101, requires_grad=True)
    assert GELU()(x).equal(F.gelu(x, approximate="tanh"))


def test_patches_are_those_of_a_convolution_row_by_row():
    torch.manual_seed(0)
    embed, v = PatchEmbed(3, 8, 2).double(), torch.randn(2, 4, 3, 6, 6, dtype=torch.float64)
    convolved = F.conv2d(v.flatten(0, 1), embed.weight, embed.bias, stride=2)  # (8,8,3,3)
    assert torch.allclose(embed(v).flatten(0, 1), convolved.flatten(2).transpose(1, 2), atol=1e-12)
