"""What a tagger makes of sounds: divergence of the classes of two sounds, and the inception score of many.

Logits become a distribution by a softmax, also where a tagger was trained with a sigmoid for each class, as those of
AudioSet are: so published tables of generated sound do. All in float64 and in logarithms: no class needs an epsilon.
"""

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from metrics.distances import checked, in_pairs


def divergences(real: ArrayLike | Tensor, fake: ArrayLike | Tensor) -> Tensor:
    """KL(p || q) = sum_y p(y) log(p(y) / q(y)) of each pair, p of the real sound and q of the generated one.

    Args:
        real, fake: (n, K) logits of the K classes; row i of both is a pair.
    Returns:
        (n,) float64, in nats, 0 for equal distributions.
    Raises:
        ValueError: not as many rows of either, fewer than 2 classes, NaN or infinity, or the widths differ.
    """
    p, q = _log_probabilities(real, fake)
    return (p.exp() * (p - q)).sum(1)


def divergence_of_others(real: ArrayLike | Tensor, fake: ArrayLike | Tensor) -> float:
    """Mean KL(p_i || q_j) over all pairs of different places, i != j: what chance gives.

    Args, Raises: as of `divergences`; also with fewer than 2 pairs.
    """
    p, q = _log_probabilities(real, fake, fewest=2)
    n, weights = len(p), p.exp()
    own = (weights * (p - q)).sum()
    every = n * (weights * p).sum() - weights.sum(0) @ q.sum(0)  # of all i and j
    return ((every - own) / (n * (n - 1))).item()


def inception_score(logits: ArrayLike | Tensor) -> float:
    """exp(mean_i KL(p(y|x_i) || p(y))), p(y) the mean of all p(y|x_i) (Salimans et al. 2016, arXiv 1606.03498).

    1 where all sounds are alike or none is of any class, K for clear sounds of K classes that are equally many. Over
    all sounds at once, not the mean of ten parts as some tables have it; it grows with n, so compare at equal n.

    Args:
        logits: (n, K) of the K classes, a row for each sound.
    Raises:
        ValueError: there is no sound, fewer than 2 classes, NaN or infinity.
    """
    p, _ = _log_probabilities(logits, logits)
    mixed = p.logsumexp(0) - math.log(len(p))  # (K,) log p(y)
    return (p.exp() * (p - mixed)).sum(1).mean().exp().item()


def _log_probabilities(a: ArrayLike | Tensor, b: ArrayLike | Tensor, fewest: int = 1) -> tuple[Tensor, Tensor]:
    a, b = in_pairs(*checked(a, b, fewest))
    if a.shape[1] < 2:
        raise ValueError(f"logits of {a.shape[1]} class say nothing; give a tagger of 2 classes or more")
    return torch.log_softmax(a, 1), torch.log_softmax(b, 1)
