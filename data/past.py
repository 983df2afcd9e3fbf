"""Frames of a file that a clip's memory holds: those of some ages before its first one, oldest first."""

from collections.abc import Sequence

import torch
from torch import Tensor


def first_needed(start: int, ages: Sequence[int]) -> int:
    """The first frame to read for a clip that starts at a frame, with those of its memory which the file has."""
    return max(0, start - max(ages, default=0))


def with_past(x: Tensor, start: int, ages: Sequence[int]) -> Tensor:
    """Frames of the memory and of the clip, (K + T, ...); zeros where a frame would be before the file's beginning.

    Args:
        x: frames from `first_needed` on. start: frame of the clip in the file. ages: of the memory's frames.
    """
    if not ages:
        return x
    clip = start - first_needed(start, ages)  # its first row in x
    rows = [clip - age for age in sorted(ages, reverse=True)]
    past = x[[max(0, row) for row in rows]]
    past[[row < 0 for row in rows]] = 0
    return torch.cat([past, x[clip:]])
