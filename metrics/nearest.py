"""Memorisation: are generated clips nearer to training clips than real clips are to each other?"""

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from metrics.distances import checked

BLOCK = 256  # rows of the distance matrix held at a time
CLOSEST = 10  # pairs to look at by eye


@dataclass(frozen=True)
class Memorisation:
    """How near generated samples come to training samples, against how near real samples come."""

    distance: Tensor  # (n,) from each generated sample to the nearest training sample
    index: Tensor  # (n,) of that training sample
    ratio: float  # median distance over the median real one: about 1 for fresh samples, 0 for copies
    share: float  # of samples no farther than the 1st percentile of real distances: about 0.01 for fresh, 1 for copies
    closest: Tensor  # (up to 10, 2) indices (generated, training) of the closest pairs, nearest first


def nearest(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance from each row of `a` to the nearest row of `b`, and which row that is.

    Candidates are compared by |x|^2 + |y|^2 - 2 x.y, in blocks and in float64; the distance to the chosen row is then
    computed directly, so that of a copy is 0. Rows within 1e-7 of the features' spread of each other may be confused.

    Args:
        a: (n, d) features, one row per clip.
        b: (m, d) features of the same network.
    Returns:
        (n,) distances in float64, (n,) indices into b.
    Raises:
        ValueError: a set is empty or holds NaN or infinity, or the widths differ.
    """
    a, b = checked(a, b, fewest=1)
    return _nearest(a, b)


def memorisation(
    fake: ArrayLike | Tensor, train: ArrayLike | Tensor, real: ArrayLike | Tensor | None = None
) -> Memorisation:
    """Compare generated samples' distances to the training set with those of real samples (cf. Meehan et al. 2020).

    Args:
        fake: (n, d) features of generated clips.
        train: (m, d) features of the clips trained on.
        real: (k, d) features of real clips not trained on, whose distances to `train` are the yardstick; without them
            it is the distance of each training clip to the nearest other one.
    Raises:
        ValueError: a set is empty or holds NaN or infinity, the widths differ, or most real distances are 0.
    """
    fake, train = checked(fake, train, fewest=1)
    distance, index = _nearest(fake, train)
    usual = _nearest(*checked(train, train), apart=True)[0] if real is None else nearest(real, train)[0]
    if usual.quantile(0.5) == 0:
        raise ValueError(f"{int((usual == 0).sum())} of {len(usual)} real clips repeat a training clip, "
                         f"so nothing can be nearer; leave out the copies")  # fmt: skip
    first = distance.argsort(stable=True)[:CLOSEST]
    return Memorisation(
        distance=distance,
        index=index,
        ratio=(distance.quantile(0.5) / usual.quantile(0.5)).item(),
        share=(distance <= usual.quantile(0.01)).double().mean().item(),
        closest=torch.stack([first, index[first]], 1),
    )


def _nearest(a: Tensor, b: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
    """`apart`: a and b are one set, and a row is not its own neighbour."""
    middle = b.mean(0)  # squares of features far from 0 would drown their differences
    near, norms = b - middle, (b - middle).square().sum(1)  # (m, d), (m,)
    found = []
    for start in range(0, len(a), BLOCK):
        square = norms - 2 * (a[start : start + BLOCK] - middle) @ near.T  # (block, m), without |x|^2: same for all
        if apart:
            square.diagonal(start).fill_(torch.inf)
        found.append(square.argmin(1))
    index = torch.cat(found)
    return (a - b[index]).norm(dim=1), index
