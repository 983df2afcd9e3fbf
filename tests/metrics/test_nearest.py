"""Nearest neighbours and memorisation: copies are found, fresh samples pass."""

import pytest
import torch

from metrics.nearest import memorisation, nearest


def gaussian(seed, n, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_nearest_is_the_one_that_comparing_all_with_all_finds():
    a, b = gaussian(0, 600).double(), gaussian(1, 300).double()  # neither fills its blocks
    distance, index = nearest(a, b)
    expected = (a[:, None] - b).norm(dim=2).min(1)
    torch.testing.assert_close(distance, expected.values, rtol=1e-12, atol=0)
    assert index.equal(expected.indices)


def test_copies_are_found_at_distance_zero_even_far_from_the_origin():
    train = 1e4 + gaussian(2, 300).double()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    distance, index = nearest(train[order], train)
    assert index.equal(order) and distance.eq(0).all()


def test_copies_of_training_clips_give_ratio_0_and_share_1():
    train = gaussian(4, 400)
    copied = memorisation(train[:100] + 1e-4 * gaussian(5, 100), train)
    assert copied.ratio < 1e-3 and copied.share == 1
    assert copied.index.equal(torch.arange(100))


@pytest.mark.parametrize("n", [400, 2000])
def test_fresh_draws_give_ratio_1_and_the_share_that_real_clips_have(n):
    fresh = memorisation(gaussian(6, 1000), gaussian(7, n))
    assert fresh.ratio == pytest.approx(1, abs=0.1)
    assert fresh.share < 0.04


def test_a_training_clip_is_not_its_own_neighbour():
    train = torch.arange(600.0)[:, None]  # more than a block, each 1 from the next
    assert memorisation(train + 0.25, train).ratio == pytest.approx(0.25)


def test_held_out_clips_are_the_yardstick_where_given():
    train, real = 10 * torch.arange(50.0)[:, None], 10 * torch.arange(50.0)[:, None] + 4
    assert memorisation(train + 1, train, real).ratio == pytest.approx(1 / 4)
    assert memorisation(train + 1, train).ratio == pytest.approx(1 / 10)


def test_few_copies_among_fresh_samples_show_in_the_share_and_come_first():
    train, fake = gaussian(8, 500), gaussian(9, 200)
    fake[[30, 60, 90]] = train[[7, 8, 9]] + torch.tensor([[0.02], [0.0], [0.01]])
    found = memorisation(fake, train)
    assert found.closest[:3].tolist() == [[60, 8], [90, 9], [30, 7]]
    assert found.distance[found.closest[:, 0]].diff().ge(0).all() and len(found.closest) == 10
    assert found.share >= 3 / 200 and found.ratio > 0.9


def test_exact_copies_count_even_where_training_clips_repeat():
    train = torch.cat([gaussian(10, 100), gaussian(10, 100)[:5]])  # 1st percentile of real distances is 0
    assert memorisation(train, train).share == 1


def test_training_clips_that_mostly_repeat_are_refused():
    twice = torch.cat([gaussian(11, 20), gaussian(11, 20)])
    with pytest.raises(ValueError, match="40 of 40 real clips repeat a training clip, so nothing can be nearer; leave"):
        memorisation(gaussian(12, 5), twice)


def test_broken_or_missing_features_are_refused():
    good = gaussian(13, 4)
    with pytest.raises(ValueError, match="1 of 2 rows of the first features hold NaN"):
        nearest(torch.tensor([[0.0], [torch.nan]]), good[:, :1])
    with pytest.raises(ValueError, match="the second features have too few rows, 0; give at least 1"):
        nearest(good, good[:0])
    with pytest.raises(ValueError, match="the first features have too few rows, 1; give at least 2"):
        memorisation(good, good[:1])  # no other real clip to compare with
