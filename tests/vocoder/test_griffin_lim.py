"""Griffin-Lim: the sound has the mel it was made from, in step, within full scale, the same every time."""

import math

import pytest
import torch

from vocoder import GriffinLim, load_vocoder, log_mel, peak_normalise, stream
from vocoder.griffin_lim import soft_limit, unmel
from vocoder.mel import HOP, mel_filters


@pytest.fixture(scope="module")
def pings():
    """Two seconds with a ping of the demo at 0.3 s (440 Hz) and at 1.25 s (1760 Hz)."""
    t = torch.arange(200 * HOP) / 16000
    wave = sum(
        torch.where(t >= at, torch.exp(-(t - at) / 0.06) * torch.sin(2 * math.pi * hz * (t - at)), 0)
        for at, hz in ((0.3, 440), (1.25, 1760))
    )
    return peak_normalise(wave)[None]


@pytest.fixture(scope="module")
def alone(pings):
    """The sound of their mel of 64 bins."""
    torch.manual_seed(1)
    return GriffinLim(64)(log_mel(pings, 64))


@pytest.mark.parametrize(("n_mels", "error"), [(64, 0.1), (256, 0.05)])
def test_sound_has_the_mel_it_was_made_from_at_lag_0(pings, n_mels, error):
    mel = log_mel(pings, n_mels).exp()
    heard = log_mel(GriffinLim(n_mels)(mel.log()), n_mels).exp()
    assert (heard - mel).norm() / mel.norm() < error
    fits = {lag: (heard.roll(lag, -1) - mel).norm() for lag in range(-3, 4)}
    assert min(fits, key=fits.get) == 0
    assert abs(fits[-1] / fits[1] - 1) < 0.1  # half a frame to either side would tilt this


@pytest.mark.parametrize("frames", [1, 3, 20])
def test_every_mel_frame_becomes_one_hop_of_samples(frames):
    assert GriffinLim(16)(torch.zeros(2, 16, frames)).shape == (2, frames * HOP)


def test_same_mel_gives_the_same_samples_whatever_the_seed_and_the_neighbours(pings, alone):
    mel, vocoder = log_mel(pings, 64), GriffinLim(64)
    torch.manual_seed(2)
    assert torch.equal(vocoder(torch.cat([mel, torch.zeros_like(mel)]))[:1], alone)


def test_rounding_of_the_mel_ends_far_below_the_sound(pings, alone):
    """As of clips that were made in another batch, on any CPU so far; iterated from zero phase it ended at -9 dB."""
    mel, vocoder = log_mel(pings, 64), GriffinLim(64)
    rounding = 1e-6 * torch.randn(mel.shape, generator=torch.Generator().manual_seed(0))
    assert (alone - vocoder(mel + rounding)).norm() < 10 ** (-40 / 20) * alone.norm()


def test_clip_is_a_stream_pushed_at_once(pings, alone):
    assert torch.equal(torch.cat(list(stream(GriffinLim(64), log_mel(pings, 64).split(7, -1))), -1), alone)


def test_loud_mel_stays_within_full_scale(pings):
    wave = GriffinLim(64)(log_mel(pings, 64) + math.log(4))
    assert 0.95 < wave.abs().max() <= 1


def test_limiter_leaves_normal_levels_alone_and_keeps_order_and_sign():
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    y = soft_limit(x)
    assert torch.equal(y[x.abs() <= 0.9], x[x.abs() <= 0.9])
    assert y.abs().max() <= 1 and y.diff().gt(0).all()
    torch.testing.assert_close(y, -y.flip(0))


def test_magnitudes_behind_a_mel_are_non_negative_and_reproduce_it():
    filters = mel_filters(64, 16000, torch.device("cpu"), torch.float64)
    truth = torch.rand(filters.shape[1], 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = unmel(filters @ truth, filters)
    assert found.min() >= 0
    torch.testing.assert_close(filters @ found, filters @ truth, rtol=0.01, atol=0)


def test_silence_stays_silent():
    wave = GriffinLim(64)(torch.full((1, 64, 10), math.log(1e-5)))
    assert wave.abs().max() < 1e-4


def test_saved_settings_come_back(tmp_path):
    GriffinLim(n_mels=64, iterations=8).save(tmp_path)
    vocoder = load_vocoder("griffin-lim", tmp_path)
    assert (vocoder.n_mels, vocoder.sample_rate, vocoder.iterations, vocoder.hop) == (64, 16000, 8, HOP)
    with pytest.raises(FileNotFoundError, match="Griffin-Lim has no weights"):
        load_vocoder("griffin-lim", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "config",
    ["", "[1]", '{"n_mels": 64}', '{"n_mels": -64, "sample_rate": 16000, "iterations": 8}',
     '{"n_mels": 64, "sample_rate": 16000, "iterations": true}', '{"n_mels": 64, "sample_rate": 1e4, "iterations": 8}',
     '{"n_mels": 1000000000, "sample_rate": 16000, "iterations": 8}',
     '{"n_mels": 64, "sample_rate": 16000, "iterations": 8, "resblock": "1"}'],
)  # fmt: skip
def test_config_of_something_else_is_refused_in_one_sentence(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config\.json (holds|is no JSON) .*; use GriffinLim\(n_mels\)"):
        load_vocoder("griffin-lim", tmp_path)


def test_mel_of_another_height_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 80, 4\), this vocoder takes \(B, 64, frames\)"):
        GriffinLim(64)(torch.zeros(1, 80, 4))
