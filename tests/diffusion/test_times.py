"""Times of training and sampling against the official tables and against each other."""

import pytest
import torch

from diffusion.times import draw_times, moving_frames, pre_rolling_times, rolling_times, sampling_times

TABLES = ["table_w10_k2", "table_w10_k10", "table_w10_k20", "table_w6_k2", "table_w4_k1", "table_w4_k3", "table_w4_k2",
          "table_w5_k2"]  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_sampling_times_equal_the_official_schedule(parity, name):
    case = parity(name)
    T, n = case.config["window"], case.config["num_timesteps"]
    table = sampling_times(T, n)
    assert len(table) - 1 == case.config["pre_rolling_steps"]
    tolerance = case.tolerance
    for phase, steps in (("pre", slice(0, n * T)), ("roll", slice(n * T - n, n * T))):
        t, t_next = table[:-1][steps], table[1:][steps]
        expected = {key: case.tensors[f"{phase}.{key}"].double() for key in ("t", "dt", "t_model")}
        torch.testing.assert_close(t, expected["t"], atol=tolerance["t_abs"], rtol=0)
        torch.testing.assert_close(t_next - t, expected["dt"], atol=tolerance["dt_abs"], rtol=0)
        torch.testing.assert_close(999 * t + 1, expected["t_model"], atol=tolerance["t_model_abs"], rtol=0)
        # guided: everything but the frame that becomes clean in this step; waiting frames have dt = 0 anyway
        assert torch.equal((t_next < 1).to(torch.uint8), case.tensors[f"{phase}.guided_expected"])


@pytest.mark.parametrize("name", ["train_n6_logit", "train_n10_logit", "train_n6_uniform", "train_n10_uniform"])
def test_training_times_equal_the_official_draws(parity, name):
    case = parity(name)
    t = draw_times(case.tensors["in.global_u"], ~case.tensors["in.is_rolling"].bool(), case.config["window"], 1e-6)
    torch.testing.assert_close(t, case.tensors["out.t"], atol=case.tolerance["t_abs"], rtol=0)
    torch.testing.assert_close(999 * t + 1, case.tensors["out.t_model"], atol=1e-3, rtol=0)


def test_window_continues_where_the_frame_that_left_had_stopped():
    leaving = rolling_times(torch.zeros(3), T=10)  # frame 0 is clean
    entered = rolling_times(torch.ones(3), T=10)  # shifted by one, fresh noise last
    torch.testing.assert_close(entered[:, :-1], leaving[:, 1:])
    assert leaving[:, 0].eq(1).all() and entered[:, -1].eq(0).all()


def test_steps_follow_both_formulas_and_meet_where_pre_rolling_ends():
    T, n = 10, 5
    table = sampling_times(T, n)
    w = 1 - torch.arange(n * T + 1).double() / (n * T)
    torch.testing.assert_close(table, pre_rolling_times(w, T))
    w = 1 - torch.arange(n + 1).double() / n
    torch.testing.assert_close(table[-n - 1 :], rolling_times(w, T))


def test_moving_frames_are_those_whose_time_grows():
    T, n = 6, 3
    table = sampling_times(T, n)
    grows = (table[1:] > table[:-1]).sum(1)
    assert torch.equal(moving_frames(torch.arange(n * T), n).clamp(max=T), grows)


def test_one_phase_per_clip_is_asked_for():
    with pytest.raises(ValueError, match=r"shape \(3, 10\), expected \(B,\)"):
        rolling_times(torch.zeros(3, 10), T=10)
    with pytest.raises(ValueError, match="at least 1"):
        sampling_times(10, 0)
