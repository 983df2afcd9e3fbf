"""Randomness as a function of what it is for, never of rank, batch or device.

Every draw comes from numpy's Philox counter generator (Salmon et al., 2011), keyed by the seed and a purpose and
counted from a position, so that any number of processes, batches or resumed runs draw the same values.
"""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """First level of the key: what a draw is for."""

    SAMPLING = 0
    TRAINING = 1
    ORDER = 2


class Modality(IntEnum):
    """Whose noise a draw is; PAD is the invented conditioning of the released code past the end of what is known."""

    VIDEO = 0
    AUDIO = 1
    PAD_VIDEO = 2
    PAD_AUDIO = 3


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
