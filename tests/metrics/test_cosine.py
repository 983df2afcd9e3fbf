"""The core of the CLAP score on vectors whose angles are known."""

import math

import pytest
import torch

from metrics.cosine import cosine_of_others, cosines


def test_cosine_is_that_of_the_angle_whatever_the_lengths():
    angles = torch.tensor([0, 30, 60, 90, 180], dtype=torch.float64).deg2rad()
    a = torch.tensor([[2.0, 0.0]]).repeat(5, 1)
    b = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [7.0], [1e-30], [1e30], [3.0]])
    expected = torch.tensor([1, math.sqrt(3) / 2, 0.5, 0, -1], dtype=torch.float64)
    torch.testing.assert_close(cosines(a, b), expected, rtol=0, atol=1e-12)


def test_cosine_of_others_leaves_out_ones_own_partner():
    """Three axes: each pair is parallel, and every other one at a right angle but the last two, which are opposite."""
    a = torch.tensor([[1.0, 0], [0, 1], [0, -1]])
    assert cosines(a, a).tolist() == [1, 1, 1]
    assert cosine_of_others(a, a) == pytest.approx(-2 / 6, abs=1e-12)


def test_cosine_of_others_is_the_mean_of_all_the_others_one_by_one():
    a, b = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one_by_one = [cosines(a[i : i + 1], b[j : j + 1]).item() for i in range(5) for j in range(5) if i != j]
    assert cosine_of_others(a, b) == pytest.approx(sum(one_by_one) / 20, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (torch.ones(3, 2), torch.ones(2, 2), "3 and 2 rows are no pairs; give as many of either"),
        (torch.ones(2, 3), torch.ones(2, 2), "features are 3 and 2 wide; compute both sets with the same network"),
        (torch.eye(3)[:, :2], torch.ones(3, 2), "1 of 3 pairs hold an embedding of zeros"),
        (torch.full((1, 2), torch.nan), torch.ones(1, 2), "hold NaN or infinity"),
    ],
)
def test_what_are_no_pairs_of_directions_is_refused(a, b, said):
    with pytest.raises(ValueError, match=said):
        cosines(a, b)
    with pytest.raises(ValueError, match="too few rows, 1; give at least 2"):
        cosine_of_others(torch.ones(1, 2), torch.ones(1, 2))
