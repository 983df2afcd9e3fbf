"""A mel in pieces gives the samples of the whole, and a stream goes on from its saved state."""

import pytest
import torch

from vocoder import HiFiGAN, HiFiGANConfig, VocoderStream, stream
from vocoder.hifigan import fold_weight_norm

FRAMES = 70


@pytest.fixture(scope="module", params=["voc_rb1", "voc_rb2_oddgap"])
def vocoder(request, parity):
    case = parity(request.param)
    model = HiFiGAN(HiFiGANConfig(**case.config)).double().requires_grad_(False)
    model.load_state_dict(fold_weight_norm(case.weights))
    return model


@pytest.fixture(scope="module")
def mel(vocoder):
    return torch.randn(2, vocoder.n_mels, FRAMES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [1, 7, 10, 33, 200])
def test_joined_chunks_are_the_wave_of_the_whole_file(vocoder, mel, size):
    joined = torch.cat(list(stream(vocoder, mel.split(size, dim=-1))), dim=-1)
    torch.testing.assert_close(joined, vocoder(mel), rtol=0, atol=1e-10)


def test_half_the_context_is_not_enough(vocoder, mel):
    class Hasty:
        hop, context = vocoder.hop, vocoder.context // 2

        def __call__(self, mel):
            return vocoder(mel)

    joined = torch.cat(list(stream(Hasty(), mel.split(10, dim=-1))), dim=-1)
    assert (joined - vocoder(mel)).abs().max() > 1e-7


@pytest.mark.parametrize("frames", [1, 5])
def test_file_shorter_than_the_context_comes_out_whole(vocoder, mel, frames):
    short = mel[..., :frames]
    (wave,) = stream(vocoder, short.split(2, dim=-1))
    torch.testing.assert_close(wave, vocoder(short), rtol=0, atol=1e-10)


def test_sound_is_late_by_the_context_and_the_state_stays_small(vocoder, mel):
    voice, written = VocoderStream(vocoder), 0
    for n, chunk in enumerate(mel.split(10, dim=-1), 1):
        written += voice.push(chunk).shape[-1]
        assert written == max(10 * n - vocoder.context, 0) * vocoder.hop
        assert voice.state().shape[-1] <= 2 * vocoder.context
        assert voice.state().untyped_storage().nbytes() == voice.state().nbytes  # not a view of the whole file


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_stream_resumed_from_its_state_goes_on_without_a_seam(vocoder, mel, cut):
    chunks = mel.split(10, dim=-1)
    first = VocoderStream(vocoder)
    waves = [first.push(chunk) for chunk in chunks[:cut]]
    second = VocoderStream(vocoder, state=first.state().clone())
    waves += [second.push(chunk) for chunk in chunks[cut:]] + [second.finish()]
    torch.testing.assert_close(torch.cat(waves, dim=-1), vocoder(mel), rtol=0, atol=1e-10)


def test_finished_stream_is_as_new_and_an_empty_one_has_nothing_to_say(vocoder, mel):
    voice = VocoderStream(vocoder)
    voice.push(mel)
    voice.finish()
    assert voice.state() is None
    assert list(stream(vocoder, [])) == []
    with pytest.raises(ValueError, match="no mel to finish"):
        voice.finish()
