"""Griffin-Lim in blocks: no worse than the whole file, no seams, and a function of the mel alone."""

import math
from functools import cache

import pytest
import torch
from torchaudio.functional import griffinlim

from vocoder import GriffinLim, VocoderStream, log_mel, stream
from vocoder.griffin_lim import unmel
from vocoder.mel import HOP, N_FFT, mel_filters
from vocoder.rtisi import BLOCK, SIDE, SPAN, analyse, overlap_add, overlap_weight, refine, start, synthesise

ONSETS = (0.5, 1.33, 2.1, 3.27)  # s


def pings(t):
    return sum(torch.where(t >= at, torch.exp(-(t - at) / 0.06) * torch.sin(5529 * (t - at)), 0) for at in ONSETS) / 2


def voice(t):
    """A vowel that glides around 150 Hz, in syllables, with breath."""
    phase = 2 * math.pi * (150 * t - 15 / 4.4 * torch.cos(4.4 * t))
    breath = 0.01 * torch.randn(len(t), generator=torch.Generator().manual_seed(0))
    return (0.2 + 0.8 * (torch.sin(9.4 * t) > 0)) * sum(torch.sin(k * phase) / k for k in range(1, 20)) / 4 + breath


def tone(t):
    return 0.5 * torch.sin(2 * math.pi * 440 * t)


SECONDS = {pings: 4, voice: 1.5, tone: 2}


def mel_of(sound, n_mels):
    return log_mel(sound(torch.arange(round(SECONDS[sound] * 16000)) / 16000)[None], n_mels)


def streamed(mel, size=10):
    """Wave (B, F * hop) of a mel pushed in chunks of `size` frames."""
    return torch.cat(list(stream(GriffinLim(mel.shape[1]), mel.split(size, dim=-1))), dim=-1)


@cache
def played(sound, n_mels):
    """Wave of the streamed mel of a sound."""
    return streamed(mel_of(sound, n_mels))


def errors(wave, mel, target):
    """Spectral convergence |S - T| / |T| to the magnitudes behind the mel, and mean distance of the log-mels."""
    padded = torch.nn.functional.pad(wave, [SIDE * HOP, SIDE * HOP])[0]
    heard = analyse(padded).abs().T
    return (heard - target).norm() / target.norm(), (log_mel(wave, mel.shape[1]) - mel).abs().mean()


def whole_file(mel, target):
    """Wave (1, F * hop) by torchaudio's iteration over all frames together, which begins at zero phase."""
    magnitude = torch.nn.functional.pad(target, (SPAN, SPAN), mode="replicate")
    window = torch.hann_window(1024)
    wave = griffinlim(magnitude, window, N_FFT, HOP, 1024, 1, 32, 0.99, length=None, rand_init=False)
    return wave.narrow(-1, SPAN * HOP - HOP // 2, mel.shape[-1] * HOP)[None]


def onsets(wave):
    """Seconds at which a tenth of each ping's energy has been heard."""
    heard = [wave[0, int(at * 16000) - 800 :][:3200].square().cumsum(0) for at in ONSETS]
    return torch.tensor([(energy < energy[-1] / 10).sum() / 16000 for energy in heard])


@pytest.mark.parametrize(
    "sound, n_mels",
    [(voice, 64), (voice, 256), *(pytest.param(pings, n_mels, marks=pytest.mark.slow) for n_mels in (64, 256))],
)
def test_sound_fits_its_mel_as_well_as_that_of_torchaudio_which_has_the_whole_file(sound, n_mels):
    mel = mel_of(sound, n_mels)
    target = unmel(mel[0].exp(), mel_filters(n_mels, 16000, mel.device, mel.dtype))
    convergence, distance = errors(played(sound, n_mels), mel, target)
    of_whole = errors(whole_file(mel, target), mel, target)
    assert convergence < 1.15 * of_whole[0]
    assert distance < 1.5 * of_whole[1]


def test_pings_begin_when_they_should():
    given = onsets(pings(torch.arange(SECONDS[pings] * 16000) / 16000)[None])
    assert (onsets(played(pings, 256)) - given).abs().max() < 0.003


@pytest.mark.parametrize("sound, n_mels", [(voice, 64), (pings, 256)])
def test_block_borders_are_as_smooth_as_the_rest(sound, n_mels):
    wave = played(sound, n_mels)[0]
    borders = torch.arange(BLOCK - SIDE, len(wave) // HOP - BLOCK, BLOCK) * HOP
    jump, bend = wave.diff().abs(), wave.diff(n=2).abs()
    assert jump[borders - 1].max() < jump.max()
    assert torch.cat([bend[borders - 2], bend[borders - 1]]).mean() < 1.5 * bend.mean()


def test_tone_stays_one_tone():
    """More than 98 % of its power lies within 3 Hz of 440 Hz: a jump of the phase at each block would spread it."""
    wave = played(tone, 256)[0, 3200:-3200]
    power = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs().square()
    hz = torch.fft.rfftfreq(len(wave), 1 / 16000)
    assert power[(hz - 440).abs() < 3].sum() > 0.98 * power.sum()


def test_samples_depend_neither_on_the_sizes_of_the_pushes_nor_on_the_neighbours():
    mel = torch.cat([mel_of(voice, 32), mel_of(pings, 32)[..., :150]])[..., 40:85]
    together = streamed(mel)
    assert torch.equal(streamed(mel[1:]), together[1:])
    for size in (1, 33):
        assert torch.equal(streamed(mel, size), together), size


def test_sound_is_at_most_33_mel_frames_late_and_the_state_small():
    voice_, mel, written = VocoderStream(GriffinLim(256)), mel_of(voice, 256)[..., :61], 0
    for pushed in range(1, 62):
        written += voice_.push(mel[..., pushed - 1 : pushed]).shape[-1]
        assert pushed - 33 < written / HOP <= max(pushed - 23, 0)
        assert sum(value.nbytes for value in voice_.state().values()) < 112_000


@pytest.mark.parametrize("settled", [0, SPAN - 1, 12])
def test_overlap_add_inverts_the_transform_whatever_is_settled(settled):
    wave = torch.randn(36 * HOP, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frames = synthesise(analyse(wave))  # 30
    nothing = wave.new_zeros(0)
    tail = overlap_add(frames[:settled], nothing)[settled * HOP :] if settled else nothing
    weight = overlap_weight(wave.new_zeros(30 - settled, N_FFT // 2 + 1), min(settled, SPAN - 1))
    again = overlap_add(frames[settled:], tail) / weight
    inside = slice(SIDE * HOP, -SIDE * HOP)  # at the ends windows, and so the weight, vanish
    torch.testing.assert_close(again[inside], wave[settled * HOP :][inside], rtol=0, atol=1e-12)


def test_open_frames_go_on_with_the_phase_of_the_sound_so_far():
    """Where that is the phase of a signal, the signal comes back, from the step that settles 20 frames and the next."""
    wave = torch.randn(46 * HOP, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    magnitude = analyse(wave).abs()  # of 40 frames
    state = start(wave) | {"magnitude": magnitude, "wave": wave}
    first, state = refine(magnitude[:0], state, iterations=0)
    rest, _ = refine(magnitude[:0], state, iterations=0, last=True)
    heard = torch.cat([first, rest])
    assert len(first) == (20 - SIDE) * HOP and len(heard) == 40 * HOP
    whole = slice(0, (39 - SIDE) * HOP)  # the last frame of all saw samples without weight
    torch.testing.assert_close(heard[whole], wave[SIDE * HOP :][whole], rtol=0, atol=1e-12)
