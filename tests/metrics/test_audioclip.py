"""AudioCLIP's audio branch against the reference, and what its two modes promise."""

from math import pi

import pytest
import torch
from torch import Tensor

from metrics import weights
from metrics.audioclip import SOURCE, AudioCLIP, Wavelets, frames, rescaled
from tests.closeness import assert_close_by_size

SHORT = 1654 + 7 * 561  # samples of 8 frames, for what needs no reference
HOOKED = ["bn1", "layer1", "att1", "layer2", "att2", "layer3", "att3", "layer4", "att4", "att5", "fc"]
STAGES = [*HOOKED, "maxpool", "avgpool"]


@pytest.fixture(scope="module")
def net() -> AudioCLIP:
    net = AudioCLIP()
    weights.fill(net, "pub:")
    return net


@pytest.fixture
def fresh() -> AudioCLIP:
    """As a network begins: its wavelets are those of a Fourier transform."""
    return AudioCLIP()


@pytest.fixture(scope="module")
def golden(metrics_tensors) -> dict[str, Tensor]:
    return metrics_tensors("audio")


@pytest.fixture(scope="module")
def close(metrics_manifest) -> dict[str, float]:
    """Tolerance of `sound`; `compat` may be 200 times as far off, but float64 wavelets leave it no reason to be."""
    tolerance = metrics_manifest["tolerances"]["audio_emb_sound"]
    return {"max_abs": tolerance["max_abs"], "rel_l2": tolerance["rel_l2"]}


@pytest.fixture(scope="module")
def wave(golden_wave) -> Tensor:
    return torch.from_numpy(golden_wave[:, 0] / 32768).float()  # (8, 70560)


@pytest.fixture(scope="module")
def short(wave) -> Tensor:
    return wave[:4, 20000 : 20000 + SHORT]


@pytest.fixture(scope="module")
def heard(net, short) -> dict[str, Tensor]:
    """Features of the short clips by mode."""
    return {mode: net.embed(short, mode) for mode in ("sound", "compat")}


@pytest.fixture(scope="module", params=["sound", "compat"])
def run(request, net, wave) -> tuple[str, Tensor, dict[str, Tensor]]:
    """A mode, the features of the 8 clips, and what the stages on the way gave."""
    inputs, outputs = {}, {}

    def keep(name):
        def hook(module, args, out):
            inputs[name], outputs[name] = args[0], out

        return hook

    hooks = [getattr(net, name).register_forward_hook(keep(name)) for name in HOOKED]
    features = net.embed(wave, request.param)
    for hook in hooks:
        hook.remove()
    pools = {"maxpool": inputs["layer1"], "avgpool": inputs["att5"].mean((2, 3), keepdim=True)}
    return request.param, features, outputs | pools


def stage_wave(wave: Tensor, mode: str) -> Tensor:
    return rescaled(wave * (32768 if mode == "sound" else 1))


def assert_near(x: Tensor, expected: Tensor, max_abs: float, rel_l2: float) -> None:
    error = x.double() - expected.double()
    assert error.abs().max() <= max_abs and error.norm() <= rel_l2 * expected.double().norm()


def assert_stats(x: Tensor, expected: dict, tolerance: float) -> None:
    """Mean, standard deviation, largest magnitude and first 8 elements, within tolerance * absmax."""
    x = x.double().flatten()
    found = torch.stack([x.mean(), x.std(correction=0), x.abs().max(), *x[:8]])
    stated = torch.tensor([expected["mean"], expected["std"], expected["absmax"], *expected["first8"]]).double()
    assert (found - stated).abs().max() <= tolerance * expected["absmax"]


# The reference


def test_names_and_shapes_are_those_of_the_published_file(fresh, metrics_manifest):
    facts = metrics_manifest["nets"]["audioclip_audio"]
    assert {key: list(x.shape) for key, x in fresh.state_dict().items()} == facts["keys"] and len(facts["keys"]) == 370
    assert sum(p.numel() for p in fresh.parameters()) == facts["parameters"] == 32104771


def test_window_repeats_after_1654_samples_rather_than_being_symmetric(net):
    torch.testing.assert_close(net.window[1:], net.window[1:].flip(0))
    assert net.window[0] == net.window.min() < net.window[1] and net.window.argmax() == 827


def test_features_are_those_of_the_reference(run, golden, close):
    mode, features, _ = run
    assert_near(features, golden["emb_sound_f64" if mode == "sound" else "emb_compat_b8_f64net"], **close)


def test_four_clips_have_the_features_that_the_reference_gives_a_batch_of_four(net, wave, golden, close):
    assert_near(net.embed(wave[:4], "compat"), golden["emb_compat_b4_f64net"], **close)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_statistics_of_the_reference(run, stage, metrics_manifest):
    mode, _, stages = run
    name = "stage_stats_sound_clip0" if mode == "sound" else "stage_stats_compat_whole_batch"
    expected = metrics_manifest["audio"][name][stage]
    x = stages[stage][0] if mode == "sound" else stages[stage]
    assert list(x.shape) == expected["shape"]
    assert_stats(x, expected, tolerance=1e-4)


def test_pooled_features_and_last_gate_are_those_of_the_reference(run, golden, close):
    mode, _, stages = run
    if mode == "sound":
        for name in ("avgpool", "att5"):
            assert_near(stages[name][0].flatten(), golden[f"{name}_sound_clip0"], **close)


@pytest.mark.parametrize("mode", ["sound", "compat"])
def test_decibels_are_those_of_the_reference(net, wave, golden, metrics_manifest, mode):
    x = net.spectrogram(stage_wave(wave[:1] if mode == "sound" else wave, mode))
    error = x[0][:, ::11, ::8] - golden[f"db_{mode}_clip0_sub"]
    assert error.abs().mean() <= metrics_manifest["tolerances"]["audio_db"][f"mean_abs_db_{mode}"]
    name = "stage_stats_sound_clip0" if mode == "sound" else "stage_stats_compat_whole_batch"
    expected = metrics_manifest["audio"][name]["db"]
    assert_stats(x[0] if mode == "sound" else x, expected, tolerance=1e-3)  # the weakest bin strays by 0.02 dB


def test_wavelets_are_those_of_the_reference(net, golden, metrics_manifest):
    kernel = net.fbsp.kernel()
    assert_near(kernel[::64, ::64], golden["fbsp_w_sub"], max_abs=1e-8, rel_l2=1e-7)
    assert_stats(kernel, metrics_manifest["audio"]["fbsp_kernel"], tolerance=1e-6)


@pytest.mark.parametrize("mode", ["sound", "compat"])
def test_rescaled_wave_is_that_of_the_reference_to_the_last_bit(wave, metrics_manifest, mode):
    expected = metrics_manifest["audio"]["scaled_wave"]
    x = stage_wave(wave[0], mode)
    assert_stats(x, expected[f"{mode}_clip0"], tolerance=1e-6)
    if mode == "compat":
        assert len(x.unique()) == expected["compat_clip0_distinct_values"]


# What the modes promise


def test_sound_does_not_depend_on_neighbours_or_batch_size(net, short, heard):
    alone = net.embed(short[:1], "sound")
    assert_close_by_size(heard["sound"][:1], alone)
    louder = torch.cat([short[:1], 3 * short[1:2]])
    assert_close_by_size(net.embed(louder, "sound")[:1], alone)


def test_compat_depends_on_neighbours_but_not_on_their_order(net, short, heard):
    features = heard["compat"]
    assert (net.embed(short[:2], "compat") - features[:2]).norm() > 0.05 * features[:2].norm()
    order = [2, 0, 3, 1]
    assert_near(net.embed(short[order], "compat"), features[order], max_abs=1e-3, rel_l2=1e-3)


def test_nothing_that_is_saved_changes_by_embedding(net, short):
    before = {key: x.clone() for key, x in net.state_dict().items()}
    features = net.embed(short[:2], "sound")
    net.embed(short[:2], "compat")
    assert all(torch.equal(before[key], x) for key, x in net.state_dict().items())
    assert torch.equal(net.embed(short[:2], "sound"), features)


def test_compat_refuses_one_clip(net, short):
    with pytest.raises(ValueError, match="compat normalises by the batch and cannot take a batch of 1; give 2 clips"):
        net.embed(short[:1], "compat")


def test_compat_hears_float32_whatever_the_precision_of_the_wave(net, short, heard):
    """A float64 wave would keep what the published rounding throws away."""
    assert torch.equal(net.embed(short.double(), "compat"), heard["compat"])


def test_channels_are_heard_one_by_one_and_their_pooled_features_summed(net, short):
    both = net.embed(short.view(2, 2, SHORT), "sound")  # (B, C, N)
    left, right = (net.embed(short[channel::2], "sound") for channel in (0, 1))
    assert_close_by_size(both, left + right - net.fc.bias)
    assert torch.equal(net.embed(short[::2, None], "sound"), left)


# Frames and wavelets


@pytest.mark.parametrize("n, count, before", [(70560, 124, 48), (1654, 1, 0), (1655, 2, 280), (1654 + 561, 2, 0)])
def test_frames_cover_the_whole_wave_and_zeros_fill_both_ends(n, count, before):
    x = frames(torch.arange(1.0, n + 1)[None])[0]
    assert x.shape == (count, 1654)
    assert x[0, :before].eq(0).all() and x[0, before] == 1
    assert x.max() == n and x.unique().numel() >= n  # no sample is lost
    if count > 1:
        torch.testing.assert_close(x[1, :-561], x[0, 561:])


def test_tone_is_loudest_in_its_own_bin(fresh):
    cycles = torch.tensor([100, 341, 500, 1000])  # in 2048 samples
    tones = torch.sin(2 * pi * cycles[:, None] / 2048 * torch.arange(SHORT))
    rows = fresh.spectrogram(tones).flatten(1, 2)  # (4, 1023, frames)
    assert rows[..., 1:-1].argmax(1).eq(cycles[:, None]).all()


@torch.no_grad()
def test_order_two_squares_the_spline_of_order_one_sign_and_all():
    def real_part(m, fb):
        wavelets = Wavelets()
        wavelets.m.fill_(m), wavelets.fb.fill_(fb), wavelets.fc.zero_()
        return wavelets.kernel()[0, :, 0] / fb**0.5 * 2048**0.5

    once, squared = real_part(m=1, fb=2), real_part(m=2, fb=4)  # sinc(2 t), sinc(4 t / 2)^2
    assert once.min() < -0.2
    assert_close_by_size(squared, once**2)


def test_no_power_at_all_is_180_decibels_down(net):
    assert net.spectrogram(torch.zeros(1, SHORT)).eq(-180).all()


# Sixteen bits


def test_floor_is_the_power_that_rounding_to_16_bit_adds(net):
    rounding = torch.rand(8, SHORT, generator=torch.Generator().manual_seed(0)) - 0.5  # steps of int16
    power = 10 ** (net.spectrogram(rounding / 32767.5).flatten(1, 2)[..., 1:-1] / 10)  # (8, 1023, frames) all full
    ratio = power.mean((0, 2)) / net.rounding_power()
    assert 0.95 < ratio.mean() < 1.05 and 0.4 < ratio.min() and ratio.max() < 2  # 48 frames a bin, exponential


def test_sound_hears_nothing_that_no_16_bit_file_can_hold(net, short):
    """A pause of pure zeros, as a 16-bit file has and a decoder of AAC has not: noise in it, and in all of a clip."""
    gated = (short[:2] * (torch.arange(SHORT) < 2500)).mul(32768).round() / 32768
    noise = torch.randn(gated.shape, generator=torch.Generator().manual_seed(0)) / 32768 / 60
    features = net.embed(gated, "sound")
    apart = (features[0] - features[1]).norm()
    for other in (gated + noise, gated + noise * (gated == 0)):
        assert (net.embed(other, "sound") - features).norm(dim=1).max() < 0.01 * apart


def test_sound_hears_the_last_bit_of_a_16_bit_file(net):
    """The floor is no gate: noise of a step in silence is another sound."""
    silence = torch.zeros(1, SHORT)
    last_bit = torch.randint(-1, 2, (1, SHORT), generator=torch.Generator().manual_seed(0)) / 32768
    floor = net.rounding_power()
    quiet, heard = (net.spectrogram(rescaled(x * 32768), floor).mean() for x in (silence, last_bit))
    assert heard - quiet > 3  # dB


# Weights


def test_loads_its_part_of_a_file_and_forgets_the_wavelets_of_before(net, fresh, short, tmp_path):
    before, expected = fresh.embed(short[:1], "sound"), net.embed(short[:1], "sound")
    path = tmp_path / "full.pt"
    part = {f"audio.{key}": x for key, x in net.state_dict().items()}
    torch.save({"logit_scale": torch.ones(()), "visual.fc.weight": torch.ones(2, 2), **part}, path)
    weights.load(fresh, path, SOURCE, prefix="audio.")
    path.unlink()  # 128 MB
    assert torch.equal(fresh.embed(short[:1], "sound"), expected) and not torch.allclose(before, expected)


def test_wavelets_are_made_once_for_the_same_weights_and_anew_for_others(fresh):
    for name in ("window", "fbsp.m", "fbsp.fb", "fbsp.fc"):
        made = fresh.analysis()
        assert fresh.analysis() is made
        fresh.state_dict()[name].mul_(1.5)  # in place, as weights are loaded
        assert not torch.allclose(fresh.analysis(), made)


def test_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"get it from https://github.com/AndreyGuzhov/AudioCLIP/releases"):
        weights.load(torch.nn.Identity(), tmp_path / "full.pt", SOURCE, prefix="audio.")


# Mistakes


@pytest.mark.parametrize(
    "shape, message",
    [
        ((70560,), r"wave has shape \(70560,\), expected \(B, N\) or \(B, C, N\)"),
        ((2, 1653), r"wave has shape \(2, 1653\), expected .* N >= 1654"),
        ((2, 0, 70560), r"wave has shape \(2, 0, 70560\)"),
        ((0, 70560), r"wave has shape \(0, 70560\)"),
    ],
)
def test_what_is_no_batch_of_waves_is_refused(net, shape, message):
    with pytest.raises(ValueError, match=message):
        net.embed(torch.zeros(shape), "sound")


def test_whole_numbers_are_refused_with_the_remedy(net):
    with pytest.raises(ValueError, match=r"wave is torch.int16; give floats in \[-1, 1\]"):
        net.embed(torch.zeros(2, SHORT, dtype=torch.int16), "sound")


def test_unknown_mode_is_refused_with_the_known_ones(net, short):
    with pytest.raises(ValueError, match="mode is 'train'; choose 'sound' or 'compat'"):
        net.embed(short, "train")
