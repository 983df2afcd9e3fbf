"""What a rolling model remembers beyond its window: clean frames of the past, a fixed number of them, of fixed ages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.noise import Modality, frame_noise, sent

if TYPE_CHECKING:
    from diffusion.rolling import Window


@dataclass(frozen=True, eq=False)
class Memory:
    """K frames before a window, oldest first: v (B,K,C,H,W), a (B,K,S,M) on the window's device.

    On the CPU: t (B,K) float64, 1 where a frame is remembered, 0 where there is none yet and noise stands in for it;
    y (B,K) their labels, or None.
    """

    v: Tensor
    a: Tensor
    t: Tensor
    y: Tensor | None


def remembered(ages: Sequence[int], noise: Callable = frame_noise) -> Callable[[Window], Memory]:
    """The memory of a window as it moves: the very same object until a frame leaves it.

    Args:
        ages: of the frames, in frames before the window's first. noise: as `diffusion.noise.frame_noise`.
    """
    ages = torch.tensor(sorted(ages, reverse=True))
    last = None  # (past, label now, Memory): a window asks once per step, its past is another once per frame

    def of(window: Window) -> Memory:
        nonlocal last
        now = torch.zeros(0) if window.y is None else window.y[:, 0]
        if last is None or last[0] is not window.past_v or not torch.equal(last[1], now):
            last = window.past_v, now, _memory(window, ages, noise)
        return last[2]

    return of


def _memory(window: Window, ages: Tensor, noise: Callable) -> Memory:
    there = window.first.unsqueeze(1) >= ages  # (B,K)
    kinds = (window.past_v, Modality.MEMORY_VIDEO), (window.past_a, Modality.MEMORY_AUDIO)
    v, a = (_frames(past, modality, window, ages, there, noise) for past, modality in kinds)
    y = None if window.y is None else torch.where(there, window.past_y[:, -ages], window.y[:, :1])
    return Memory(v, a, there.double(), y)


def _frames(past: Tensor, modality: Modality, window: Window, ages: Tensor, there: Tensor, noise: Callable) -> Tensor:
    """Frames of these ages (B,K,...), noise where there are none."""
    frames, shape = past[:, (past.shape[1] - ages).to(past.device)].clone(), tuple(past.shape[2:])
    missing = (~there).nonzero()
    if len(missing):
        drawn = [noise(int(window.seed[row]), int(window.sample[row]), int(ages[k]), modality, shape)
                 for row, k in missing.tolist()]  # fmt: skip
        rows, places = (sent(x, past.device) for x in missing.T.contiguous())
        frames[rows, places] = sent(torch.stack(drawn), past.device).to(past.dtype)
    return frames
