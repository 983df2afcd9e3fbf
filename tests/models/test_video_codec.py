"""Codecs of clips: how many latents, those of the network itself, one clip after the other, lengths that do not fit."""

import diffusers
import pytest
import torch

from models.codec import CODECS, VIDEO_CODECS, load_codec
from models.video_codec import BlockPCA
from tests.closeness import assert_close_by_size

SIZE, FRAMES = 16, 9
TINY = {
    "cogvideox": lambda: diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    ),
    "wan": lambda: diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    ),
}


def clips(B=2, T=FRAMES, size=SIZE, seed=0):
    return 2 * torch.rand(B, T, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture(scope="module", params=TINY)
def pretrained(request, tmp_path_factory):
    """(name, model, codec) of a tiny autoencoder with random weights, saved and loaded as the library's own."""
    torch.manual_seed(0)
    model, folder = TINY[request.param]().eval(), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, model, load_codec(request.param, folder)


def test_eight_frames_and_one_make_three_latents_of_eight_pixels(pretrained):
    name, _, codec = pretrained
    assert (codec.name, codec.factor, codec.channels, codec.temporal_factor) == (name, 8, 4, 4)
    mean, std = codec.encode(clips())
    assert mean.shape == std.shape == (2, 3, 4, 2, 2) and codec.decode(mean).shape == (2, FRAMES, 3, SIZE, SIZE)
    assert [codec.latent_frames(T) for T in (1, 9, 33, 49)] == [1, 3, 9, 13]
    assert not any(p.requires_grad for p in codec.parameters())  # it learns in no stage


@torch.no_grad()
def test_latents_are_the_networks_own_normalised_as_its_config_says(pretrained):
    name, model, codec = pretrained
    x = clips(1)
    mean, std = codec.encode(x)
    raw = model.encode(x.transpose(1, 2)).latent_dist
    if name == "wan":
        shift, scale = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]]).view(2, 1, -1, 1, 1, 1)
        expected, spread = (raw.mean - shift) / scale, raw.std / scale
    else:
        expected, spread = raw.mean * model.config.scaling_factor, raw.std * model.config.scaling_factor
    assert_close_by_size(mean, expected.transpose(1, 2))
    assert_close_by_size(std, spread.transpose(1, 2))
    assert_close_by_size(codec.decode(mean), model.decode(raw.mean).sample.clamp(-1, 1).transpose(1, 2))


def test_clips_pass_one_by_one_and_none_depends_on_another(pretrained):
    codec = pretrained[2]
    both, alone = codec.encode(clips())[0], codec.encode(clips()[1:])[0]
    assert_close_by_size(both[1:], alone)
    assert_close_by_size(codec.encode(clips(), batch_size=2)[0], both)


@pytest.mark.parametrize("T, nearest", [(2, {"wan": "1 or 5", "cogvideox": "1 or 9"}),
                                        (8, {"wan": "5 or 9", "cogvideox": "1 or 9"}),
                                        (0, {"wan": "1", "cogvideox": "1"})])  # fmt: skip
def test_clip_of_a_length_that_the_factor_does_not_divide_is_refused(pretrained, T, nearest):
    name, _, codec = pretrained
    kind = {"wan": r"4 n \+ 1", "cogvideox": r"8 n \+ 1"}[name]
    with pytest.raises(ValueError, match=f"{T} frames are not {kind}, which codec {name} takes; cut .*{nearest[name]}"):
        codec.latent_frames(T)
    if T:
        with pytest.raises(ValueError, match="frames are not"):
            codec.encode(clips(1, T))


@pytest.fixture(scope="module")
def blocks():
    return BlockPCA.fit(clips(8, 8), patch=4, channels=6)


def test_blocks_of_few_dimensions_come_back_exactly():
    """Blocks in the span of 5 random ones and a mean: 5 channels hold them all."""
    rng = torch.Generator().manual_seed(0)
    basis, weights = torch.randn(5, 4, 3, 4, 4, generator=rng), torch.rand(10, 2, 4, 4, 5, generator=rng) - 0.5
    x = 0.1 + 0.1 * torch.einsum("bnhwi,itcpq->bntchpwq", weights, basis).reshape(10, 8, 3, 16, 16)
    codec = BlockPCA.fit(x, patch=4, channels=5)
    assert codec.encode(x)[0].shape == (10, 2, 5, 4, 4)
    assert_close_by_size(codec.decode(codec.encode(x)[0]), x)


def test_two_seconds_of_256_px_are_eight_latents_of_32():
    """Row S8: 32 frames x 256 x 256 to 8 x 32 x 32, as SyncFlow's autoencoder; also where it learns nothing."""
    codec = BlockPCA.fit(clips(4, 8), patch=8)
    assert codec.encode(clips(1, 32, 256))[0].shape == (1, 8, 16, 32, 32) and not list(codec.parameters())


def test_block_latents_are_uncorrelated_with_the_asked_std_and_the_fit_takes_bytes(blocks):
    z = blocks.encode(clips(8, 8))[0].movedim(2, 0).flatten(1)
    torch.testing.assert_close(z.cov(correction=0), 0.35**2 * torch.eye(6), rtol=0, atol=1e-4)
    pixels = torch.randint(0, 256, (6, 9, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    floats = pixels[:, :8].movedim(-1, -3).double() / 127.5 - 1  # what follows the last whole block is left out
    assert torch.equal(BlockPCA.fit(pixels, 4, 5).basis, BlockPCA.fit(floats, 4, 5).basis)


def test_block_codec_is_saved_and_loaded_and_refuses_other_lengths(blocks, tmp_path):
    blocks.save(tmp_path)
    again = load_codec("block-pca", folder=tmp_path)
    assert torch.equal(again.encode(clips(1, 8))[0], blocks.encode(clips(1, 8))[0]) and again.factor == 4
    with pytest.raises(
        ValueError, match="6 frames are not a multiple of 4, which codec block-pca takes; cut clips of 4 or 8"
    ):
        blocks.encode(clips(1, 6))


def test_registries_share_no_name_and_each_codec_bears_its_own():
    assert not CODECS.keys() & VIDEO_CODECS.keys()
    assert all(codec.name == name for name, codec in (CODECS | VIDEO_CODECS).items())
    assert {name for name, codec in (CODECS | VIDEO_CODECS).items() if codec.fitted} == {"patch-pca", "block-pca"}
