"""Frames as the published FVD sees them: 10 fps, 64 pixels, an 8-bit round trip, then 224 pixels for I3D; as FID does.

Every step changes the score, so each is a function here with its resampling kernel, rounding and padding written out.
All of it runs on the CPU, whatever device the frames come from, so that the same frames give the same input everywhere.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FPS = 10  # of the clips that are compared
SIDE = 224  # pixels of the input of I3D
PICTURE = 299  # pixels of the input of FID's Inception


def grid(frames_per_second: float, count: int) -> list[int]:
    """Indices of the frames of a file that make `count` frames at 10 fps: floor(i * fps / 10), in float32.

    The caller leaves out the indices beyond the end of the file. Below 10 fps frames repeat.

    Raises:
        ValueError: the rate is not above 0.
    """
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"{frames_per_second} frames per second is no frame rate; give the rate of the file, above 0")
    step = np.float32(frames_per_second / FPS)
    return np.floor(np.arange(count, dtype=np.float32) * step).astype(int).tolist()


def letterbox(frames: Tensor, size: int = 64, antialias: bool = False) -> Tensor:
    """Fit frames into a black square that their longer side fills: bicubic, then rounded to whole values.

    Args:
        frames: uint8 (T,H,W,3).
        antialias: False is what published numbers used (the torchvision of their time had no other way for tensors);
            True is what newer versions do when nobody asks, and gives other scores.
    Returns:
        uint8 (T,size,size,3), on the CPU.
    Raises:
        ValueError: frames are not uint8 (T,H,W,3), or so narrow that nothing is left of their shorter side.
    """
    x = _planes(frames)  # (T, 3, H, W)
    H, W = x.shape[-2:]
    scale = min(size / H, size / W)
    h, w = int(H * scale), int(W * scale)  # floats as published: a longer side of 49 pixels fills 63
    if not h or not w:
        raise ValueError(f"frames of {H} x {W} pixels shrink to {h} x {w} in a square of {size}; crop them first")
    x = F.interpolate(x, (h, w), mode="bicubic", antialias=antialias).clamp_(0, 255).round_().to(torch.uint8)
    top, left = (size - h) // 2, (size - w) // 2
    x = F.pad(x, (left, size - w - left, top, size - h - top))  # (T, 3, size, size)
    return x.movedim(1, -1).contiguous()


def round_trip(frames: Tensor) -> Tensor:
    """What remains of uint8 frames once they were floats in [-1, 1] and were cut back to uint8: 1 to 63 lose 1.

    The published evaluation passes real frames through it, since generated ones come out of a network that way.

    Args:
        frames: uint8 (T,H,W,3).
    Returns:
        uint8 (T,H,W,3), on the CPU.
    Raises:
        ValueError: frames are not uint8 (T,H,W,3).
    """
    _check(frames)
    return (frames.cpu() / 127.5).sub_(1).add_(1).mul_(127.5).to(torch.uint8)


def i3d_input(frames: Tensor) -> Tensor:
    """Bring frames to I3D: the shorter side to 224 pixels, bilinear without antialiasing, and the middle square.

    Args:
        frames: uint8 (T,H,W,3).
    Returns:
        float32 (3,T,224,224) in [-1, 1], on the CPU.
    Raises:
        ValueError: frames are not uint8 (T,H,W,3).
    """
    x = _planes(frames).div_(255)  # (T, 3, H, W)
    H, W = x.shape[-2:]
    h, w = math.ceil(H * SIDE / min(H, W)), math.ceil(W * SIDE / min(H, W))
    x = F.interpolate(x, (h, w), mode="bilinear")
    top, left = (h - SIDE) // 2, (w - SIDE) // 2
    x = x[..., top : top + SIDE, left : left + SIDE]
    return x.sub(0.5).mul_(2).movedim(0, 1).contiguous()  # (3, T, 224, 224)


def inception_input(frames: Tensor) -> Tensor:
    """Bring frames to FID's Inception: both sides to 299 pixels, whatever the shape, bilinear without antialiasing.

    Args:
        frames: uint8 (T,H,W,3).
    Returns:
        float32 (T,3,299,299) in [-1, 1], on the CPU.
    Raises:
        ValueError: frames are not uint8 (T,H,W,3).
    """
    x = _planes(frames).div_(255)  # (T, 3, H, W)
    return F.interpolate(x, (PICTURE, PICTURE), mode="bilinear").mul_(2).sub_(1)


def _planes(frames: Tensor) -> Tensor:
    """uint8 (T,H,W,3) -> float32 (T,3,H,W), 0 to 255."""
    _check(frames)
    return frames.cpu().movedim(-1, 1).float()


def _check(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}, expected uint8 (T, H, W, 3)")
