"""Pixels: from media frames to the square pictures that a frame codec takes, and back to 8 bits."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

Resize = Literal["pad", "crop"]


def fit(frames: Tensor, size: int, resize: Resize = "pad") -> Tensor:
    """Bring frames to size x size, keeping their aspect ratio (bicubic, antialiased, small frames are enlarged).

    "pad" fits the longer side and adds black, the odd row or column at the bottom or right; "crop" fits the shorter
    side and cuts the centre out. Sizes are whole-number arithmetic: side * size // reference.

    Args:
        frames: uint8 (T,H,W,3).
        size: side of the square, in pixels.
    Returns:
        float32 (T,3,size,size) in about [-1,1]: bicubic overshoot is not clamped.
    Raises:
        ValueError: frames are not uint8 (T,H,W,3), or `resize` is unknown.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}, expected uint8 (T, H, W, 3)")
    if resize not in ("pad", "crop"):
        raise ValueError(f"resize is {resize!r}, expected 'pad' or 'crop'")
    height, width = frames.shape[1:3]
    reference = max(height, width) if resize == "pad" else min(height, width)
    resized = [max(1, side * size // reference) for side in (height, width)]
    x = frames.movedim(-1, 1).float() / 255  # (T,3,H,W)
    x = interpolate(x, resized, mode="bicubic", antialias=True, align_corners=False)
    return 2 * _centre(x, size) - 1  # (T,3,size,size)


def _centre(x: Tensor, size: int) -> Tensor:
    """Cut or zero-pad (...,H,W) to (...,size,size) around the centre."""
    top, left = ((size - side) // 2 for side in x.shape[-2:])  # negative where there is something to cut
    return pad(x, (left, size - x.shape[-1] - left, top, size - x.shape[-2] - top))


def to_uint8(x: Tensor) -> Tensor:
    """8-bit levels of values in [-1,1], any shape: 127.5 (x + 1) rounded with ties up, clamped to [0,255]."""
    return (127.5 * x + 128).clamp(0, 255).to(torch.uint8)
