"""Log-mel: parity with the official numbers, clips as slices of files, and the maps to and from model space."""

import pytest
import torch
from librosa.filters import mel as librosa_mel

from vocoder.mel import CONTEXT, HOP, from_model, log_mel, mel_filters, peak_normalise, to_model

CPU = torch.device("cpu")


@pytest.fixture
def wave():
    return 2 * torch.rand(2, 3200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize(
    "name", ["mel_mix_1s", "mel_quiet_0p6s", "mel_half_silent_0p6s", "mel_silence_0p4s", "mel_odd_length"]
)
def test_log_mel_and_model_space_agree_with_the_official_numbers(parity, name):
    case = parity(name)
    mel = log_mel(peak_normalise(case.tensors["in.wav"]))
    torch.testing.assert_close(mel, case.tensors["out.log_mel"], rtol=0, atol=case.tolerance["log_mel_abs"])
    scaled = to_model(mel, case.config["audio_scale"])
    torch.testing.assert_close(scaled, case.tensors["out.scaled"], rtol=0, atol=case.tolerance["scaled_abs"])


def test_peak_normalised_wave_agrees_with_the_official_one(parity):
    case = parity("mel_mix_1s")
    torch.testing.assert_close(peak_normalise(case.tensors["in.wav"]), case.tensors["out.peak_normalised"])


@pytest.mark.parametrize("name", ["item_30fps_stereo", "item_25fps_portrait"])
def test_log_mel_of_a_data_item_agrees_with_the_expected_one(parity, name):
    case = parity(name)
    mel = to_model(log_mel(peak_normalise(case.tensors["out.wave_expected"])), audio_scale=1)
    torch.testing.assert_close(mel, case.tensors["out.mel_expected"], rtol=0, atol=case.tolerance["mel_signed_abs"])


def test_filters_agree_with_the_official_ones(parity):
    case = parity("mel_filterbank")
    expected = torch.zeros(case.config["rows"], case.config["cols"])
    row, col = case.tensors["mel.nonzero_row"].long(), case.tensors["mel.nonzero_col"].long()
    expected[row, col] = case.tensors["mel.nonzero_value"]
    filters = mel_filters(256, 16000, CPU, torch.float32)
    torch.testing.assert_close(filters, expected, rtol=0, atol=case.tolerance["abs"])


@pytest.mark.parametrize(("n_mels", "sample_rate"), [(64, 16000), (80, 22050), (256, 16000)])
def test_filters_agree_with_librosa(n_mels, sample_rate):
    expected = torch.from_numpy(librosa_mel(sr=sample_rate, n_fft=2048, n_mels=n_mels, dtype="float64"))
    filters = mel_filters(n_mels, sample_rate, CPU, torch.float64)
    torch.testing.assert_close(filters, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["mel_decode_mixed_sign", "mel_decode_all_positive"])
def test_decoding_follows_the_formula_whatever_the_signs(parity, name):
    case = parity(name)
    decoded = from_model(case.tensors["in.model_space"], case.config["audio_scale"])
    torch.testing.assert_close(decoded, case.tensors["out.log_mel_expected"], rtol=0, atol=case.tolerance["abs"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_mel_of_a_clip_is_the_slice_of_the_mel_of_its_file(wave, dtype, tolerance):
    file = wave.flatten().to(dtype)
    first, frames = 10, 7  # mel frames
    clip = file[first * HOP - CONTEXT : (first + frames) * HOP + CONTEXT]
    torch.testing.assert_close(
        log_mel(clip, 64, padded=True), log_mel(file, 64)[:, first : first + frames], rtol=0, atol=tolerance
    )


def test_frame_hears_the_middle_of_its_own_samples_loudest():
    loudness = []
    for position in range(4 * HOP, 7 * HOP, HOP // 4):  # a click that moves through frames 4, 5 and 6
        click = torch.zeros(12 * HOP, dtype=torch.float64)
        click[position] = 1
        loudness.append(log_mel(click, 64)[:, 5].mean())
    assert 4 * HOP + HOP // 4 * torch.stack(loudness).argmax() == 5 * HOP + HOP // 2


def test_leading_dimensions_are_independent_waves(wave):
    nested = wave.reshape(2, 2, 1600)
    mel = log_mel(nested, 32)
    assert mel.shape == (2, 2, 32, 10)
    torch.testing.assert_close(mel[1, 0], log_mel(nested[1, 0], 32), rtol=0, atol=1e-12)


def test_model_space_and_back_is_the_identity_inside_the_limits(wave):
    mel = log_mel(wave)
    torch.testing.assert_close(from_model(to_model(mel, 3.5), 3.5), mel, rtol=0, atol=1e-12)
    assert from_model(torch.tensor([-9.0, 9.0]), 3.5).exp().tolist() == pytest.approx([1e-5, 200])


def test_peak_is_that_of_each_wave_and_silence_stays_silent(wave):
    loud, silent = peak_normalise(torch.stack([0.01 * wave[0], 0 * wave[0]]))
    assert loud.abs().max() == pytest.approx(0.95)
    assert peak_normalise(wave, peak=0.5).abs().amax(-1).tolist() == pytest.approx([0.5, 0.5])
    assert silent.eq(0).all()


def test_filters_cached_under_inference_mode_still_take_gradients():
    with torch.inference_mode():
        log_mel(torch.zeros(1600), 21)  # a filterbank that no other test makes
    wave = torch.rand(1600, requires_grad=True)
    log_mel(wave, 21).sum().backward()
    assert wave.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wave", "padded", "message"),
    [
        (torch.zeros(1600, dtype=torch.int16), False, "wave is torch.int16.*divide integers by 32768"),
        (torch.zeros(944), False, "944 samples.*at least 945"),
        (torch.zeros(2047), True, "2047 samples.*at least 2048"),
    ],
)
def test_waves_that_have_no_mel_are_refused(wave, padded, message):
    with pytest.raises(ValueError, match=message):
        log_mel(wave, padded=padded)
