"""HiFi-GAN: parity with the official generator, the ways its weights are stored, and its receptive field."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from vocoder import HiFiGAN, HiFiGANConfig, load_vocoder

CASES = ["voc_rb1", "voc_rb2_oddgap"]


def released(folder, case, weights=None, **extra):
    """A folder as released: config.json with training keys, and vocoder.pt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.config | {"sampling_rate": 16000, "batch_size": 16} | extra))
    torch.save({"generator": weights or case.weights}, folder / "vocoder.pt")
    return folder


def plain_weights(parity):
    from safetensors.torch import load_file

    case = parity("voc_rb2_oddgap")
    return load_file(case.folder / case.weights_plain)


@pytest.fixture(params=CASES)
def case(request, parity):
    return parity(request.param)


def test_wave_agrees_with_the_official_one(case, tmp_path):
    vocoder = HiFiGAN.from_pretrained(released(tmp_path, case))
    seen = {}
    vocoder.conv_post.register_forward_hook(lambda _, inputs, output: seen.update(pre=inputs[0], post=output))
    wave = vocoder(case.tensors["in.mel"])
    torch.testing.assert_close(seen["pre"], case.tensors["tap.conv_post_in"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen["post"], case.tensors["out.pre_tanh"], rtol=1e-4, atol=case.tolerance["wav_abs"])
    torch.testing.assert_close(wave, case.tensors["out.wav"][:, 0], rtol=0, atol=case.tolerance["wav_abs"])


@pytest.mark.parametrize("naming", ["plain", "parametrizations"])
def test_other_ways_to_store_the_weights_give_the_same_wave(parity, tmp_path, naming):
    case = parity("voc_rb2_oddgap")
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    weights = plain_weights(parity)
    if naming == "parametrizations":
        weights = {
            ".".join([*k.split(".")[:-1], new.get(k.split(".")[-1], k.split(".")[-1])]): w
            for k, w in case.weights.items()
        }
    wave = HiFiGAN.from_pretrained(released(tmp_path, case, weights))(case.tensors["in.mel"])
    torch.testing.assert_close(wave, case.tensors["out.wav"][:, 0], rtol=0, atol=case.tolerance["wav_abs"])


def test_saved_vocoder_is_the_same_to_the_bit(case, tmp_path):
    vocoder = HiFiGAN.from_pretrained(released(tmp_path / "released", case))
    vocoder.save(tmp_path / "ours")
    again = load_vocoder("hifigan", tmp_path / "ours")
    assert again.config == vocoder.config
    assert torch.equal(again(case.tensors["in.mel"]), vocoder(case.tensors["in.mel"]))


def test_full_size_generator_has_the_known_keys_and_a_context_of_22_frames(fixtures):
    known = json.loads((fixtures / "parity/keys/full_keys.json").read_text())["vocoder"]["full_size_unverified"]
    config = {k: tuple(map(tuple, v)) if k == "resblock_dilation_sizes" else v for k, v in known["config"].items()}
    with torch.device("meta"):
        vocoder = HiFiGAN(HiFiGANConfig(**config))
    normed = {
        k.replace("weight_v", "weight"): tuple(shape)
        for k, shape in known["keys_with_weight_norm"].items()
        if not k.endswith("weight_g")
    }
    assert {k: tuple(w.shape) for k, w in vocoder.state_dict().items()} == normed
    assert (vocoder.hop, vocoder.n_mels, vocoder.context) == (160, 256, 22)


def test_context_is_exactly_how_far_a_frame_reaches(case):
    """From the samples of a frame gradients reach `context` mel frames on the wider side and none beyond."""
    torch.manual_seed(0)
    fields = {f.name: case.config[f.name] for f in dataclasses.fields(HiFiGANConfig)}
    vocoder = HiFiGAN(HiFiGANConfig(**fields)).double()
    for weight in vocoder.parameters():
        torch.nn.init.uniform_(weight, 0.01, 0.1)  # positive: no path cancels or dies in a leaky ReLU
    middle = vocoder.context + 2
    mel = torch.rand(1, vocoder.n_mels, 2 * middle + 1, dtype=torch.float64, requires_grad=True)
    hook = []
    vocoder.conv_post.register_forward_hook(lambda _, inputs, output: hook.append(output))
    vocoder(mel)
    hook[0][..., middle * vocoder.hop : (middle + 1) * vocoder.hop].sum().backward()
    reached = mel.grad.abs().sum((0, 1)).nonzero().flatten() - middle
    assert max(-reached.min(), reached.max()) == vocoder.context


def test_weights_that_do_not_fit_are_named(parity, tmp_path):
    case = parity("voc_rb1")
    weights = {k: w for k, w in case.weights.items() if k != "conv_pre.bias"} | {"mpd.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 missing: conv_pre.bias; 1 unknown: mpd.weight"):
        HiFiGAN.from_pretrained(released(tmp_path, case, weights))
    with pytest.raises(ValueError, match=r"of another shape: conv_pre.weight"):
        HiFiGAN.from_pretrained(released(tmp_path, case, num_mels=80))


def test_missing_files_are_named_with_the_remedy(parity, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist; give the folder"):
        HiFiGAN.from_pretrained(tmp_path)
    released(tmp_path, parity("voc_rb1"))
    (tmp_path / "vocoder.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor vocoder.pt"):
        HiFiGAN.from_pretrained(tmp_path)


def test_foreign_checkpoints_and_configs_are_refused(parity, tmp_path):
    case = parity("voc_rb1")
    torch.save({"mpd": {}}, released(tmp_path, case) / "vocoder.pt")
    with pytest.raises(ValueError, match=r"no entry \"generator\" but \['mpd'\]"):
        HiFiGAN.from_pretrained(tmp_path)
    save_file(plain_weights(parity), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_mels": 16}))
    with pytest.raises(ValueError, match=r"lacks \['resblock', .*not the config of a HiFi-GAN"):
        HiFiGAN.from_pretrained(tmp_path)


def test_checkpoint_that_would_run_code_is_not_opened(parity, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    torch.save({"generator": Trap()}, released(tmp_path, parity("voc_rb1")) / "vocoder.pt")
    with pytest.raises(ValueError, match=r"cannot be opened: .* holds more than tensors"):
        HiFiGAN.from_pretrained(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_half_written_checkpoint_is_named(parity, tmp_path, size):
    path = released(tmp_path, parity("voc_rb1")) / "vocoder.pt"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="is damaged"):
        HiFiGAN.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resblock": "3"}, 'expected "1" or "2"'),
        ({"upsample_rates": (5, 4)}, "2 upsample_rates but 5"),
        ({"resblock_kernel_sizes": (3,)}, "1 resblock_kernel_sizes but 3"),
        ({"resblock_kernel_sizes": (3, 4, 5)}, "must be odd"),
        ({"upsample_rates": (5, 4, 2, 2, 8)}, "must not be smaller"),
    ],
)
def test_impossible_configs_are_refused(parity, change, message):
    with pytest.raises(ValueError, match=message):
        HiFiGANConfig(**{**parity("voc_rb1").config, **change})


def test_mel_of_another_height_is_refused(parity):
    with pytest.raises(ValueError, match=r"shape \(1, 80, 4\), this vocoder takes \(B, 24, frames\)"):
        HiFiGAN(HiFiGANConfig(**parity("voc_rb1").config))(torch.zeros(1, 80, 4))


def test_unknown_vocoder_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="'wavenet' is unknown; choose one of"):
        load_vocoder("wavenet", tmp_path)
