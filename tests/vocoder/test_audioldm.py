"""AudioLDM's sound: tokens of its own mel by its own networks, no sample lost, and what does not fit refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from einops import rearrange
from librosa.filters import mel as librosa_mel

from tests.closeness import assert_close_by_size
from tests.small_audioldm import BINS, VAE, write_audioldm
from vocoder.audioldm import AudioLDM

RATE, HOP, CHANNELS = 16000, 640, 3 * BINS // 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audioldm")


@pytest.fixture(scope="module")
def networks(folder):
    return write_audioldm(folder)


@pytest.fixture(scope="module")
def codec(networks, folder):
    return AudioLDM.load(folder)


def waves(B=2, samples=6400):
    """With context on both sides."""
    return 0.2 * torch.randn(B, samples + 2 * AudioLDM.context, generator=torch.Generator().manual_seed(0))


def test_four_mel_frames_are_a_token_and_come_back_whole(codec):
    facts = (codec.sample_rate, codec.hop, codec.channels, codec.tokens(16000), codec.context)
    assert facts == (RATE, HOP, CHANNELS, 25, 432)
    mean, std = codec.encode(waves(), RATE)
    assert mean.shape == std.shape == (2, 10, CHANNELS) and (std > 0).all()
    assert codec.decode(mean).shape == (2, 6400)
    longer = codec.encode(waves(samples=6401), RATE)[0]
    assert longer.shape == (2, 11, CHANNELS) and codec.decode(longer).shape == (2, 7040)


def test_encoding_draws_nothing(codec):
    assert all(x.equal(y) for x, y in zip(codec.encode(waves(), RATE), codec.encode(waves(), RATE)))


def test_tokens_are_the_scaled_latents_of_its_mel(networks, codec):
    """With the facts of AudioLDM: spectra of 1024 samples every 160, Slaney's filters up to 8 kHz."""
    x = waves()
    pieces = x.double().unfold(1, 1024, 160).numpy() * np.hanning(1025)[:-1]
    filters = librosa_mel(sr=RATE, n_fft=1024, n_mels=BINS, fmin=0, fmax=8000)
    mel = np.abs(np.fft.rfft(pieces)) @ filters.T  # (B, 40, BINS)
    picture = torch.from_numpy(np.log(np.maximum(mel, 1e-5))).float()[:, None]
    posterior = networks[0].encode(picture).latent_dist
    for ours, theirs in zip(codec.encode(x, RATE), (posterior.mean, posterior.std)):
        latents = rearrange(ours, "b n (c f) -> b c n f", c=3)
        assert_close_by_size(latents, VAE["scaling_factor"] * theirs, share=1e-4)


@torch.no_grad()
def test_waves_are_what_its_vocoder_makes_of_decoded_latents(networks, codec):
    tokens = codec.encode(waves(), RATE)[0]
    latents = torch.stack([tokens[..., i * 4 : i * 4 + 4] for i in range(3)], 1)
    wave = networks[1](networks[0].decode(latents / VAE["scaling_factor"]).sample.squeeze(1))
    assert wave.shape[1] > 6400 and wave.std() > 0.01  # more samples than a mel stands for: its first kernel is even
    assert_close_by_size(codec.decode(tokens), wave[:, :6400])


def test_error_is_of_the_wave_without_its_context(codec, monkeypatch):
    wave = waves()
    monkeypatch.setattr(codec, "_decode", lambda tokens: wave[:, codec.context : -codec.context])
    assert codec.log_mel_error(wave, codec.encode(wave, RATE)[0]).max() < 1e-5


def test_hash_of_the_codec_has_its_scale(codec):
    assert codec.state_dict()["scale"].item() == pytest.approx(VAE["scaling_factor"])


def test_sound_of_another_rate_is_refused(codec, folder):
    said = "sound of 48000 Hz does not fit codec audioldm of 16000 Hz; resample it"
    with pytest.raises(ValueError, match=said):
        codec.encode(waves(), 48000)
    with pytest.raises(ValueError, match=said):
        AudioLDM.open(folder, 48000, None)
    with pytest.raises(ValueError, match=rf"codec audioldm takes \(B,N,{CHANNELS}\)"):
        codec.decode(torch.zeros(1, 3, 5))


@pytest.mark.parametrize(
    ("vae", "vocoder", "said"),
    [
        ({"in_channels": 3}, {}, "the autoencoder takes pictures of 3 channels and gives 1, a log-mel has 1"),
        ({}, {"upsample_rates": [4, 8, 4]}, "makes 128 samples of a mel frame, which stands for 160"),
        ({}, {"model_in_dim": 18}, "the vocoder's 18 mel bins are not a multiple of the 4"),
    ],
)
def test_networks_that_do_not_fit_each_other_are_refused(tmp_path, vae, vocoder, said):
    write_audioldm(tmp_path, vae, vocoder)
    with pytest.raises(ValueError, match=said):
        AudioLDM.load(tmp_path)


def test_folders_that_are_not_whole_are_refused(networks, folder, tmp_path):
    with pytest.raises(ValueError, match="codec audioldm needs weights; give --sound-source"):
        AudioLDM.open(None, RATE, None)
    with pytest.raises(FileNotFoundError, match=r"lacks vae/config.json; give the whole directory"):
        AudioLDM.load(tmp_path)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights, config = tmp_path / "vocoder/model.safetensors", tmp_path / "vae/config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"vocoder cannot be loaded \(SafetensorError.*from one place"):
        AudioLDM.load(tmp_path)
    weights.write_bytes(whole)
    deeper = json.loads(config.read_text()) | {"layers_per_block": 2}
    config.write_text(json.dumps(deeper))
    with pytest.raises(ValueError, match=r"vae has no weights for decoder.* and 47 others; take its config"):
        AudioLDM.load(tmp_path)
    config.write_text(json.dumps(deeper | {"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="holds a VQModel, codec audioldm needs an AutoencoderKL"):
        AudioLDM.load(tmp_path)
