"""Whole clips: Euler's method where its error is known, given modalities where they belong, noise paired with data."""

from itertools import permutations

import pytest
import torch

from diffusion.clip import Given, sample_clip
from diffusion.flow import flow_loss, interpolate, uniform_weight
from diffusion.guidance import clip_guided
from diffusion.pairing import paired, transport_costs
from diffusion.times import logit_normal_times

SHAPES = (3, 2, 4, 5, 5), (3, 7, 6)  # (B,T,C,H,W), (B,N,M): sound need not be a multiple of the frames


def gaussians(seed=0, shapes=SHAPES):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes)


# ------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_constant_field_is_followed_exactly(steps):
    (v, a), (dv, da) = gaussians(), gaussians(1)
    made = sample_clip(lambda v, a, t, t_a: (dv, da), v, a, steps)
    torch.testing.assert_close(made[0], v + dv, rtol=0, atol=1e-12)
    torch.testing.assert_close(made[1], a + da, rtol=0, atol=1e-12)


def test_halving_the_step_halves_the_error_on_a_linear_field():
    v, a = gaussians()
    errors = [(sample_clip(lambda v, a, t, t_a: (v, -a), v, a, n)[0] - v * torch.e).norm() for n in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02) and errors[1] / errors[2] == pytest.approx(2, rel=0.01)


def test_times_rise_from_noise_to_data_for_both_and_the_bar_sees_each_step():
    seen, bars = [], []

    def field(v, a, t, t_a):
        assert t.shape == (3,) and t.dtype == torch.float64
        seen.append((t[0].item(), t_a[0].item()))
        return torch.zeros_like(v), torch.zeros_like(a)

    sample_clip(field, *gaussians(), 4, progress=lambda steps: bars.append(len(steps)) or steps)
    assert seen == [(0, 0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75)] and bars == [4]


def test_given_picture_is_on_its_line_at_every_step_and_comes_out_as_it_is():
    (v, a), (clean, _) = gaussians(), gaussians(1)
    eps, seen = gaussians(2)[0], []

    def field(v, a, t, t_a):
        seen.append((v - (t[0] * clean + (1 - t[0]) * eps)).abs().max().item())
        return torch.full_like(v, torch.nan), v.mean() + torch.zeros_like(a)

    made = sample_clip(field, v, a, 5, given_v=Given(clean, eps))
    assert max(seen) < 1e-12 and len(seen) == 5 and made[0] is clean and made[1].isfinite().all()


def test_given_sound_is_held_at_its_time():
    (v, a), (_, clean) = gaussians(), gaussians(1)
    eps, seen = gaussians(2)[1], []

    def field(v, a, t, t_a):
        seen.append((t[0].item(), t_a[0].item(), a))
        return torch.zeros_like(v), torch.full_like(a, torch.nan)

    made = sample_clip(field, v, a, 3, given_a=Given(clean, eps, t=0.8))
    assert [times[:2] for times in seen] == [(0, 0.8), (1 / 3, 0.8), (2 / 3, 0.8)]
    torch.testing.assert_close(seen[0][2], 0.8 * clean + 0.2 * eps, rtol=0, atol=1e-12)
    assert all(torch.equal(x[2], seen[0][2]) for x in seen) and torch.equal(made[1], clean)


def test_clip_that_cannot_be_made_is_refused():
    v, a = gaussians()
    with pytest.raises(ValueError, match="0 steps make no clip; take at least 1"):
        sample_clip(None, v, a, 0)
    with pytest.raises(ValueError, match="both given, so nothing is left to make; give one of them"):
        sample_clip(None, v, a, 1, Given(v, v), Given(a, a))
    for t in (0.0, 1.2, -1.0):
        with pytest.raises(ValueError, match=r"conditioning time .* is not in \(0, 1\]"):
            Given(v, v, t)


@pytest.mark.parametrize("w", [0.0, 1.0, 6.0])
def test_guidance_is_linear_from_the_null_side_at_0_to_the_given_one_at_1_with_one_weight_for_both(w):
    (v, a), t = gaussians(), torch.zeros(3, dtype=torch.float64)
    given, null = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([-4.0, 5.0, 0.5]).double()
    rows = []

    def model(v, a, t, t_a, text):
        rows.append(len(text))
        return text.view(-1, 1, 1, 1, 1) * v, text.view(-1, 1, 1) * a + t_a.view(-1, 1, 1)

    guided = clip_guided(model, w, {"text": given}, {"text": torch.cat([given, null])})
    dv, da = guided(v, a, t, t_a=t)
    mixed = null + w * (given - null)
    torch.testing.assert_close(dv, mixed.view(-1, 1, 1, 1, 1) * v, rtol=0, atol=1e-12)
    torch.testing.assert_close(da, mixed.view(-1, 1, 1) * a, rtol=0, atol=1e-12)
    assert rows == [3 if w == 1 else 6]


# ------------------------------------------------------------------------------------------------------------- training


def test_loss_of_clips_is_the_sum_of_two_means_and_zero_for_the_oracle():
    (v, a), noise, t = gaussians(), gaussians(1), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    oracle = lambda v_t, a_t, t, t_a: (v - noise[0], a - noise[1])  # noqa: E731
    assert flow_loss(oracle, v, a, None, t, noise, uniform_weight).total < 1e-24
    zero = flow_loss(lambda v, a, t, t_a: (0 * v, 0 * a), v, a, None, t, noise, uniform_weight)
    expected = (v - noise[0]).square().mean() + (a - noise[1]).square().mean()
    torch.testing.assert_close(zero.total, expected, rtol=1e-12, atol=0)
    assert zero.error_v.shape == (3, 2) and zero.error_a.shape == (3, 7)


def test_velocity_is_the_slope_of_the_line_and_both_modalities_are_at_the_same_time():
    (v, a), noise, h = gaussians(), gaussians(1), 1e-6
    t = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    slope = (interpolate(v, noise[0], t + h) - interpolate(v, noise[0], t)) / h
    torch.testing.assert_close(slope, v - noise[0], rtol=0, atol=1e-5)
    assert torch.equal(interpolate(v, noise[0], 0 * t), noise[0])
    assert torch.equal(interpolate(v, noise[0], 0 * t + 1), v)
    seen = []
    flow_loss(lambda v, a, t, t_a: seen.append((t, t_a)) or (v, a), v, a, None, t, noise, uniform_weight)
    assert torch.equal(*seen[0]) and seen[0][0].shape == (3,)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-1.0, 1.0), (0.5, 2.0)])
def test_logits_of_drawn_times_are_gaussian(mean, std):
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = logit_normal_times(u, mean, std).logit()
    assert logits.mean().item() == pytest.approx(mean, abs=0.03 * std)
    assert logits.std().item() == pytest.approx(std, abs=0.03 * std)
    assert logit_normal_times(torch.tensor([0.0, 1 - 2**-53]).double()).isfinite().all()


# -------------------------------------------------------------------------------------------------------------- pairing


@pytest.mark.parametrize("B", [1, 2, 5, 6])
def test_pairing_is_the_cheapest_of_all_permutations(B):
    noise, data = (gaussians(seed, [(B, 3, 2), (B, 4)]) for seed in (0, 1))
    order, costs = paired(noise, data, B), transport_costs(noise, data)
    price = lambda order: costs[range(B), list(order)].sum().item()  # noqa: E731
    assert sorted(order.tolist()) == list(range(B))
    assert price(order.tolist()) == pytest.approx(min(map(price, permutations(range(B)))))
    assert price(order.tolist()) <= price(range(B))


def test_cost_is_the_mean_squared_distance_of_picture_plus_sound():
    noise, data = (gaussians(seed, [(3, 2, 2), (3, 5)]) for seed in (0, 1))
    expected = (data[0][2] - noise[0][1]).square().mean() + (data[1][2] - noise[1][1]).square().mean()
    torch.testing.assert_close(transport_costs(noise, data)[2, 1], expected, rtol=1e-12, atol=0)


def test_groups_are_paired_as_in_a_process_of_their_own():
    noise, data = (gaussians(seed, [(8, 3), (8, 4)]) for seed in (0, 1))
    whole = paired(noise, data, 4)
    second = paired(tuple(x[4:] for x in noise), tuple(x[4:] for x in data), 4)
    assert torch.equal(whole[4:], second + 4) and whole[:4].max() < 4
    with pytest.raises(ValueError, match="a batch of 8 clips is no multiple of the 3 that are paired"):
        paired(noise, data, 3)
