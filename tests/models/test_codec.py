"""Frame codecs: one door, scale factors inside, bounded batches, and errors before anything is downloaded."""

import diffusers
import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from models.codec import CODECS, PatchPCA, Pixels, load_codec
from tests.closeness import assert_close_by_size

TINY = {  # constructors of tiny autoencoders, their factor and their latent channels
    "sd-vae": (
        lambda: diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        ),
        2,
        4,
    ),
    "dc-ae": (
        lambda: diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.41,
        ),
        2,
        4,
    ),
    "taesd": (
        lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            scaling_factor=0.7,
        ),
        4,
        4,
    ),
}


def clips(B=2, T=5, size=16, seed=0):
    return 2 * torch.rand(B, T, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture(scope="module", params=TINY)
def pretrained(request, tmp_path_factory):
    """(name, model, folder) of a tiny autoencoder with random weights, saved as the hub would have it."""
    torch.manual_seed(0)
    model, folder = TINY[request.param][0]().eval(), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


@pytest.fixture(scope="module")
def fitted():
    return PatchPCA.fit(clips(8, 6), patch=4, channels=5)


@pytest.fixture(params=["offline", "unreachable"])
def no_hub(request, monkeypatch):
    def fail(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("a long story\nabout HTTP")

    if request.param == "unreachable":
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_pretrained_codec_knows_its_factor_and_channels(pretrained):
    name, _, folder = pretrained
    codec = load_codec(name, folder)
    assert (codec.name, codec.factor, codec.channels, codec.temporal_factor) == (name, *TINY[name][1:], 1)
    mean, std = codec.encode(clips())
    assert mean.shape == std.shape == (2, 5, codec.channels, 16 // codec.factor, 16 // codec.factor)
    assert codec.decode(mean).shape == (2, 5, 3, 16, 16)


@torch.no_grad()
def test_scale_factor_is_inside(pretrained):
    name, model, folder = pretrained
    codec, x = load_codec(name, folder), clips(1, 2)
    mean, std = codec.encode(x)
    encoded = model.encode(x[0])
    if name == "sd-vae":
        assert model.config.scaling_factor == 0.18215
        raw, raw_std = encoded.latent_dist.mean, encoded.latent_dist.std
    else:
        raw, raw_std = encoded.latents if name == "taesd" else encoded.latent, torch.zeros(())
    assert_close_by_size(mean[0], raw * model.config.scaling_factor)
    assert_close_by_size(std[0], (raw_std * model.config.scaling_factor).expand_as(raw))
    assert_close_by_size(codec.decode(mean)[0], model.decode(raw).sample.clamp(-1, 1))


def test_bounded_batches_equal_one_batch(pretrained, fitted):
    for codec in (load_codec(pretrained[0], pretrained[2]), fitted):
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            for method in ("_encode", "_decode"):
                inner = getattr(codec, method)
                patch.setattr(codec, method, lambda x, inner=inner, seen=seen: seen.append(len(x)) or inner(x))
            whole, bounded = codec.encode(clips(), batch_size=10), codec.encode(clips(), batch_size=3)
            for one, other in zip(bounded, whole):  # mean, std
                assert_close_by_size(one, other)
            assert_close_by_size(codec.decode(whole[0], 3), codec.decode(whole[0], 10))
        assert seen == [10, 3, 3, 3, 1, 3, 3, 3, 1, 10]


def test_saved_codec_encodes_the_same(pretrained, tmp_path):
    name, _, folder = pretrained
    codec = load_codec(name, folder)
    codec.save(tmp_path)
    again = load_codec(name, "nowhere/at-all", folder=tmp_path)  # the checkpoint's own goes before the source
    assert torch.equal(again.encode(clips())[0], codec.encode(clips())[0])


def test_no_gradients_are_kept(pretrained):
    codec = load_codec(pretrained[0], pretrained[2])
    assert not codec.encode(clips().requires_grad_())[0].requires_grad
    assert not any(p.requires_grad for p in codec.parameters()) and not codec.model.training


def test_weights_of_another_codec_are_refused(pretrained):
    name, model, folder = pretrained
    other = "taesd" if name != "taesd" else "sd-vae"
    with pytest.raises(ValueError, match=f"holds a {type(model).__name__}, codec {other} needs"):
        load_codec(other, folder)


def test_hub_id_without_network_is_one_sentence_that_names_the_way_out(no_hub):
    with pytest.raises(FileNotFoundError, match=r"someone/nothing cannot be read.*give the local directory") as raised:
        load_codec("sd-vae", "someone/nothing")
    assert "\n" not in str(raised.value) and raised.value.__context__ is None


@pytest.mark.parametrize("path", ["/no/such/folder", "./vae", "models/vae/ema", "vae"])
def test_misspelt_path_is_not_looked_up_on_the_hub(monkeypatch, path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match=rf"codec sd-vae: {path} cannot be read \(no such directory\)"):
        load_codec("sd-vae", path)


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_incomplete_folder_is_named(tmp_path, file):
    (tmp_path / file).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"lacks config.json or diffusion_pytorch_model.safetensors"):
        load_codec("dc-ae", tmp_path)


def test_unknown_codec_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'vqgan' is unknown; choose one of .*'patch-pca'"):
        load_codec("vqgan")
    assert all(codec.name == name for name, codec in CODECS.items())


def test_frames_made_of_few_patches_are_reconstructed_exactly():
    """Patches in the span of 5 random ones and a mean: 5 channels hold them all."""
    generator = torch.Generator().manual_seed(0)
    patches = 0.1 * torch.randn(5, 3, 4, 4, generator=generator)
    weights = torch.rand(40, 4, 4, 5, generator=generator) - 0.5
    frames = 0.2 + torch.einsum("nhwk,kcpq->nchpwq", weights, patches).reshape(1, 40, 3, 16, 16)
    codec = PatchPCA.fit(frames, patch=4, channels=5)
    assert_close_by_size(codec.decode(codec.encode(frames)[0]), frames)


def test_patch_latents_are_uncorrelated_with_the_asked_std_and_falling_strength(fitted):
    z = fitted.encode(clips(8, 6))[0].movedim(2, 0).flatten(1)
    torch.testing.assert_close(z.cov(correction=0), 0.35**2 * torch.eye(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.mean(1), torch.zeros(5), rtol=0, atol=1e-4)
    assert fitted.scale.diff().ge(0).all()  # the strongest component is scaled least


def test_fit_does_not_depend_on_batches_or_the_kind_of_frames(fitted):
    batched = PatchPCA.fit((batch for batch in clips(8, 6).split(3)), patch=4, channels=5)
    assert_close_by_size(batched.basis, fitted.basis)
    pixels = torch.randint(0, 256, (20, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    from_bytes = PatchPCA.fit(pixels, patch=4, channels=5)
    from_floats = PatchPCA.fit(pixels.movedim(-1, -3).double() / 127.5 - 1, patch=4, channels=5)
    assert torch.equal(from_bytes.basis, from_floats.basis) and torch.equal(from_bytes.scale, from_floats.scale)


def test_sign_of_every_component_is_fixed(fitted):
    strongest = fitted.basis.gather(1, fitted.basis.abs().argmax(1, keepdim=True))
    assert strongest.gt(0).all()


def test_fitted_codec_comes_back_to_the_bit(fitted, tmp_path):
    fitted.save(tmp_path / "codec")
    again = load_codec("patch-pca", folder=tmp_path / "codec")
    assert (again.factor, again.channels) == (4, 5)
    for name, buffer in fitted.state_dict().items():
        assert torch.equal(again.state_dict()[name], buffer)


def test_codec_that_cannot_be_fitted_says_why(tmp_path):
    with pytest.raises(ValueError, match="fill only 0 of 12 channels"):
        PatchPCA.fit(torch.zeros(4, 3, 16, 16))
    with pytest.raises(ValueError, match="no frames to fit"):
        PatchPCA.fit([])
    with pytest.raises(FileNotFoundError, match="is fitted, not downloaded"):
        load_codec("patch-pca", folder=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": torch.zeros(47)},
        {"basis": torch.zeros(5, 47)},
        {"basis": torch.zeros(48, 5)},
        {"scale": torch.ones(4)},
        {"scale": torch.zeros(5)},
        {"scale": torch.ones(5, dtype=torch.int32)},
        {"mean": torch.full((48,), torch.nan)},
        {"more": torch.zeros(1)},
        {"mean": torch.zeros(0), "basis": torch.zeros(5, 0)},
        {"basis": torch.zeros(0, 48), "scale": torch.zeros(0)},
    ],
)
def test_codec_whose_numbers_do_not_fit_each_other_is_refused(fitted, tmp_path, change):
    save_file({**fitted.state_dict(), **change}, tmp_path / "codec.safetensors")
    with pytest.raises(ValueError, match=r"codec\.safetensors holds .*; take the codec/ folder of a checkpoint"):
        PatchPCA.load(tmp_path)


def test_damaged_codec_is_refused_in_one_sentence(fitted, tmp_path):
    fitted.save(tmp_path)
    path = tmp_path / "codec.safetensors"
    for data in (b"", path.read_bytes()[:-9], b"x" * 999):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"codec\.safetensors is damaged \(.*\); take the codec/ folder"):
            PatchPCA.load(tmp_path)


def test_pixels_are_their_own_latents():
    codec, x = load_codec("pixels"), clips()
    mean, std = codec.encode(x)
    assert torch.equal(mean, x) and std.eq(0).all() and torch.equal(codec.decode(mean), x)


def test_decoded_frames_stay_within_range():
    assert Pixels().decode(torch.full((1, 1, 3, 2, 2), 1.5)).max() == 1


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            torch.zeros(1, 2, 3, 18, 16),
            "18 pixels high, not a multiple of the 4 of codec patch-pca; resize them to 16 or 20",
        ),
        (torch.zeros(1, 2, 3, 16, 3), "3 pixels wide.*resize them to 4"),
        (torch.zeros(2, 3, 16, 16), r"expected \(B,T,3,H,W\)"),
        (torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), r"torch.uint8, expected .* float in \[-1,1\]"),
    ],
)
def test_frames_that_do_not_fit_are_refused(fitted, frames, message):
    with pytest.raises(ValueError, match=message):
        fitted.encode(frames)


def test_latents_of_another_codec_are_refused(fitted):
    with pytest.raises(ValueError, match=r"codec patch-pca takes \(B,T,5,h,w\)"):
        fitted.decode(torch.zeros(1, 2, 4, 4, 4))
