"""How far to trust a figure: intervals for means over clips and for distances between sets of clips."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Features = NDArray | Tensor  # (n, d), one row per clip
Distance = Callable[[Features, Features], float]


class Interval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


class Floor(NamedTuple):
    """What a distance reads between two sets of real clips."""

    value: float
    n: int  # clips on each side


def bootstrap(
    values: ArrayLike,
    statistic: Callable[..., NDArray] = np.mean,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic of per-clip figures (Efron 1979): clips drawn with replacement.

    Args:
        values: (n,) one figure per clip.
        statistic: function of an array and `axis`, as np.mean and np.median are.
        level: share of data sets in which the interval holds the true value.
    Raises:
        ValueError: there are fewer than 2 values, or some are NaN or infinite.
    """
    values = _per_clip(values, ndim=1)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return Interval(*map(float, np.quantile(statistic(values[drawn], axis=1), _ends(level))))


def bootstrap_curve(
    values: ArrayLike, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[NDArray, NDArray]:
    """Interval of the mean at each point of a curve; whole clips are drawn, so a clip's points stay together.

    Each point is covered in a share `level` of data sets; the whole curve at once is covered less often.

    Args:
        values: (n, k) a curve of k points per clip.
    Returns:
        (k,) low, (k,) high.
    Raises:
        ValueError: there are fewer than 2 curves, or some hold NaN or infinity.
    """
    values = _per_clip(values, ndim=2)
    n = len(values)
    times_drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)  # (resamples, n)
    low, high = np.quantile(times_drawn @ values / n, _ends(level), axis=0)
    return low, high


def subsample_band(
    a: Features,
    b: Features,
    distance: Distance,
    draws: int,
    share: float = 0.5,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Confidence interval of a distance without bias, such as KVD: deviations of subsets from the whole, scaled.

    Subsets are drawn without replacement, since a copy in the set would count as a pair of equal clips. A share s of
    the clips leaves a variance of 1/s - 1 times that of the whole set; deviations are scaled by sqrt(s / (1 - s)), by
    1 at half (Politis, Romano and Wolf 1999, with the correction for a finite population). That is right for sets
    that differ. For sets that hardly differ KVD varies as 1/n rather than 1/sqrt(n) and the interval is too wide, by
    sqrt(3) at half, so it errs on the safe side. Not for Fréchet distances: see `dispersion_band`.

    Args:
        a, b: (n, d) and (m, d), each at least 4 clips at a share of half.
        distance: function of two sets; it must be unbiased.
        draws: number of subsets; 200 settle the ends well enough to plot.
        share: of each set in a subset.
    Raises:
        ValueError: the share is not between 0 and 1 or leaves fewer than 2 clips of a set.
    """
    drawn, whole = _subsampled(a, b, distance, draws, share, seed), float(distance(a, b))
    return _band(whole, drawn - whole, share, level)


def dispersion_band(
    a: Features,
    b: Features,
    distance: Distance,
    draws: int,
    share: float = 0.5,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Dispersion of a biased distance such as Fréchet's: how far it would move with other clips, as many as these.

    This is no confidence interval. The Fréchet distance of finite sets lies above the distance of what they were drawn
    from, and with few clips the whole band does too. It compares models only at equal n. Subsets lie above the whole
    set for the same reason, so deviations are taken from their own mean. Between sets that hardly differ the band is
    wider than the true spread, 1.6 times for 40 clips a side of 20 features.

    Args, Raises: as in `subsample_band`; for Fréchet give `lambda a, b: frechet(a, b).distance`.
    """
    drawn, whole = _subsampled(a, b, distance, draws, share, seed), float(distance(a, b))
    return _band(whole, drawn - drawn.mean(), share, level)


def real_against_real(real: Features, distance: Distance, n: int, seed: int = 0) -> Floor:
    """Distance between two disjoint random sets of real clips: what a perfect model would score.

    Args:
        real: (m, d) features of real clips.
        n: clips on each side, as many as the model is judged on; half of the real clips where there are fewer than 2n.
    Returns:
        The distance, and the clips on each side that it was measured with: a Fréchet distance depends on it.
    Raises:
        ValueError: there are fewer than 4 real clips, or n is below 2.
    """
    if len(real) < 4 or n < 2:
        raise ValueError(f"{len(real)} real clips with {n} a side are too few; give at least 4 clips and 2 a side")
    n = min(n, len(real) // 2)
    order = np.random.default_rng(seed).permutation(len(real))
    return Floor(float(distance(real[order[:n]], real[order[n : 2 * n]])), n)


def _subsampled(a: Features, b: Features, distance: Distance, draws: int, share: float, seed: int) -> NDArray:
    """Distances (draws,) of random subsets."""
    n, m = int(len(a) * share), int(len(b) * share)
    if not 0 < share < 1 or min(n, m) < 2:
        raise ValueError(f"a share of {share:g} of {len(a)} and {len(b)} clips leaves {n} and {m}; "
                         f"give a share between 0 and 1 that leaves at least 2 of each")  # fmt: skip
    rng = np.random.default_rng(seed)
    return np.array([distance(a[rng.permutation(len(a))[:n]], b[rng.permutation(len(b))[:m]]) for _ in range(draws)])


def _band(whole: float, deviations: NDArray, share: float, level: float) -> Interval:
    low, high = whole + np.quantile(deviations, _ends(level)) * (share / (1 - share)) ** 0.5
    return Interval(float(low), float(high))


def _ends(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def _per_clip(values: ArrayLike, ndim: int) -> NDArray:
    values = np.asarray(values, dtype=float)
    if values.ndim != ndim:
        shape = ("(n,): one figure per clip", "(n, k): one curve per clip")[ndim - 1]
        raise ValueError(f"values have shape {values.shape}, expected {shape}")
    if len(values) < 2:
        raise ValueError(f"an interval needs more clips than {len(values)}; give at least 2")
    if broken := int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum()):
        raise ValueError(f"{broken} of {len(values)} clips have NaN or infinite figures; leave those clips out")
    return values
