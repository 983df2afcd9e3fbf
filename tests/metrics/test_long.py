"""Long videos: drift and jump against synthetic features and frames, loops against videos with and without."""

import numpy as np
import pytest
import torch

from metrics.long import (
    FrameDistances,
    Loop,
    diagonals,
    drift,
    find_loop,
    jump,
    jump_windows,
    lpips_signature,
    summarise,
    trend,
    window_starts,
)
from tests.closeness import assert_close_by_size


def between_means(a, b):
    return float(np.linalg.norm(np.mean(np.asarray(a), 0) - np.mean(np.asarray(b), 0)))


def test_windows_lie_wholly_in_the_video_and_the_last_frame_can_be_in_one():
    assert window_starts(240)[:3] == [0, 8, 16] and window_starts(240)[-1] == 224
    assert window_starts(239)[-1] == 216
    assert window_starts(16) == [0]


@pytest.mark.parametrize("frames, window, stride", [(15, 16, 8), (20, 0, 8), (20, 16, 0)])
def test_windows_that_do_not_fit_are_refused_with_what_would(frames, window, stride):
    with pytest.raises(ValueError, match=f"{window} frames every {stride} do not fit in {frames} frames; give"):
        window_starts(frames, window, stride)


def features_of(rng, speed, n=24, windows=29, d=12):
    """(n, windows, d): noise about a place of each video's own, which moves away at `speed` in its own direction."""
    start, direction = rng.standard_normal((2, n, 1, d))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    noise = 0.05 * rng.standard_normal((n, windows, d))
    return start + speed * np.arange(windows)[:, None] * direction + noise


def test_drifting_features_rise_and_stationary_ones_stay():
    rng = np.random.default_rng(0)
    away, still = (trend(drift(features_of(rng, speed), between_means).moved) for speed in (0.1, 0.0))
    assert away.z > 10 and abs(still.z) < 3
    assert away.slope == pytest.approx(0.1, rel=0.15)


def test_stationary_features_are_called_drifting_about_as_often_as_chance_allows():
    zs = [trend(drift(features_of(np.random.default_rng(s), 0.0), between_means).moved).z for s in range(100)]
    assert sum(abs(z) > 3 for z in zs) <= 3 and 0.7 < np.std(zs) < 1.4


def noise_video(rng, brightening, frames=120):
    """uint8 (frames, 8, 8, 3): noise about a grey that each frame raises."""
    grey = 100 + brightening * np.arange(frames)[:, None, None, None]
    return np.clip(grey + 30 * rng.standard_normal((frames, 8, 8, 3)), 0, 255).round().astype(np.uint8)


def mean_colours(video):
    """(windows, 3)."""
    return np.stack([video[start : start + 16].mean((0, 1, 2)) for start in window_starts(len(video))])


@pytest.mark.parametrize("seed", range(3))
def test_slowly_brightening_videos_drift_and_noise_does_not(seed):
    rng = np.random.default_rng(seed)
    away, still = (np.stack([mean_colours(noise_video(rng, b)) for _ in range(12)]) for b in (0.05, 0.0))
    assert trend(drift(away, between_means).moved).z > 3
    assert abs(trend(drift(still, between_means).moved).z) < 3


def test_window_that_shares_frames_with_the_first_would_make_noise_look_like_drift():
    rng = np.random.default_rng(0)
    still = np.stack([mean_colours(noise_video(rng, 0.0, frames=48)) for _ in range(200)])
    moved = drift(still, between_means).moved
    assert trend(moved, skip=1).z > 3 > abs(trend(moved).z)


def test_drift_compares_every_window_with_the_first_and_with_the_reference():
    features = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[2.0, 0.0], [2.0, 2.0]]])  # (2 videos, 2 windows, 2)
    found = drift(features, between_means, reference=torch.tensor([[1.0, 3.0], [1.0, 5.0]]))
    np.testing.assert_allclose(found.moved, [[0, 5], [0, 2]])
    np.testing.assert_allclose(found.moved_mean, [0, 3.5])
    np.testing.assert_allclose(found.to_first, [0, np.hypot(1.5, 3)])  # means (1, 0) and (2.5, 3)
    np.testing.assert_allclose(found.to_reference, [4, np.hypot(1.5, 1)])  # of the reference (1, 4)
    assert drift(features, between_means).to_reference is None


def test_distance_to_the_first_window_is_zero_there_even_for_a_distance_that_is_not():
    found = drift(np.zeros((3, 2, 1)), lambda a, b: -0.5)
    assert found.to_first.tolist() == [0, -0.5]


def test_slope_and_its_error_are_those_worked_out_by_hand():
    found = trend([[9, 9, 0, 1, 2], [9, 9, 0, 3, 6]])
    assert found.slope == pytest.approx(2) and found.standard_error == pytest.approx(1)  # slopes 1 and 3
    assert found.z == pytest.approx(2)


def test_slopes_that_agree_exactly_are_certain_and_a_flat_curve_is_not_drift():
    assert trend([[0, 1, 2, 3]] * 2).z == np.inf and trend([[3, 2, 1, 0]] * 2).z == -np.inf
    assert trend([[1, 1, 1, 1]] * 2).z == 0


def test_jump_takes_differences_within_videos():
    level = np.array([[0.0], [50.0], [100.0]])  # videos differ by far more than the step
    values = level + np.array([[1, 3, 5, 7, 99], [1, 3, 6, 8, 99], [1, 3, 4, 6, 99]])
    found = jump(values, before=[0, 1], after=[2, 3])
    assert (found.before, found.after, found.difference) == pytest.approx((52, 56, 4))
    assert found.standard_error == pytest.approx(1 / 3**0.5)  # steps 4, 5 and 3
    assert found.z == pytest.approx(4 * 3**0.5)


def test_windows_across_the_end_of_prerolling_are_on_neither_side():
    starts = window_starts(40, window=4, stride=3)  # 0, 3, 6, 9, 12, 15, 18, ...
    assert jump_windows(starts, window=4, predict_frames=10) == ([0, 1, 2], [4, 5, 6])


def test_windows_longer_than_prerolling_are_refused_with_the_longest_that_fits():
    with pytest.raises(ValueError, match="16 frames do not lie on both sides of frame 10; give windows of at most 10"):
        jump_windows(window_starts(240), window=16)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: drift(np.zeros((3, 4)), between_means), r"shape \(3, 4\), expected \(videos, windows, d\)"),
        (lambda: trend(np.zeros((1, 9))), "at least 2 videos"),
        (lambda: trend(np.zeros((4, 3))), "3 windows less 2 have no slope; give at least 4"),
        (lambda: jump(np.zeros(9), [0], [1]), "at least 2 videos"),
    ],
)
def test_figures_of_the_wrong_shape_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("n", [1, 2, 100, 128, 129, 300])
def test_diagonals_are_the_means_along_the_diagonals_of_the_whole_matrix(n):
    signatures = torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) + 100
    whole = torch.cdist(signatures.double(), signatures.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = torch.stack([whole.diagonal(k).mean() for k in range(n)])
    torch.testing.assert_close(diagonals(signatures), expected, rtol=1e-10, atol=1e-10)


def test_exact_replay_leaves_next_to_nothing_of_the_distance():
    signatures = torch.randn(20, 768, generator=torch.Generator().manual_seed(0)).repeat(9, 1)
    r = diagonals(signatures)
    assert r[20] < 1e-5 * r[1] and r[0] == 0


@pytest.mark.parametrize("signatures", [torch.empty(0, 3), torch.tensor([[1.0], [torch.nan]])])
def test_signatures_without_frames_or_with_nan_are_refused(signatures):
    with pytest.raises(ValueError, match="give at least one, all finite"):
        diagonals(signatures)


def frames_of(seed, t=40, side=32):
    return torch.randint(0, 256, (t, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_pieces_pushed_one_by_one_give_what_the_whole_video_gives():
    frames, whole, pieces = frames_of(0), FrameDistances(), FrameDistances()
    whole.push(frames)
    for piece in frames.split([1, 0, 16, 23]):
        pieces.push(piece)
    assert_close_by_size(pieces.r(), whole.r(), share=1e-6)


def test_distance_is_the_rms_of_grey_levels_averaged_over_cells():
    frames = torch.zeros(2, 64, 48, 3, dtype=torch.uint8)
    frames[1, ..., 0] = 30  # red only
    grid = FrameDistances()
    grid.push(frames)
    assert grid.r()[1].item() == pytest.approx(30 / 3**0.5, rel=1e-6)


def test_only_signatures_are_held():
    distances = FrameDistances()
    distances.push(frames_of(1, t=10, side=128))
    assert sum(piece.untyped_storage().nbytes() for piece in distances.pieces) == 10 * 768 * 4


@pytest.mark.parametrize("frames", [torch.zeros(4, 8, 8, 3), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)])
def test_frames_of_another_layout_are_refused(frames):
    with pytest.raises(ValueError, match=r"expected torch.uint8 \(t, H, W, 3\)"):
        FrameDistances().push(frames)


@pytest.fixture(scope="module")
def lpips_net():
    """AlexNet with random weights under the layer weights that come with the package: no download."""
    lpips = pytest.importorskip("lpips")

    def make(**options):
        torch.manual_seed(0)
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False, **options)

    return make


@pytest.mark.filterwarnings("ignore:.*weight:UserWarning")
@pytest.mark.parametrize("options", [{}, {"lpips": False}, {"version": "0.0"}])
def test_squared_distance_of_lpips_signatures_is_lpips(lpips_net, options):
    net, frames = lpips_net(**options), frames_of(2, t=4, side=64)
    frames[3] = frames[2]
    frames[3, 10:20] = 0
    signatures = lpips_signature(net)(frames).double()
    x = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = net(x[[0, 1, 2]], x[[1, 3, 3]]).flatten().double()
    assert_close_by_size((signatures[[0, 1, 2]] - signatures[[1, 3, 3]]).square().sum(1), expected)


@pytest.mark.filterwarnings("ignore:.*weight:UserWarning")
def test_negative_layer_weights_are_refused_since_they_make_no_distance(lpips_net):
    with pytest.raises(ValueError, match=r"layer weights are negative.*pretrained=True"):
        lpips_signature(lpips_net(pretrained=False))


@pytest.mark.filterwarnings("ignore:.*weight:UserWarning")
def test_loop_is_found_by_lpips_as_by_grey_levels(lpips_net):
    distances = FrameDistances(lpips_signature(lpips_net()))
    distances.push(frames_of(3, t=5).repeat(6, 1, 1, 1))
    assert find_loop(distances.r()).period == 5


def draw_ball(place, seed, noise=6.0, brightening=0.0, colour=(180, 60, 30), side=32, radius=5):
    """uint8 (F, side, side, 3) of a ball at place (F, 2), x and y from 0 to 1, under noise, brightening."""
    y, x = np.ogrid[:side, :side]
    column, row = (radius + (side - 2 * radius) * place).T[:, :, None, None]  # (F,1,1) each
    cover = np.clip(radius + 0.5 - np.hypot(y - row, x - column), 0, 1)[..., None]
    light = np.linspace(0, brightening, len(place))[:, None, None, None]
    grey = 40 + cover * np.broadcast_to(colour, (len(place), 3))[:, None, None] + light
    grey = grey + noise * np.random.default_rng(seed).standard_normal((*cover.shape[:3], 3))
    return torch.from_numpy(np.clip(grey.round(), 0, 255).astype(np.uint8))


def distances_of(frames):
    distances = FrameDistances()
    distances.push(frames)
    return distances.r()


def mirrored(x):
    return 1 - np.abs(1 - x % 2)


def random_walk(F, seed, step=0.06):
    rng = np.random.default_rng(seed)
    return mirrored(rng.uniform(size=2) + np.cumsum(step * rng.standard_normal((F, 2)), 0))


def wandering(F, seed, memory=8, step=0.05):
    """A walk whose velocity lasts `memory` frames."""
    rng = np.random.default_rng(seed)
    velocity, keep = np.zeros((F, 2)), np.exp(-1 / memory)
    for i in range(1, F):
        velocity[i] = keep * velocity[i - 1] + (1 - keep**2) ** 0.5 * step * rng.standard_normal(2)
    return mirrored(rng.uniform(size=2) + np.cumsum(velocity, 0))


def bouncing(F, period_x, period_y):
    """To and fro evenly in x, under gravity in y."""
    x, y = np.outer([1 / period_x, 1 / period_y], np.arange(F)) % 1
    return np.stack([np.abs(2 * x - 1), 1 - 4 * y * (1 - y)], 1)


def replayed(place, F):
    return place[np.arange(F) % len(place)]


FOUR_TIMES = [(period, F) for period in (7, 10, 23, 40, 60) for F in (120, 240, 500) if 4 * period <= F]


@pytest.mark.parametrize("period, F", FOUR_TIMES)
def test_replayed_motion_is_found_with_its_exact_period(period, F):
    for seed, walk in enumerate((random_walk, wandering)):
        loop = find_loop(distances_of(draw_ball(replayed(walk(period, seed), F), seed)))
        assert loop.period == period and loop.replay < 0.6


@pytest.mark.parametrize("noise, brightening", [(0, 0), (25, 0), (6, 60)])
def test_loop_is_found_without_noise_under_noise_and_while_it_drifts(noise, brightening):
    place = replayed(random_walk(23, 5), 240)
    assert find_loop(distances_of(draw_ball(place, 0, noise, brightening))).period == 23


def test_single_ball_bouncing_evenly_is_a_loop_of_its_bounce():
    assert find_loop(distances_of(draw_ball(bouncing(240, 1e9, 11), 0))).period == 11


def test_period_between_frames_is_found_as_its_first_whole_multiple():
    assert find_loop(distances_of(draw_ball(bouncing(240, 1e9, 10.4), 0))).period == 52


@pytest.mark.parametrize("other", [(60, 180, 30), (140, 90, 30)])
def test_loop_whose_halves_differ_is_not_cut_in_half(other):
    place, colour = replayed(random_walk(10, 3), 240), np.full((240, 3), (180, 60, 30))
    colour[np.arange(240) % 20 >= 10] = other
    assert find_loop(distances_of(draw_ball(place, 0))).period == 10
    assert find_loop(distances_of(draw_ball(place, 0, colour=colour))).period == 20


def test_loop_that_begins_late_is_found_after_a_tenth_of_the_video():
    place = np.concatenate([wandering(24, 1), replayed(random_walk(23, 2), 216)])
    assert find_loop(distances_of(draw_ball(place, 0))).period == 23


def test_none_of_forty_randomly_moving_balls_loops():
    moves = (random_walk, wandering, lambda F, seed: wandering(F, seed, memory=20, step=0.03))
    videos = [draw_ball(moves[seed % 3](240, seed), seed, brightening=20 * (seed % 2)) for seed in range(40)]
    loops = [find_loop(distances_of(video)) for video in videos]
    assert summarise(loops) == {"loops": 0, "total": 40, "periods": []}
    assert max(loop.peak for loop in loops) < 0.5 and min(loop.replay for loop in loops) > 1.2


def test_bounces_of_unrelated_periods_do_not_loop():
    golden = (1 + 5**0.5) / 2  # of all ratios the farthest from common multiples
    places = [bouncing(240, golden * period, period) for period in np.arange(7, 13, 0.75)]
    assert summarise([find_loop(distances_of(draw_ball(p, 0))) for p in places])["loops"] == 0


def test_bounces_of_random_length_do_not_loop_however_regular_they_look():
    F, loops = 120, []  # in a short video chance has more room
    for seed in range(24):
        lengths = np.random.default_rng(seed).uniform(8, 14, size=20)
        phase = np.concatenate([np.arange(int(n)) / n for n in lengths])[:F]
        place = np.stack([np.full(F, 0.5), 1 - 4 * phase * (1 - phase)], 1)
        loops.append(find_loop(distances_of(draw_ball(place, seed))))
    assert summarise(loops)["loops"] == 0 and max(loop.peak for loop in loops) > 0.8


@pytest.mark.parametrize("seed", range(8))
def test_still_video_under_noise_does_not_loop_though_nothing_new_comes(seed):
    loop = find_loop(distances_of(draw_ball(np.full((240, 2), 0.5), seed)))
    assert loop.period is None and loop.peak < 0.5
    assert loop.replay == pytest.approx(1, abs=0.02)


def test_independent_frames_do_not_loop():
    places = [np.random.default_rng(seed).uniform(size=(240, 2)) for seed in range(8)]
    assert summarise([find_loop(distances_of(draw_ball(p, 0))) for p in places])["loops"] == 0


@pytest.mark.parametrize("brightening", [40, 80, 120])
def test_steps_of_a_ramp_in_whole_grey_levels_are_no_loop(brightening):
    frames = draw_ball(np.full((240, 2), 0.5), 0, noise=0, brightening=brightening)  # r's remainder has a period
    assert find_loop(distances_of(frames)).period is None


def test_still_video_without_noise_has_nothing_to_find():
    loop = find_loop(np.zeros(240))
    assert (loop.period, loop.amplitude, loop.replay, loop.peak) == (None, 0, 1, 0)


def test_amplitude_is_that_of_the_oscillation_without_the_drift():
    k = np.arange(240)
    r = 20 - 3 * np.cos(2 * np.pi * k / 12) + 0.01 * k
    r[0] = 0
    loop = find_loop(r)
    assert loop.period == 12 and loop.amplitude == pytest.approx(3, rel=0.05)


def test_replay_counts_in_steps_of_one_frame_and_not_the_first_rise():
    r = np.minimum(2.0 * np.arange(64), 30)  # reaches 30 at k = 15 and comes no nearer
    assert 10 < find_loop(r).replay <= 15
    r[28] = 1.0
    assert find_loop(r).replay == 0.5


def test_longest_period_to_look_for_is_respected():
    r = distances_of(draw_ball(replayed(random_walk(40, 0), 240), 0))
    assert find_loop(r, most=40).period == 40 and find_loop(r, most=39).period is None


@pytest.mark.parametrize(
    "r, most, match",
    [
        (np.zeros(15), None, "at least 16 frames"),
        (np.ones(40), None, "the first of them 0"),
        (np.r_[0, np.full(39, np.nan)], None, "finite"),
        (np.zeros(40), 11, "a period of 11 frames cannot be told in 40; give 2 to 10"),
    ],
)
def test_curves_that_cannot_show_a_loop_are_refused(r, most, match):
    with pytest.raises(ValueError, match=match):
        find_loop(r, most)


def test_summary_counts_videos_and_keeps_their_periods_in_order():
    loops = [Loop(p, 1.0, 1.0, 0.9, 0.97) for p in (23, None, 7)]
    assert summarise(loops) == {"loops": 2, "total": 3, "periods": [23, 7]}
    assert summarise([]) == {"loops": 0, "total": 0, "periods": []}
