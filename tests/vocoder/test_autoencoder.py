"""Autoencoders of sound: tokens of a steady rate, no sample lost, the network's own numbers."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.closeness import assert_close_by_size
from vocoder.autoencoder import SOUND_CODECS, Oobleck

RATIOS = {"even": [2, 4, 4, 30], "odd": [2, 4, 8, 15]}  # 960 samples: 50 tokens a second at 48 kHz


@pytest.fixture(scope="module", params=["even", "odd"])
def oobleck(request, tmp_path_factory):
    """(model, codec) of tiny size with random weights, saved and loaded as the library's own."""
    from diffusers import AutoencoderOobleck  # seconds, which only the process that runs this file shall spend

    torch.manual_seed(0)
    model = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=RATIOS[request.param],
        channel_multiples=[1, 1, 1, 1],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=48000,
    ).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, Oobleck.load(folder)


def waves(B=2, samples=9600):
    return 0.2 * torch.randn(B, samples, generator=torch.Generator().manual_seed(0))


def test_960_samples_are_a_token_and_come_back_whole(oobleck):
    codec = oobleck[1]
    assert (codec.sample_rate, codec.hop, codec.channels, codec.tokens(96_000)) == (48000, 960, 4, 100)
    mean, std = codec.encode(waves(), 48000)
    assert mean.shape == std.shape == (2, 10, 4) and (std > 0).all()
    assert codec.decode(mean).shape == (2, 9600)
    assert codec.encode(waves(samples=9601), 48000)[0].shape == (2, 11, 4)


@torch.no_grad()
def test_tokens_and_waves_are_those_of_the_network(oobleck):
    model, codec = oobleck
    x = waves(1)
    raw = model.encode(x[:, None].expand(-1, 2, -1)).latent_dist
    mean, std = codec.encode(x, 48000)
    assert_close_by_size(mean, raw.mean.transpose(1, 2))
    assert_close_by_size(std, raw.std.transpose(1, 2))
    theirs, ours = model.decode(raw.mean).sample.mean(1), codec.decode(mean)
    inside = slice(0, theirs.shape[1] - 8 * 960 * codec._more)  # near the end it sees that there is one token more
    assert_close_by_size(ours[:, inside], theirs[:, inside].clamp(-1, 1))


@torch.no_grad()
def test_tokens_are_of_a_gaussian_whose_divergence_from_the_unit_one_is_the_networks_own(oobleck):
    """Row S9: KL >= 0, and 0 for N(0,1); the network's is a sum over channels, a mean over tokens and clips."""
    model, codec = oobleck
    mean, std = codec.encode(waves(), 48000)
    divergence = kl_divergence(Normal(mean, std), Normal(0.0, 1.0))
    theirs = model.encode(waves()[:, None].expand(-1, 2, -1)).latent_dist.kl()
    assert (divergence >= 0).all() and 2 * divergence.sum(2).mean().item() == pytest.approx(theirs.item(), rel=1e-4)
    assert not kl_divergence(Normal(0 * mean, 0 * std + 1), Normal(0.0, 1.0)).any()
    assert not any(p.requires_grad for p in codec.parameters())


def test_waves_that_do_not_fit_are_refused(oobleck, tmp_path):
    codec = oobleck[1]
    with pytest.raises(ValueError, match="sound of 16000 Hz does not fit codec oobleck of 48000 Hz; resample it"):
        codec.encode(waves(), 16000)
    with pytest.raises(ValueError, match=r"wave is \(2, 2, 9\) .*, expected \(B,samples\) float"):
        codec.encode(torch.zeros(2, 2, 9), 48000)
    with pytest.raises(ValueError, match=r"codec oobleck takes \(B,N,4\)"):
        codec.decode(torch.zeros(1, 3, 5))
    with pytest.raises(FileNotFoundError, match=r"lacks config.json; give the whole directory"):
        Oobleck.load(tmp_path)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="holds a AutoencoderKL, codec oobleck needs an AutoencoderOobleck"):
        Oobleck.load(tmp_path)
    assert all(codec.name == name for name, codec in SOUND_CODECS.items())
