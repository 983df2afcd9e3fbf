"""Distances between two sets of feature vectors: Fréchet (FVD, FAD) and kernel (KVD), in float64 throughout."""

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

BLOCK = 256  # rows of a kernel matrix held at a time
SMALL = 1e-10  # singular values below it keep their value instead of their root in the `compat` rule


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance and its terms: distance = mean_term + trace_a + trace_b - 2 trace_sqrt."""

    distance: float  # of equal sets 0 up to rounding, so possibly just below it
    mean_term: float  # |mean_a - mean_b|^2
    trace_a: float  # tr(Sa)
    trace_b: float  # tr(Sb)
    trace_sqrt: float  # tr((Sa Sb)^(1/2))


def frechet(a: ArrayLike | Tensor, b: ArrayLike | Tensor, compat: bool = False) -> Frechet:
    """Fréchet distance of the Gaussians fitted to two sets (Heusel et al. 2017; FVD: Unterthiner et al. 2018).

    Covariances are unbiased. With Sa = A^T A and Sb = B^T B the trace of (Sa Sb)^(1/2) is the sum of the singular
    values of A B^T, which needs no root of a singular matrix and so holds for n < d too. The distance is biased: it
    falls as n grows, so only distances at equal n compare.

    Args:
        a: (n, d) features, one row per clip.
        b: (m, d) features of the same network.
        compat: follow the released evaluation, whose matrix root leaves singular values below 1e-10 as they are. It
            differs where features are small, as those of AudioCLIP.
    Raises:
        ValueError: a set has fewer than 2 rows or holds NaN or infinity, or the widths differ.
    """
    a, b = checked(a, b)
    mean_term = (a.mean(0) - b.mean(0)).square().sum().item()
    a, b = _centred(a), _centred(b)
    trace_a, trace_b = a.square().sum().item(), b.square().sum().item()
    trace_sqrt = _trace_sqrt_compat(a, b) if compat else _trace_sqrt(a, b)
    return Frechet(mean_term + trace_a + trace_b - 2 * trace_sqrt, mean_term, trace_a, trace_b, trace_sqrt)


def kernel_distance(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Kernel video distance (KVD): unbiased squared MMD under k(x, y) = (x.y / d + 1)^3 (Bińkowski et al. 2018).

    Its mean is 0 for sets drawn alike, whatever n and m, so it may be negative. Memory is 256 rows of a kernel matrix.

    Args:
        a: (n, d) features, one row per clip.
        b: (m, d) features of the same network.
    Raises:
        ValueError: a set has fewer than 2 rows or holds NaN or infinity, or the widths differ.
    """
    a, b = checked(a, b)
    return _kernel_mean_within(a) + _kernel_mean_within(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def checked(a: ArrayLike | Tensor, b: ArrayLike | Tensor, fewest: int = 2) -> tuple[Tensor, Tensor]:
    """Both feature sets (n, d) and (m, d) as float64 on the CPU.

    Raises:
        ValueError: a set is no matrix, has fewer than `fewest` rows or holds NaN or infinity, or the widths differ.
    """
    a, b = (torch.as_tensor(x).detach().to("cpu", torch.float64) for x in (a, b))
    for name, x in (("first", a), ("second", b)):
        if x.ndim != 2:
            raise ValueError(f"the {name} features have shape {tuple(x.shape)}, expected (n, d): one row per clip")
        if len(x) < fewest:
            raise ValueError(f"the {name} features have too few rows, {len(x)}; give at least {fewest}, one per clip")
        if broken := int((~x.isfinite().all(1)).sum()):
            raise ValueError(f"{broken} of {len(x)} rows of the {name} features hold NaN or infinity; "
                             f"repair or leave out the clips they come from")  # fmt: skip
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features are {a.shape[1]} and {b.shape[1]} wide; compute both sets with the same network")
    return a, b


def in_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as they are, row i of either belonging to row i of the other.

    Raises:
        ValueError: there are not as many of either.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} rows are no pairs; give as many of either, in the same order")
    return a, b


def _centred(x: Tensor) -> Tensor:
    """(n, d) -> X (n, d) with X^T X the unbiased covariance."""
    return (x - x.mean(0)) / (len(x) - 1) ** 0.5


def _trace_sqrt(a: Tensor, b: Tensor) -> float:
    """tr((A^T A B^T B)^(1/2)), the nuclear norm of A B^T.

    A set of more than d rows is first reduced to the d rows of R in X = QR, which have the same X^T X.
    """
    a, b = (torch.linalg.qr(x, mode="r").R if x.shape[0] > x.shape[1] else x for x in (a, b))
    return torch.linalg.svdvals(a @ b.T).sum().item()


def _trace_sqrt_compat(a: Tensor, b: Tensor) -> float:
    """tr((Sa^(1/2) Sb Sa^(1/2))^(1/2)) by the released evaluation's root, which acts on singular values alone.

    Those of Sa are squares of A's, and those of the product are squares of B Sa^(1/2)'s, so no (d, d) matrix is needed.
    """
    _, s, directions = torch.linalg.svd(a, full_matrices=False)  # (r,), (r, d)
    return _root_compat(torch.linalg.svdvals(b @ directions.T * _root_compat(s.square())).square()).sum().item()


def _root_compat(x: Tensor) -> Tensor:
    return torch.where(x < SMALL, x, x.sqrt())


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    return sum((rows @ b.T / b.shape[1] + 1).pow(3).sum().item() for rows in a.split(BLOCK))


def _kernel_mean_within(x: Tensor) -> float:
    """Mean of k over pairs of different rows."""
    diagonal = (x.square().mean(1) + 1).pow(3).sum().item()
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))
