"""How near two embeddings are: the CLAP score of a sound and its text, or of two sounds."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from metrics.distances import checked, in_pairs


def cosines(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> Tensor:
    """Cosine of each pair of rows, <a_i, b_i> / (|a_i| |b_i|); the CLAP score is their mean.

    CLAP: Wu et al. 2023, arXiv 2211.06687. Some tables give it times 100.

    Args:
        a, b: (n, d) embeddings; row i of both is a pair.
    Returns:
        (n,) float64 in [-1, 1].
    Raises:
        ValueError: not as many rows of either, a row is zero or holds NaN or infinity, or the widths differ.
    """
    a, b = _directions(a, b)
    return (a * b).sum(1)


def cosine_of_others(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Mean cosine of all a_i with all b_j of other pairs, i != j: what chance gives.

    Args, Raises: as of `cosines`; also with fewer than 2 pairs.
    """
    a, b = _directions(a, b, fewest=2)
    n = len(a)
    return ((a.sum(0) @ b.sum(0) - (a * b).sum()) / (n * (n - 1))).item()


def _directions(a: ArrayLike | Tensor, b: ArrayLike | Tensor, fewest: int = 1) -> tuple[Tensor, Tensor]:
    """Both in float64, of length 1."""
    a, b = in_pairs(*checked(a, b, fewest))
    lengths = torch.stack([a.norm(dim=1), b.norm(dim=1)])
    if none := int((lengths == 0).any(0).sum()):
        raise ValueError(f"{none} of {len(a)} pairs hold an embedding of zeros, which has no direction; "
                         "leave them out")  # fmt: skip
    return a / lengths[0].unsqueeze(1), b / lengths[1].unsqueeze(1)
