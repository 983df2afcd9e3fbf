"""Noised frames, targets, weights and loss against the official numbers, and three whole optimiser steps."""

import math

import pytest
import torch
from einops import rearrange

from diffusion.flow import NEGLIGIBLE_WEIGHT, WEIGHTS, flow_loss, interpolate, logit_normal_weight
from diffusion.times import draw_times
from models import FLAV, official
from training.ema import EMA

CASES = ["train_n6_logit", "train_n10_logit", "train_n6_uniform", "train_n10_uniform"]


def audio_in(a):
    return rearrange(a, "b t 1 m s -> b t s m")


@pytest.mark.parametrize("name", CASES)
def test_noised_frames_weights_and_loss_equal_the_official_ones(parity, name):
    case = parity(name)
    x = case.tensors
    v, a = x["in.video"], audio_in(x["in.audio"])
    noise = x["in.noise_video"], audio_in(x["in.noise_audio"])
    weight = WEIGHTS[case.config["weighting"]]
    seen = {}

    def stored_outputs(v_t, a_t, t, t_a):
        seen.update(v=v_t, a=a_t)
        return x["in.model_out_video"], audio_in(x["in.model_out_audio"])

    t = draw_times(x["in.global_u"], ~x["in.is_rolling"].bool(), case.config["window"], margin=1e-6)
    loss = flow_loss(stored_outputs, v, a, None, t, noise, weight)

    torch.testing.assert_close(seen["v"], x["out.x_video"], atol=case.tolerance["x_abs"], rtol=0)
    torch.testing.assert_close(seen["a"], audio_in(x["out.x_audio"]), atol=case.tolerance["x_abs"], rtol=0)
    torch.testing.assert_close(v - noise[0], x["out.target_video"])
    torch.testing.assert_close(weight(t), x["out.weight"], atol=case.tolerance["weight_abs"], rtol=0)
    expected_v = x["out.mse_video_per_frame"] * x["out.weight"]
    torch.testing.assert_close(loss.error_v, expected_v, atol=1e-4, rtol=1e-4)
    for got, expected in ((loss.video, "out.loss_video"), (loss.audio, "out.loss_audio"), (loss.total, "out.loss")):
        torch.testing.assert_close(got, x[expected], atol=0, rtol=case.tolerance["loss_rel"])


def test_logit_normal_weight_equals_the_official_density(parity):
    case = parity("logit_weights")
    weight = logit_normal_weight(case.tensors["in.t"])
    torch.testing.assert_close(weight, case.tensors["out.weight"], atol=case.tolerance["abs"], rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logit_normal_weight_is_a_density_that_is_exactly_zero_where_negligible(dtype):
    t = torch.linspace(0, 1, 100_001, dtype=dtype)
    weight = logit_normal_weight(t)
    assert weight.sum().item() / 100_000 == pytest.approx(1, abs=1e-4)
    assert weight[0] == weight[-1] == 0 and weight[weight > 0].min() >= NEGLIGIBLE_WEIGHT
    assert logit_normal_weight(torch.tensor([0.5])).item() == pytest.approx(4 / math.sqrt(2 * math.pi))


def test_the_exact_velocity_has_no_loss_and_leads_from_noise_to_data():
    g = torch.Generator().manual_seed(0)
    v, eps_v = torch.randn(2, 2, 3, 4, 2, 2, generator=g).double()
    a, eps_a = torch.randn(2, 2, 3, 5, 6, generator=g).double()
    t = torch.rand(2, 3, generator=g).double()
    loss = flow_loss(lambda *_, **__: (v - eps_v, a - eps_a), v, a, None, t, (eps_v, eps_a))
    assert loss.total == 0
    x = interpolate(v, eps_v, t)
    torch.testing.assert_close(x + (1 - t)[..., None, None, None] * (v - eps_v), v, atol=1e-12, rtol=0)


def test_three_optimiser_steps_equal_the_official_ones(parity):
    """Losses, gradients before clipping, gradient norms, parameters and EMA after AdamW."""
    case = parity("train_steps")
    x, config = case.tensors, case.config["model"]
    model = FLAV(**config)
    model.load(case.weights)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.02)
    ema = EMA(model.parameters(), decay=0.9999)
    null = torch.tensor(config["num_classes"])
    for step in range(3):
        s = {key.removeprefix(f"in.step{step}."): value for key, value in x.items() if f"in.step{step}." in key}
        t = draw_times(s["u"], ~s["is_rolling"].bool(), config["predict_frames"], margin=1e-6)
        kept = (s[f"drop_uniform_{m}"] >= config["class_dropout_prob"] for m in ("video", "audio"))
        y_v, y_a = (s["y"].where(keep, null) for keep in kept)
        noise = s["noise_video"], audio_in(s["noise_audio"])
        loss = flow_loss(model, s["video"], audio_in(s["audio"]), y_v, t, noise, y_a=y_a).total
        optimiser.zero_grad()
        loss.backward()
        torch.testing.assert_close(loss.detach(), x["out.loss"][step], atol=0, rtol=case.tolerance["loss_rel"])
        if step == 0:
            gradients = official.to_official({k: p.grad for k, p in model.named_parameters()})
            for key, gradient in gradients.items():
                torch.testing.assert_close(
                    gradient, x[f"out.grad0.{key}"], atol=case.tolerance["grad_abs"], rtol=case.tolerance["grad_rel"]
                )
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        torch.testing.assert_close(norm, x["out.grad_norm_before_clip"][step], atol=0, rtol=1e-4)
        optimiser.step()
        ema.step(model.parameters())
    assert_parameters_close(model.state_dict(), x, "out.param_final.", case.tolerance["param_abs"])
    ema.copy_to(model.parameters())
    assert_parameters_close(model.state_dict(), x, "out.ema_final.", case.tolerance["param_abs"])


def assert_parameters_close(state, expected, prefix, tolerance):
    """As the case asks: 99.9 % of elements within the tolerance, and all within 4e-4 (Adam flips near zero)."""
    state = official.to_official(state)
    assert {prefix + key for key in state} == {key for key in expected if key.startswith(prefix)}
    difference = torch.cat([(state[key] - expected[prefix + key]).abs().flatten() for key in state])
    assert (difference <= tolerance).double().mean() >= 0.999 and difference.max() <= 4e-4


def test_ema_decay_follows_the_official_ramp(parity):
    import json

    case = parity("ema_decay")
    ema = EMA([torch.nn.Parameter(torch.zeros(1))], decay=case.config["max_decay"])
    for call, decay in json.loads(case.path.read_text())["rows"]:
        assert ema.get_decay(call) == pytest.approx(decay, abs=case.tolerance["abs"])


def test_data_error_weight_counts_the_error_of_a_frame_and_not_of_its_velocity():
    weight, t = WEIGHTS["data"], torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    counts = 4 * logit_normal_weight(t) + 0.5  # of |x' - x|^2 = (1 - t)^2 |velocity error|^2, the same at t and 1 - t
    assert weight(t).tolist() == pytest.approx(((1 - t) ** 2 * counts).tolist(), rel=1e-12)
    assert counts[1] == pytest.approx(counts[3]) and weight(t)[-1] == 0
    x, eps = (torch.randn(1, 5, 2, 3, 3, dtype=torch.float64) for _ in range(2))
    off = torch.randn_like(x)

    def guess(v, a, t, t_a):
        return (x + off - v) / (1 - t).clamp(min=1e-9)[..., None, None, None], a * 0

    a = torch.zeros(1, 5, 1, 1, dtype=torch.float64)
    found = flow_loss(guess, x, a, None, t[None], (eps, a), weight)
    assert found.error_v[0, :4].tolist() == pytest.approx((off.square().mean((0, 2, 3, 4)) * counts)[:4].tolist())


def test_noise_end_weight_counts_pure_noise_a_little_and_leaves_clean_frames_out():
    weight, t = WEIGHTS["logit-noise"], torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert weight(t).tolist() == pytest.approx([0.02, logit_normal_weight(t)[1].item() + 0.005, 0.0], rel=1e-12)
