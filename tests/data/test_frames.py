"""Pixels against the official numbers, and the geometry of both ways to make a frame square."""

import pytest
import torch

from data.frames import fit, to_uint8


@pytest.mark.parametrize("name", ["30x52_to_32", "52x30_to_32", "20x24_to_32", "33x33_to_16", "47x30_to_24"])
def test_padded_frames_equal_the_official_ones(parity, name):
    case = parity(f"frames_{name}")
    video = fit(case.tensors["in.frames"], case.config["resolution"])
    torch.testing.assert_close(video, case.tensors["out.video"], rtol=0, atol=1e-5)


def test_levels_equal_the_official_ones(parity):
    case = parity("pixels_out")
    assert torch.equal(to_uint8(case.tensors["in.value"]), case.tensors["out.uint8"])


def test_every_level_survives_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(fit(levels, 16)), levels.movedim(-1, 1))


def test_crop_keeps_the_centre_and_pad_keeps_everything():
    frames = torch.zeros(1, 8, 24, 3, dtype=torch.uint8)
    frames[:, :, 8:16] = 255  # the middle third is white
    assert fit(frames, 8, "crop")[..., 2:6].eq(1).all()
    padded = fit(frames, 24)
    assert padded[..., :8, :].eq(-1).all() and padded[..., 16:, :].eq(-1).all()
    assert padded[..., 8:16, 11:13].eq(1).all() and padded[..., 8:16, :4].eq(-1).all()


@pytest.mark.parametrize("resize", ["pad", "crop"])
def test_any_shape_becomes_the_square(resize):
    for height, width in [(1, 50), (7, 5), (5, 7), (33, 2)]:
        assert fit(torch.zeros(2, height, width, 3, dtype=torch.uint8), 9, resize).shape == (2, 3, 9, 9)


def test_wrong_frames_are_named():
    with pytest.raises(ValueError, match=r"float32 \(1, 4, 4, 3\), expected uint8"):
        fit(torch.zeros(1, 4, 4, 3), 8)
    with pytest.raises(ValueError, match="'stretch', expected 'pad' or 'crop'"):
        fit(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), 8, "stretch")
