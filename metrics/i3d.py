"""Inception-I3D: the video network whose class scores are the features of FVD and KVD.

Carreira and Zisserman 2017, "Quo Vadis, Action Recognition?": Inception-v1 with its filters inflated in time, trained
on Kinetics-400. Modules are named as in the published weight file, which `metrics.weights.load` therefore reads as is.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOURCE = "the link to i3d_pretrained_400.pt in github.com/researchmm/MM-Diffusion (evaluation)"
CLASSES = 400


class I3D(nn.Module):
    """Scores of the 400 Kinetics classes. Built in eval mode; the caller fills it and runs it under inference_mode."""

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = _Conv(3, 64, kernel=7, stride=2)
        self.MaxPool3d_2a_3x3 = _MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = _Conv(64, 64, kernel=1)
        self.Conv3d_2c_3x3 = _Conv(64, 192, kernel=3)
        self.MaxPool3d_3a_3x3 = _MaxPool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = _Mixed(192, 64, 96, 128, 16, 32, 32)
        self.Mixed_3c = _Mixed(256, 128, 128, 192, 32, 96, 64)
        self.MaxPool3d_4a_3x3 = _MaxPool((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = _Mixed(480, 192, 96, 208, 16, 48, 64)
        self.Mixed_4c = _Mixed(512, 160, 112, 224, 24, 64, 64)
        self.Mixed_4d = _Mixed(512, 128, 128, 256, 24, 64, 64)
        self.Mixed_4e = _Mixed(512, 112, 144, 288, 32, 64, 64)
        self.Mixed_4f = _Mixed(528, 256, 160, 320, 32, 128, 128)
        self.MaxPool3d_5a_2x2 = _MaxPool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = _Mixed(832, 256, 160, 320, 32, 128, 128)
        self.Mixed_5c = _Mixed(832, 384, 192, 384, 48, 128, 128)
        self.logits = nn.Sequential()
        self.logits.add_module("conv3d", nn.Conv3d(1024, CLASSES, 1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before the softmax, averaged over time.

        Args:
            x: (B,3,T,224,224) in [-1, 1], from `metrics.resize.i3d_input`; published numbers have T = 16.
        Returns:
            (B,400)
        Raises:
            ValueError: x has another shape, or fewer than 9 frames.
        """
        if x.ndim != 5 or x.shape[1] != 3 or x.shape[3:] != (224, 224) or x.shape[2] < 9:
            raise ValueError(
                f"I3D got {tuple(x.shape)}, expected (B, 3, T, 224, 224) with T of at least 9; "
                f"make its input with metrics.resize.i3d_input, from 16 frames as published"
            )
        *stages, head = self.children()
        for stage in stages:
            x = stage(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # (B, 1024, ceil(T / 8) - 1, 1, 1)
        return head(x).flatten(2).mean(2)


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, filters: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(channels, filters, kernel, stride, padding=0 if stride > 1 else kernel // 2, bias=False)
        self.bn = nn.BatchNorm3d(filters, eps=1e-5)  # 1e-3 would move the features by 1 %

    def forward(self, x: Tensor) -> Tensor:
        if self.conv3d.stride[0] > 1:
            ends = [_same(*axis) for axis in zip(x.shape[2:], self.conv3d.kernel_size, self.conv3d.stride)]
            x = F.pad(x, [end for pair in reversed(ends) for end in pair])
        return F.relu_(self.bn(self.conv3d(x)))


class _MaxPool(nn.Module):
    """Max pool. Padding is invisible: its zeros never exceed what comes out of a ReLU."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        front = [_same(*axis)[0] for axis in zip(x.shape[2:], self.kernel, self.stride)]
        return F.max_pool3d(x, self.kernel, self.stride, front, ceil_mode=True)  # ceil_mode: an odd element at the end


class _Mixed(nn.Module):
    """Inception module: four branches side by side, joined in the order of their names."""

    def __init__(self, channels: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int):
        super().__init__()
        self.b0 = _Conv(channels, b0, kernel=1)
        self.b1a = _Conv(channels, b1a, kernel=1)
        self.b1b = _Conv(b1a, b1b, kernel=3)
        self.b2a = _Conv(channels, b2a, kernel=1)
        self.b2b = _Conv(b2a, b2b, kernel=3)
        self.b3a = _MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = _Conv(channels, b3b, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis, (front, back): outputs = ceil(size / stride), the odd element behind."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
