"""Fréchet and kernel distances: recorded values, closed forms, sets smaller than their features are wide."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metrics.distances import frechet, kernel_distance

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "metrics"
CASES = json.loads((PARITY / "manifest.json").read_text())["distances"]["cases"]


def features(case):
    stored = load_file(PARITY / "distances.safetensors")
    i3d, audio = load_file(PARITY / "i3d.safetensors"), load_file(PARITY / "audio.safetensors")
    made = {
        "identical": (stored["rank_deficient.a"], stored["rank_deficient.a"]),
        "identical_tiny": (stored["tiny_scale_full_rank.a"], stored["tiny_scale_full_rank.a"]),
        "mean_shift": (stored["full_rank.a"], stored["full_rank.a"] + stored["mean_shift.vector"]),
        "two_samples": (stored["rank_deficient.a"][:2], stored["rank_deficient.b"][:2]),
        "e2e_fvd_videos01_vs_23": i3d["logits_f64"].split(2),
        "e2e_fad_compat_clips0to3_vs_4to7": audio["emb_compat_b8_f64net"].split(4),
        "e2e_fad_sound_clips0to3_vs_4to7": audio["emb_sound_f64"].split(4),
    }
    return made[case] if case in made else (stored[f"{case}.a"], stored[f"{case}.b"])


def gaussian(mean, std):
    """2d rows whose sample mean and covariance are exactly `mean` and diag(std^2): two on each axis."""
    mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    arms = torch.diag(std) * ((2 * len(std) - 1) / 2) ** 0.5
    return mean + torch.cat([arms, -arms])


@pytest.mark.parametrize("case", CASES)
def test_frechet_distance_and_its_terms_are_those_recorded(case):
    a, b = features(case)
    recorded = CASES[case]["sound_f64"]
    scale = recorded["mean_term"] + recorded["trace_a"] + recorded["trace_b"]
    tolerance = (1e-9 if len(a) > a.shape[1] else 2e-6) * scale
    expected = [recorded[name] for name in ("fd", "mean_term", "trace_a", "trace_b", "trace_sqrt")]
    assert astuple(frechet(a, b)) == pytest.approx(expected, abs=tolerance, rel=0)
    assert frechet(a, b, compat=True).distance == pytest.approx(CASES[case]["compat_f64"], abs=1e-7 * scale, rel=0)


@pytest.mark.parametrize("case", CASES)
def test_kernel_distance_is_the_one_recorded(case):
    a, b = features(case)
    cross = (a.double() @ b.double().T / a.shape[1] + 1).pow(3).mean().item()
    assert kernel_distance(a, b) == pytest.approx(CASES[case]["kvd_f64"], abs=max(1e-9 * cross, 1e-10), rel=0)


def test_frechet_of_diagonal_gaussians_sums_squared_differences_of_means_and_deviations():
    a, b = gaussian([0, 1, -2, 5], [1, 2, 0.5, 3]), gaussian([1, 1, 0, 5], [2, 2, 1, 0.1])
    assert frechet(a, b).distance == pytest.approx((1 + 4) + (1 + 0 + 0.25 + 2.9**2), rel=1e-8)
    assert frechet(a, b, compat=True).distance == pytest.approx(14.66, rel=1e-8)


@pytest.mark.parametrize("n, d", [(300, 5), (20, 64)])
def test_frechet_of_a_shifted_set_is_the_squared_shift(n, d):
    a = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.arange(d) / 10
    assert frechet(a, a + shift).distance == pytest.approx(shift.square().sum().item(), rel=1e-8)


def test_frechet_of_crossed_gaussians_follows_the_closed_form_in_the_plane():
    # tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)) for 2 x 2; the covariances do not commute.
    a = gaussian([0, 0], [3, 1])
    b = gaussian([0, 0], [2, 0.5]) @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    product = a.T.cov() @ b.T.cov()
    expected = (product.trace() + 2 * product.det().sqrt()).sqrt().item()
    assert frechet(a, b).trace_sqrt == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n, d", [(500, 8), (20, 400), (2, 64)])
def test_a_set_is_at_distance_zero_from_itself(n, d):
    x = 50 + torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    same = frechet(x, x)
    assert abs(same.distance) < 1e-9 * same.trace_a


def test_frechet_is_symmetric_when_one_set_is_smaller_and_one_larger_than_its_width():
    rng = torch.Generator().manual_seed(2)
    a, b = torch.randn(10, 30, generator=rng), 2 * torch.randn(100, 30, generator=rng)
    assert frechet(a, b).distance == pytest.approx(frechet(b, a).distance, rel=1e-12)


def test_many_clips_need_no_matrix_of_all_against_all():
    x = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(3))  # all against all: 320 GB
    assert frechet(x, 2 * x).trace_sqrt == pytest.approx(2 * frechet(x, x).trace_a, rel=1e-9)


def test_half_precision_features_are_compared_in_float64():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(4)).half()
    assert frechet(x, x[:25]) == frechet(x.double(), x[:25].double())
    assert kernel_distance(x, x[:25]) == kernel_distance(x.double().numpy(), x[:25].double().numpy())


def test_kernel_distance_in_blocks_leaves_out_exactly_the_pairs_of_a_row_with_itself():
    rng = torch.Generator().manual_seed(5)
    a, b = (1 + torch.randn(n, 3, generator=rng, dtype=torch.float64) for n in (600, 300))  # neither fills its blocks
    aa, bb, ab = ((x @ y.T / 3 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (aa, bb)]
    assert kernel_distance(a, b) == pytest.approx((sum(within) - 2 * ab.mean()).item(), rel=1e-9)


@pytest.mark.parametrize("distance", [frechet, kernel_distance])
def test_unusable_features_are_refused_with_the_remedy(distance):
    good = torch.randn(5, 3, generator=torch.Generator().manual_seed(6))
    bad = good.clone()
    bad[1, 0], bad[3, 2], bad[3, 1] = torch.nan, torch.inf, torch.nan
    with pytest.raises(ValueError, match="2 of 5 rows of the second features hold NaN or infinity; repair or leave"):
        distance(good, bad)
    with pytest.raises(ValueError, match="the first features have too few rows, 1; give at least 2"):
        distance(good[:1], good)
    with pytest.raises(ValueError, match="features are 3 and 2 wide; compute both sets with the same network"):
        distance(good, good[:, :2])
    with pytest.raises(ValueError, match=r"the first features have shape \(3,\), expected \(n, d\)"):
        distance(good[0], good)
