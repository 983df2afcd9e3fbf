"""Intervals: they cover known values as often as they say, and real clips against real ones give the floor."""

import numpy as np
import pytest
import torch

from metrics.distances import frechet, kernel_distance
from metrics.intervals import bootstrap, bootstrap_curve, dispersion_band, real_against_real, subsample_band


def frechet_distance(a, b):
    return frechet(a, b).distance


def mean_difference(a, b):
    return float(a.mean() - b.mean())


def pair(rng, n=60, d=4, shift=1.0):
    """N(0, I) and N(shift e_1, I)."""
    a, b = rng.standard_normal((2, n, d))
    b[:, 0] += shift
    return a, b


def true_kernel_distance(shift, d):
    """Squared differences of the first three moments of `pair`, by the binomial terms of (1 + x.y / d)^3."""
    third = (shift**3 + 3 * shift) ** 2 + 3 * (d - 1) * shift**2
    return 3 * shift**2 / d + 3 * shift**4 / d**2 + third / d**3


def test_bootstrap_interval_of_a_mean_covers_it_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.exponential(2, size=60), resamples=400) for _ in range(200)]
    assert 0.90 <= np.mean([low <= 2 <= high for low, high in intervals]) <= 1
    wide = np.mean([high - low for low, high in intervals])
    assert wide == pytest.approx(2 * 1.96 * 2 / 60**0.5, rel=0.1)  # so it does not cover by being too wide


def test_bootstrap_takes_other_statistics_and_levels():
    values = np.random.default_rng(1).standard_normal(101)
    values[0] = 1e6  # one clip gone wrong moves the mean, not the median
    assert bootstrap(values, np.median).high < 1 < bootstrap(values).high
    narrow, wide = (np.diff(bootstrap(values, np.median, level=level))[0] for level in (0.5, 0.95))
    assert narrow < wide / 2


def test_each_point_of_a_curve_has_the_interval_of_its_own_mean():
    rng = np.random.default_rng(2)
    values = rng.standard_normal((80, 3)) * [1, 5, 0] + [0, 10, 7]
    low, high = bootstrap_curve(values, resamples=2000)
    alone = np.array([bootstrap(values[:, k], resamples=2000) for k in range(3)])
    np.testing.assert_allclose(np.stack([low, high], 1), alone, atol=0.12)
    assert low[2] == pytest.approx(7) == high[2]


def test_clips_of_a_curve_are_drawn_whole():
    x = np.random.default_rng(3).standard_normal(50)
    low, high = bootstrap_curve(np.stack([x, x], 1))
    assert low[0] == low[1] and high[0] == high[1]


def test_kernel_distance_of_two_halves_of_one_set_is_zero_on_average():
    real = 1 + np.random.default_rng(4).standard_normal((80, 5))
    drawn = np.array([real_against_real(real, kernel_distance, n=40, seed=seed).value for seed in range(200)])
    assert abs(drawn.mean()) < 3 * drawn.std(ddof=1) / 200**0.5
    assert 0.1 < (drawn < 0).mean() < 0.9


def test_kernel_distance_interval_covers_the_true_distance_about_as_often_as_it_says():
    rng, true = np.random.default_rng(5), true_kernel_distance(shift=1.0, d=4)
    bands = [subsample_band(*pair(rng), kernel_distance, draws=40, seed=i) for i in range(40)]
    assert 0.85 <= np.mean([low <= true <= high for low, high in bands]) <= 1
    values = [kernel_distance(*pair(rng)) for _ in range(60)]
    width = np.mean([high - low for low, high in bands])
    assert 0.8 < width / (2 * 1.96 * np.std(values)) < 1.5  # so it does not cover by being too wide


def test_interval_holds_zero_for_sets_drawn_alike():
    rng = np.random.default_rng(6)
    bands = [subsample_band(*pair(rng, shift=0), kernel_distance, draws=40) for _ in range(30)]
    assert np.mean([low <= 0 <= high for low, high in bands]) > 0.9


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_interval_is_as_wide_as_theory_says_whatever_the_share(share):
    a, b = pair(np.random.default_rng(7), n=100, d=1)
    low, high = subsample_band(a, b, mean_difference, draws=1000, share=share)
    assert high - low == pytest.approx(2 * 1.96 * ((a.var() + b.var()) / 100) ** 0.5, rel=0.12)
    assert (low + high) / 2 == pytest.approx(mean_difference(a, b), abs=0.1 * (high - low))


def test_dispersion_is_that_of_fresh_sets_and_surrounds_the_value_despite_the_bias_of_subsets():
    rng = np.random.default_rng(8)
    fresh = [frechet_distance(*pair(rng, n=40, d=20, shift=2)) for _ in range(100)]
    sets = [pair(rng, n=40, d=20, shift=2) for _ in range(20)]
    values = np.array([frechet_distance(a, b) for a, b in sets])
    bands = np.array([dispersion_band(a, b, frechet_distance, draws=60) for a, b in sets])
    width = (bands[:, 1] - bands[:, 0]).mean()
    assert 0.7 < width / (2 * 1.96 * np.std(fresh)) < 1.5
    assert abs(bands.mean() - values.mean()) < 0.1 * width
    assert bands[:, 0].min() > 2**2  # the distance of the two Gaussians: a dispersion, no confidence interval


def test_floor_is_measured_between_disjoint_sets_of_the_size_asked_for_or_halves():
    real = torch.arange(21.0)[:, None]
    seen = []

    def distance(a, b):
        seen.append((a, b))
        return 0.5

    assert real_against_real(real, distance, n=6) == (0.5, 6)
    assert real_against_real(real, distance, n=500) == (0.5, 10)
    for (a, b), n in zip(seen, (6, 10)):
        assert len(a) == len(b) == n and len(torch.cat([a, b]).unique()) == 2 * n


def test_floor_of_a_frechet_distance_is_above_zero_and_falls_with_n():
    real = np.random.default_rng(9).standard_normal((400, 10))
    few, many = (real_against_real(real, frechet_distance, n).value for n in (20, 200))
    assert 0 < many < few / 4


@pytest.mark.parametrize("band", [subsample_band, dispersion_band])
def test_bands_depend_on_the_seed_alone_and_take_tensors(band):
    a, b = pair(np.random.default_rng(10))
    first = band(a, b, kernel_distance, draws=20, seed=1)
    np.random.default_rng(11).random()
    assert band(torch.from_numpy(a), torch.from_numpy(b), kernel_distance, draws=20, seed=1) == first
    assert band(a, b, kernel_distance, draws=20, seed=2) != first


def test_bootstrap_and_floor_depend_on_the_seed_alone():
    values = np.random.default_rng(12).standard_normal((30, 2))
    assert bootstrap(values[:, 0], seed=1) == bootstrap(values[:, 0], seed=1) != bootstrap(values[:, 0], seed=2)
    low, again, other = (bootstrap_curve(values, seed=seed)[0] for seed in (1, 1, 2))
    assert (low == again).all() and (low != other).any()
    floor, repeated, different = (real_against_real(values, kernel_distance, 10, seed) for seed in (1, 1, 2))
    assert floor == repeated != different


def test_too_few_clips_or_broken_figures_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="an interval needs more clips than 1; give at least 2"):
        bootstrap([3.0])
    with pytest.raises(ValueError, match="1 of 3 clips have NaN or infinite figures; leave those clips out"):
        bootstrap_curve([[1, 2], [np.nan, np.inf], [3, 4]])
    with pytest.raises(ValueError, match=r"values have shape \(2, 1\), expected \(n,\): one figure per clip"):
        bootstrap([[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"a share of 0\.5 of 3 and 60 clips leaves 1 and 30; give a share"):
        subsample_band(np.ones((3, 2)), np.ones((60, 2)), kernel_distance, draws=5)
    with pytest.raises(ValueError, match="3 real clips with 2 a side are too few; give at least 4"):
        real_against_real(np.ones((3, 2)), kernel_distance, n=2)
