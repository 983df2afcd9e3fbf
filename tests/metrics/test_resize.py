"""The way of frames to I3D: the published numbers, and what each step must and must not change."""

import hashlib

import pytest
import torch

from metrics.resize import grid, i3d_input, inception_input, letterbox, round_trip

LETTERBOXED = pytest.mark.parametrize("name", ["wide", "tall", "square256"])
STEPS = pytest.mark.parametrize("step", [letterbox, round_trip, i3d_input])
ANTIALIAS = pytest.mark.parametrize("antialias", [False, True])


@pytest.fixture(scope="session")
def golden(metrics_tensors):
    return metrics_tensors("preprocess")


@pytest.fixture(scope="session")
def cases(metrics_manifest):
    return metrics_manifest["preprocess"]["cases"]


def flag(antialias):
    return f"antialias_{str(antialias).lower()}"


def planes(frames):
    return frames.permute(0, 3, 1, 2)  # (T, 3, H, W), as the reference numbers are stored


def noise(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def is_reference(x, stats, golden):
    """Whole-clip statistics and every 13th pixel of the reference, within the tolerance of its manifest."""
    torch.testing.assert_close(x[:, :, ::13, ::13], golden, rtol=0, atol=2e-6)
    assert list(x[None].shape) == stats["shape"]
    found = {"mean": x.double().mean().item(), "std": x.double().std(correction=0).item(), "absmax": x.abs().max()}
    assert found == pytest.approx({key: stats[key] for key in found}, abs=2e-6)
    assert x.flatten()[:8].tolist() == pytest.approx(stats["first8"], abs=2e-6)


@LETTERBOXED
@ANTIALIAS
def test_letterbox_agrees_with_the_published_one_bit_for_bit(golden_video, golden, name, antialias):
    expected = golden[f"{name}.bicubic64.{flag(antialias)}"]
    assert torch.equal(planes(letterbox(golden_video(name)[0], antialias=antialias)), expected)


@LETTERBOXED
@ANTIALIAS
def test_chain_agrees_with_the_published_one(golden_video, golden, cases, name, antialias):
    frames = round_trip(letterbox(golden_video(name)[0], antialias=antialias))
    sha256 = hashlib.sha256(planes(frames).numpy().tobytes()).hexdigest()
    assert sha256 == cases[name][f"round_trip_sha256_{flag(antialias)}"]
    stats = cases[name][f"i3d_input_{flag(antialias)}"]
    is_reference(i3d_input(frames), stats, golden[f"{name}.i3d224_sub.{flag(antialias)}"])


@pytest.mark.parametrize("name", ["w80", "h72w54"])
def test_input_of_i3d_agrees_with_the_published_one(golden_video, golden, cases, name):
    is_reference(i3d_input(golden_video(name)[0]), cases[name]["i3d_input"], golden[f"{name}.i3d224_sub"])


def test_round_trip_agrees_with_the_published_table(metrics_manifest):
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    table = torch.tensor(metrics_manifest["preprocess"]["u8_roundtrip_lut"])
    assert torch.equal(round_trip(values), table[values.long()].to(torch.uint8))


def test_frames_of_the_file_agree_with_the_published_ones(metrics_manifest):
    for fps, expected in metrics_manifest["preprocess"]["frame_resampling"]["first16"].items():
        assert grid(30000 / 1001 if fps.startswith("29.97") else float(fps), count=16) == expected


def test_a_whole_step_never_drifts():
    assert grid(30, count=100_000) == list(range(0, 300_000, 3))


def test_file_at_10_fps_is_taken_as_it_is_and_a_slower_one_repeats_frames():
    assert grid(10, count=5) == [0, 1, 2, 3, 4]
    assert grid(5, count=5) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("rate", [0, -10, float("nan"), float("inf")])
def test_impossible_frame_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"frames per second is no frame rate; give the rate of the file, above 0"):
        grid(rate, count=16)


@pytest.mark.parametrize("H, W, rows, columns", [(96, 160, (13, 51), (0, 64)), (120, 90, (0, 64), (8, 56))])
def test_all_outside_the_picture_is_black_and_the_picture_keeps_its_shape(H, W, rows, columns):
    lit = letterbox(torch.full((1, H, W, 3), 200, dtype=torch.uint8))[0] == 200
    expected = torch.zeros(64, 64, 3, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(lit, expected)


def test_odd_row_of_padding_goes_to_the_bottom():
    lit = letterbox(torch.full((1, 63, 128, 3), 255, dtype=torch.uint8))[0, :, 0, 0]  # 31 rows of 64
    assert lit.nonzero().flatten().tolist() == list(range(16, 47))


def test_sizes_round_as_published_even_where_the_longer_side_falls_one_short():
    lit = letterbox(torch.full((1, 49, 49, 3), 255, dtype=torch.uint8))[0, :, 0, 0]  # 49 * (64 / 49) < 64 in floats
    assert lit.nonzero().flatten().tolist() == list(range(63))


def test_frames_of_the_right_size_pass_the_letterbox_unchanged():
    frames = noise(2, 64, 64, 3)
    assert torch.equal(letterbox(frames), frames) and torch.equal(letterbox(frames, antialias=True), frames)


def test_overshoot_of_the_bicubic_kernel_is_clipped_rather_than_wrapped():
    frames = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    frames[:, :, 8:] = 255
    row = letterbox(frames)[0, 0, :, 0].int()  # wrapped, 255 plus some becomes nearly black
    assert row[:26].eq(0).all() and row[38:].eq(255).all() and row.diff().ge(0).all()


def test_antialiasing_is_off_unless_asked_for():
    frames = noise(1, 256, 256, 3)
    assert torch.equal(letterbox(frames), letterbox(frames, antialias=False))
    assert letterbox(frames).float().std() > 2 * letterbox(frames, antialias=True).float().std()


@STEPS
def test_frame_does_not_depend_on_its_neighbours_or_on_memory_layout(step):
    frames, time = noise(3, 40, 56, 3), 1 if step is i3d_input else 0
    assert torch.equal(step(frames).select(time, 1), step(frames[1:2]).select(time, 0))
    as_planes = planes(frames).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(step(as_planes), step(frames))


@STEPS
def test_frames_given_are_left_as_they_were(step):
    frames = noise(2, 64, 64, 3)
    before = frames.clone()
    step(frames)
    assert torch.equal(frames, before)


def test_crop_takes_the_middle():
    frames = torch.zeros(1, 224, 300, 3, dtype=torch.uint8)
    frames[:, :, 38:262] = 255  # 38 columns on either side go
    assert i3d_input(frames).eq(1).all()
    assert torch.equal(i3d_input(frames.transpose(1, 2)), i3d_input(frames))


@pytest.mark.parametrize("H, W", [(64, 64), (49, 49), (57, 91), (225, 224), (3, 1000)])
def test_input_of_i3d_is_always_224_square(H, W):
    assert i3d_input(noise(1, H, W, 3)).shape == (3, 1, 224, 224)


@STEPS
@pytest.mark.parametrize("frames", [torch.zeros(2, 64, 64, 3), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)])
def test_frames_that_are_no_bytes_or_no_frames_are_refused(step, frames):
    with pytest.raises(ValueError, match=r"^frames are torch\.\w+ \(2, .*\), expected uint8 \(T, H, W, 3\)$"):
        step(frames)


def test_frames_too_narrow_for_the_square_are_refused():
    with pytest.raises(ValueError, match="frames of 4 x 1000 pixels shrink to 0 x 64 in a square of 64; crop them"):
        letterbox(noise(1, 4, 1000, 3))


@pytest.mark.parametrize("H, W", [(36, 64), (299, 299), (400, 500)])
def test_input_of_inception_is_the_whole_picture_pressed_into_a_square(H, W):
    frames = torch.zeros(2, H, W, 3, dtype=torch.uint8)
    frames[:, :, W // 2 :] = 255
    x = inception_input(frames)
    assert x.shape == (2, 3, 299, 299) and x.dtype == torch.float32
    assert x[..., :140].max() < -0.999 and x[..., 160:].min() > 0.999
