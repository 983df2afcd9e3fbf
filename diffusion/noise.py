"""Randomness as a function of what it is for, never of rank, batch or device.

Every draw comes from numpy's Philox counter generator (Salmon et al., 2011), keyed by the seed and a purpose and
counted from a position, so that any number of processes, batches or resumed runs draw the same values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """First level of the key: what a draw is for."""

    SAMPLING = 0
    TRAINING = 1  # 2 is the order of clips, see data/order.py


class Modality(IntEnum):
    """Whose noise a draw is; PAD is the invented conditioning of the released code past the end of what is known,
    MEMORY stands in for frames that a stream which has just begun cannot remember."""

    VIDEO = 0
    AUDIO = 1
    PAD_VIDEO = 2
    PAD_AUDIO = 3
    MEMORY_VIDEO = 4
    MEMORY_AUDIO = 5


def generator(seed: int, purpose: Purpose, *position: int) -> np.random.Generator:
    """A generator of its own for up to three whole numbers of position.

    Raises:
        ValueError: a negative seed or position.
    """
    if seed < 0 or min(position, default=0) < 0:
        raise ValueError(f"seed {seed} and position {position} must not be negative; choose a seed of 0 or more")
    counter = [0, *position, *[0] * (3 - len(position))]  # the lowest word counts the draws themselves
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=counter))


def frame_noise(seed: int, sample: int, frame: int, modality: Modality, shape: tuple[int, ...]) -> Tensor:
    """Unit Gaussian noise of one frame: float32 on the CPU, a pure function of its arguments."""
    draws = generator(seed, Purpose.SAMPLING, sample, frame, modality)
    return torch.from_numpy(draws.standard_normal(shape, dtype=np.float32))


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; one that comes from the CPU makes the host wait for nothing."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


@dataclass(frozen=True)
class TrainingDraws:
    """All that is random in a training step, on the CPU.

    w, pre_rolling, drop: (B,) float64 uniform in [0, 1): phase, and what is compared with theta and the label dropout.
    posterior, eps_v: (B,*video) and eps_a: (B,*audio) float32 unit Gaussian.
    independent, w_a: (B,) as `w`: what is compared with the share of clips whose modalities have times of their own,
        and the phase of the sound there. caption: (B,) as `w`, which of its captions a clip takes. cut, cut_at: (B,)
        as `w`, what is compared with the share of clips that are cut, and where in the clip. forget: (B,) as `w`, what
        is compared with the share of clips without their memory. memory_w: (B,) as `w`, how noisy the memory is.
    """

    w: Tensor
    pre_rolling: Tensor
    drop: Tensor
    posterior: Tensor
    eps_v: Tensor
    eps_a: Tensor
    independent: Tensor
    w_a: Tensor
    caption: Tensor
    cut: Tensor
    cut_at: Tensor
    forget: Tensor
    memory_w: Tensor


def training_draws(
    seed: int, step: int, rows: Sequence[int], video: tuple[int, ...], audio: tuple[int, ...]
) -> TrainingDraws:
    """Draws of the clips at places `rows` of the global batch, each a function of (seed, step, place).

    Args:
        video, audio: shapes of one clip, (T,C,H,W) and (T,S,M).
    """
    draws = []
    for row in rows:
        draw = generator(seed, Purpose.TRAINING, row, step)
        gaussians = (draw.standard_normal(shape, dtype=np.float32) for shape in (video, video, audio))
        draws.append((*draw.random(3), *gaussians, *draw.random(7)))
    return TrainingDraws(*(torch.from_numpy(np.stack(column)) for column in zip(*draws)))
