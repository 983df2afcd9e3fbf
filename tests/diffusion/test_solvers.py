"""Fewer steps than frames, and AB2: closed forms, a plain loop, exact skipping, rows of any age."""

from dataclasses import replace

import pytest
import torch

from diffusion.known import known_clip
from diffusion.noise import Modality, frame_noise
from diffusion.pace import SOLVERS, check_pace, check_sampling, pace
from diffusion.rolling import advance, roll, start
from diffusion.solvers import solved_by
from diffusion.times import following, moving_frames, pre_rolling_times, sampling_times
from tests.diffusion.test_rolling import SHAPES, counted, difference, random_model

T = 4
PACES = [3, 1, 1 / 2, 1 / 4]


def begun(solver, n, samples=(0, 1), y=None):
    window = start(T, SHAPES, 3, torch.tensor(samples), y, dtype=torch.float64)
    return solved_by(window, solver, n)


def generate(velocity, n, solver, frames=7, samples=(0, 1), y=None, **how):
    out = list(roll(begun(solver, n, samples, y), velocity, n, frames, **how))
    assert [f.index.tolist() for f in out] == [[k] * len(samples) for k in range(len(out))]
    return torch.stack([f.v for f in out], 1), torch.stack([f.a for f in out], 1)


def eps(frames, rows=2):
    """Noise of the first frames, v (B,frames,...) and a."""
    return tuple(
        torch.stack([torch.stack([frame_noise(3, b, k, m, s) for k in range(frames)]) for b in range(rows)]).double()
        for m, s in zip(Modality, SHAPES)
    )


def model(**changes):
    return random_model(**{"predict_frames": T, **changes})


# ------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", PACES)
def test_a_constant_field_leads_every_frame_exactly_to_its_data(n, solver):
    data, noise, first = torch.randn(2, 16, *SHAPES[0]).double(), eps(16), 0

    def constant(v, a, t):
        now = slice(first, first + v.shape[1])
        return data[:, now] - noise[0][:, now], -noise[1][:, now]

    window = begun(solver, n)
    while first < 9:
        window, emitted = advance(window, constant, n)
        if emitted:
            assert emitted.count == pace(n)[1] and emitted.index.view(2, -1)[1].tolist() == [
                first + k for k in range(emitted.count)
            ]
            for one in emitted.in_turn():
                torch.testing.assert_close(one.v, data[:, one.index[0]], atol=1e-12, rtol=0)
                assert one.a.abs().max() < 1e-12
            first += emitted.count


@pytest.mark.parametrize("n", [8, 4, *PACES])
def test_a_field_linear_in_time_costs_euler_half_of_every_squared_step_and_ab2_of_the_first(n):
    """x' = t ends at 1/2. Euler lacks dt^2 / 2 at each step, AB2 at a frame's first one only, for any steps."""

    def linear(v, a, t):
        return t[..., None, None, None].expand_as(v), t[..., None, None].expand_as(a)

    unit, m = pace(n)
    visits, step = [0], 0
    while step < unit * T:
        visits.append(step := int(following(torch.tensor(step), n)))
    table = sampling_times(T, n)
    for solver in SOLVERS:
        v, _ = generate(linear, n, solver, frames=3 * T)
        gained = (v - eps(3 * T)[0]).flatten(2)
        for k in range(3 * T):
            times = table[visits, k % m]  # a frame of a later group takes the steps of the first group
            dts = (times[1:] - times[:-1])[times[1:] > 0]
            lacking = (dts**2).sum() / 2 if solver == "euler" else dts[0] ** 2 / 2
            torch.testing.assert_close(gained[:, k], torch.full_like(gained[:, k], 0.5 - lacking), atol=1e-12, rtol=0)


def test_ab2_is_of_second_order_and_euler_of_first():
    """x' = -x, from 1, for a window of one frame: the error falls by 4 and by 2 with each halving of the step."""

    def decay(v, a, t):
        return -v, -a

    def errors(solver):
        ones = {"noise": lambda seed, sample, frame, modality, shape: torch.ones(shape)}
        for n in (20, 40, 80):
            window = start(1, SHAPES, 0, torch.tensor([0]), dtype=torch.float64, **ones)
            frame = next(roll(solved_by(window, solver, n), decay, n, 1, **ones))
            yield abs(frame.v.mean().item() - torch.exp(torch.tensor(-1.0).double()).item())

    for solver, order in (("euler", 2), ("ab2", 4)):
        coarse, middle, fine = errors(solver)
        assert coarse / middle == pytest.approx(order, rel=0.1) and middle / fine == pytest.approx(order, rel=0.1)


# --------------------------------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("m", [1, 2, 4])
def test_times_of_several_frames_per_call_are_those_of_pre_rolling(m):
    table, visited = sampling_times(T, 1 / m), torch.arange(0, T, m)
    torch.testing.assert_close(table[visited], pre_rolling_times(1 - visited.double() / T, T))
    assert torch.equal(table[-1, :m], torch.ones(m).double())
    torch.testing.assert_close(table[-1, m:], table[T - m, : T - m])  # where they are once the first m have left


@pytest.mark.parametrize("n", [2, 1 / 2, 1 / 4])
def test_moving_frames_are_those_whose_time_grows_from_any_boundary(n):
    table, steps = sampling_times(T, n), torch.arange(pace(n)[0] * T)
    grows = (table[following(steps, n)] > table[steps]).sum(1)
    assert torch.equal(moving_frames(steps, n).clamp(max=T), grows)


@pytest.mark.parametrize(("n", "window", "said"), [
    (0.25, 10, "num_timesteps 0.25 lets 4 frames leave per call, which do not divide a window of 10; give 0.5 or 0.2,"),
    (1 / 3, 8, "1/3 lets 3 frames leave per call, which do not divide a window of 8; give 0.5 or 0.25, the nearest"),
    (0.0625, 8, "a window of 8; give 0.125, the nearest"),
    (0.4, 8, r"num_timesteps 0.4 is not a whole number .* give 1/3 or 0.5, the nearest"),
    (2.5, 8, "give 2 or 3, the nearest"),
])  # fmt: skip
def test_steps_that_no_window_can_take_are_refused_with_the_nearest(n, window, said):
    with pytest.raises(ValueError, match=said):
        sampling_times(window, n)
    with pytest.raises(ValueError, match=said):
        check_pace(n, window)


def test_whole_clips_take_whole_steps_and_euler():
    check_sampling(50, "euler", None)
    check_sampling(0.5, "ab2", 8)
    with pytest.raises(ValueError, match=r"num_timesteps 0\.5 is for models that roll.*give a whole number"):
        check_sampling(0.5, "euler", None)
    with pytest.raises(ValueError, match="solver ab2 is for models that roll"):
        check_sampling(50, "ab2", None)
    with pytest.raises(ValueError, match="solver 'heun' is unknown; choose euler or ab2"):
        begun("heun", 2)


# --------------------------------------------------------------------------------------------------------- a plain loop


def looped(velocity, m, frames, ab2):
    """Frames of sample 0 and 1 by a loop over calls in which every frame has its own time, its last velocity and dt."""
    x, first, position = [list(pair) for pair in zip(*(side.unbind(1) for side in eps(frames + T)))], 0, 0
    t, last = [0.0] * (frames + T), [None] * (frames + T)
    while first < frames:
        window = range(first, first + T)
        now = torch.tensor([[t[k] for k in window]] * 2).double()
        dv, da = velocity(*(torch.stack([x[k][i] for k in window], 1) for i in (0, 1)), now)
        position += m
        for place, k in enumerate(window):
            until = min(max(position - place, 0), T) / T
            if position == T and place < m:
                until = 1.0
            if (dt := until - t[k]) > 0:
                for i, f in enumerate((dv[:, place], da[:, place])):
                    ratio = dt / last[k][0] if ab2 and last[k] else 0
                    old = last[k][1][i] if ratio else 0
                    x[k][i] = x[k][i] + dt * ((1 + ratio / 2) * f - ratio / 2 * old)
                last[k] = dt, (dv[:, place], da[:, place])
            t[k] = until
        if position == T:
            assert all(t[first + k] == 1 for k in range(m))
            first, position = first + m, position - m
    return tuple(torch.stack([x[k][i] for k in range(frames)], 1) for i in (0, 1))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("m", [1, 2, 4])
def test_several_frames_per_call_equal_a_plain_loop(m, solver):
    velocity = model(fusion="c")
    expected = looped(velocity, m, 8, solver == "ab2")
    assert difference(generate(velocity, 1 / m, solver, frames=8), expected) < 1e-11
    if solver == "ab2" and m < T:
        assert difference(expected, looped(velocity, m, 8, False)) > 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [2, 1 / 2, 1 / 4])
def test_skipping_frames_changes_nothing_and_an_odd_end_leaves_the_rest_of_a_call_out(n, solver):
    velocity = model()
    fast, whole = counted(velocity), counted(velocity)
    one, two = generate(fast, n, solver), generate(whole, n, solver, skip=False)
    assert one[0].shape[1] == two[0].shape[1] == 7
    assert difference(one, two) < 1e-12
    assert fast.frames < whole.frames and fast.calls == whole.calls
    steps = T * max(n, 1) // pace(n)[1]
    assert fast.calls == (steps + 6 * n if n >= 1 else steps + -(-7 // pace(n)[1]) - 1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_of_any_age_share_calls_of_several_frames(solver):
    velocity, n, labels = model(num_classes=3), 1 / 2, torch.tensor([0, 2])
    alone = generate(velocity, n, solver, frames=6, y=labels)
    window, got = begun(solver, n, [0], labels[:1]), {0: [], 1: []}
    for step in range(9):
        if step == 3:  # sample 1 joins when sample 0 has given out two frames
            window = window.joined(begun(solver, n, [1], labels[1:]))
        window, emitted = advance(window, velocity, n)
        for i in range(len(emitted.rows) if emitted else 0):
            sample = int(window.sample[emitted.rows[i]])
            assert emitted.index[i] == len(got[sample])
            got[sample].append((emitted.v[i], emitted.a[i]))
    for sample in (0, 1):
        row = [torch.stack(x)[:6] for x in zip(*got[sample])]
        assert difference(row, [x[sample] for x in alone]) < 1e-10


@pytest.mark.parametrize("n", [2, 1 / 2])
def test_known_frames_stay_on_their_lines_whatever_the_solver(n):
    clean, noise = torch.randn(1, 9, *SHAPES[1]).double(), eps(9 + T, rows=1)[1]
    clip = known_clip(clean, Modality.AUDIO)

    def watching(v, a, t, **_):
        first = int(window.first)
        line = t[0, :, None, None] * clean[0, first : first + T] + (1 - t[0, :, None, None]) * noise[0, first:][:T]
        torch.testing.assert_close(a[0], line, atol=1e-12, rtol=0)
        return torch.randn_like(v), torch.randn_like(a)

    window = begun("ab2", n, [0])
    while window.first < 4:
        window, emitted = advance(window, watching, n, known=lambda w: (None, clip(w)), skip=False)
        if emitted:
            torch.testing.assert_close(emitted.a, clean[0, emitted.index], atol=1e-12, rtol=0)


def test_ab2_begins_with_euler_wherever_no_last_velocity_is_known():
    velocity, window = model(), begun("euler", 2)
    for _ in range(5):
        window, _ = advance(window, velocity, 2)
    known, _ = advance(solved_by(window, "ab2", 2), velocity, 2)
    plain, _ = advance(window, velocity, 2)
    assert known.v.equal(plain.v) and known.a.equal(plain.a)
    bare = replace(known, dv=None, da=None, t_before=None)
    assert vars(solved_by(known, "euler", 2)) == vars(bare)
