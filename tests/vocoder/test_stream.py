"""A mel in pieces gives the samples of the whole, and a stream goes on from its saved state."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from vocoder import GriffinLim, HiFiGAN, HiFiGANConfig, VocoderStream, stream
from vocoder.hifigan import fold_weight_norm
from vocoder.stream import speak_in_context

FRAMES = 70
HIFIGANS = ["voc_rb1", "voc_rb2_oddgap"]


def hifigan(case):
    model = HiFiGAN(HiFiGANConfig(**case.config)).double().requires_grad_(False)
    model.load_state_dict(fold_weight_norm(case.weights))
    return model


def noise(vocoder, frames):
    return torch.randn(2, vocoder.n_mels, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=HIFIGANS)
def vocoder(request, parity):
    return hifigan(parity(request.param))


@pytest.fixture(scope="module", params=[*HIFIGANS, "griffin-lim"])
def any_vocoder(request, parity):
    return GriffinLim(16, iterations=6) if request.param == "griffin-lim" else hifigan(parity(request.param))


@pytest.fixture(scope="module")
def mel(vocoder):
    return noise(vocoder, FRAMES)


@pytest.mark.parametrize("size", [1, 7, 33, 200])
def test_joined_chunks_are_the_wave_of_the_whole_file(vocoder, mel, size):
    joined = torch.cat(list(stream(vocoder, mel.split(size, dim=-1))), dim=-1)
    torch.testing.assert_close(joined, vocoder(mel), rtol=0, atol=1e-10)


def test_half_the_context_is_not_enough(vocoder, mel):
    class Hasty:
        hop, n_mels, state_keys = vocoder.hop, vocoder.n_mels, vocoder.state_keys

        def speak(self, mel, state, last):
            return speak_in_context(vocoder, vocoder.context // 2, mel, state, last)

    joined = torch.cat(list(stream(Hasty(), mel.split(10, dim=-1))), dim=-1)
    assert (joined - vocoder(mel)).abs().max() > 1e-7


def test_sound_is_late_by_the_context(vocoder, mel):
    voice, written = VocoderStream(vocoder), 0
    for n, chunk in enumerate(mel.split(10, dim=-1), 1):
        written += voice.push(chunk).shape[-1]
        assert written == max(10 * n - vocoder.context, 0) * vocoder.hop


@pytest.mark.parametrize("frames", [0, 1, 5, 13, 30, 41])
def test_every_mel_frame_becomes_one_hop_of_samples(any_vocoder, frames):
    waves = list(stream(any_vocoder, noise(any_vocoder, frames).split(3, dim=-1)))
    assert torch.cat(waves, dim=-1).shape == (2, frames * any_vocoder.hop)
    assert all(wave.shape[-1] % any_vocoder.hop == 0 for wave in waves)


@pytest.mark.parametrize("cut", [1, 2, 4, 6])
def test_stream_resumed_from_its_saved_state_goes_on_bit_for_bit(any_vocoder, cut, tmp_path):
    chunks = noise(any_vocoder, FRAMES).split([5, 10, 10, 15, 7, 13, 10], dim=-1)
    through = VocoderStream(any_vocoder)
    for chunk in chunks[:cut]:
        through.push(chunk.mT.contiguous().mT)  # strides as after a rearrange
    save_file(through.state(), tmp_path / "voice.safetensors")
    resumed = VocoderStream(any_vocoder, load_file(tmp_path / "voice.safetensors"))
    for chunk in chunks[cut:]:
        assert torch.equal(resumed.push(chunk), through.push(chunk))
    assert torch.equal(resumed.finish(), through.finish())


def test_state_stays_as_it_was_while_the_stream_goes_on(any_vocoder):
    voice = VocoderStream(any_vocoder)
    voice.push(noise(any_vocoder, 37))
    state = voice.state()
    kept = {key: value.clone() for key, value in state.items()}
    voice.push(noise(any_vocoder, 37))
    assert all(torch.equal(state[key], kept[key]) for key in kept)


def test_state_does_not_grow_over_200_frames(any_vocoder):
    voice, sizes = VocoderStream(any_vocoder), []
    for chunk in noise(any_vocoder, 200).split(50, dim=-1):
        voice.push(chunk)
        sizes.append(sum(value.untyped_storage().nbytes() for value in voice.state().values()))
    assert max(sizes) == sizes[0]


def test_finished_stream_is_as_new_and_an_empty_one_has_nothing_to_say(any_vocoder):
    voice = VocoderStream(any_vocoder)
    assert voice.state() == {}
    once = torch.cat([voice.push(noise(any_vocoder, 40)), voice.finish()], dim=-1)
    assert voice.state() == {}
    assert torch.equal(torch.cat([voice.push(noise(any_vocoder, 40)), voice.finish()], dim=-1), once)
    assert list(stream(any_vocoder, [])) == []
    with pytest.raises(ValueError, match="no mel to finish"):
        voice.finish()


def test_state_of_another_vocoder_and_mel_of_other_clips_are_refused(vocoder, mel):
    voice = VocoderStream(vocoder)
    voice.push(mel)
    with pytest.raises(ValueError, match=r"holds \['mel'\], a stream of this vocoder has \['magnitude', 'mel', 'tail'"):
        VocoderStream(GriffinLim(vocoder.n_mels), voice.state())
    with pytest.raises(ValueError, match=r"mel has shape \(1, \d+, 70\), the stream goes on with \(2, \d+\) clips"):
        voice.push(mel[:1])
