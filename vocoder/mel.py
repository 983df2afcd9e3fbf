"""Log-mel spectrograms and their place in model space (DESIGN, section 6)."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SAMPLE_RATE = 16000  # Hz, mono
N_FFT = 2048  # samples
WINDOW = 1024  # samples of the Hann window, in the middle of the N_FFT
HOP = 160  # samples per mel frame
FLOOR, CEILING = 1e-5, 200.0  # mel magnitudes that become -1 and 1 in model space


def context_of(n_fft: int) -> int:
    """Samples that the first and the last mel frame see beyond the ends of a wave."""
    return (n_fft - HOP) // 2


CONTEXT = context_of(N_FFT)


def log_mel(
    wave: Tensor, n_mels: int = 256, padded: bool = False, sample_rate: int = SAMPLE_RATE, n_fft: int = N_FFT
) -> Tensor:
    """Log-mel spectrogram ln(max(filters @ sqrt(re^2 + im^2 + 1e-9), 1e-5)) of waves.

    Mel frame m stands for samples m * HOP to (m + 1) * HOP, its window has its middle in theirs.

    Args:
        wave: (..., N) float32 or float64 in [-1, 1]; with `padded`, (..., context + N + context).
        n_mels: mel bins M between 0 Hz and sample_rate / 2.
        padded: the caller brings the context, `context_of(n_fft)` samples, on both sides, so that the mel of a clip
            is the slice of the mel of its file; otherwise it is the reflection of the wave.
        sample_rate: in Hz. n_fft: samples of a spectrum, no fewer than the WINDOW.
    Returns:
        (..., M, N // HOP) natural logarithms, in the dtype of the wave.
    Raises:
        ValueError: the wave is no float32 or float64, or too short to be reflected (N <= context) or to fill one frame.
    """
    if wave.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"wave is {wave.dtype}, expected float32 or float64 in [-1, 1]; divide integers by 32768")
    context = context_of(n_fft)
    shortest = n_fft if padded else context + 1
    if wave.shape[-1] < shortest:
        raise ValueError(
            f"wave has {wave.shape[-1]} samples, its log-mel needs at least {shortest}; "
            f"take a longer clip{'' if padded else ' or bring its context with padded=True'}"
        )
    flat = wave.reshape(-1, wave.shape[-1])
    if not padded:
        flat = F.pad(flat, (context, context), mode="reflect")
    window = hann_window(wave.device, wave.dtype)
    spectrum = torch.stft(flat, n_fft, HOP, WINDOW, window, center=False, return_complex=True)  # (B, n_fft/2+1, frames)
    magnitude = torch.view_as_real(spectrum).square().sum(-1).add(1e-9).sqrt()
    mel = mel_filters(n_mels, sample_rate, wave.device, wave.dtype, n_fft) @ magnitude  # (B, M, frames)
    return mel.clamp(min=FLOOR).log().reshape(*wave.shape[:-1], *mel.shape[1:])


def to_model(log_mel: Tensor, audio_scale: float) -> Tensor:
    """Log-mel to model space: [ln 1e-5, ln 200] -> [-1, 1], times `audio_scale`. Any shape."""
    low, high = math.log(FLOOR), math.log(CEILING)
    return audio_scale * (2 * (log_mel - low) / (high - low) - 1)


def from_model(x: Tensor, audio_scale: float) -> Tensor:
    """Model space to log-mel, the inverse of `to_model`, limited to [ln 1e-5, ln 200]. Any shape."""
    low, high = math.log(FLOOR), math.log(CEILING)
    return (x / audio_scale / 2 + 0.5).clamp(0, 1) * (high - low) + low


def peak_normalise(wave: Tensor, peak: float = 0.95) -> Tensor:
    """Scale each wave (..., N) so that its largest absolute sample is `peak`; silence stays silent."""
    loudest = wave.abs().amax(-1, keepdim=True)
    return wave * torch.where(loudest > 0, peak / loudest, 0)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later backward pass
def hann_window(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Periodic Hann window (WINDOW,), cached."""
    return torch.hann_window(WINDOW, dtype=torch.float64).to(device, dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def mel_filters(n_mels: int, sample_rate: int, device: torch.device, dtype: torch.dtype, n_fft: int = N_FFT) -> Tensor:
    """Triangular mel filters (n_mels, n_fft/2 + 1), equal to librosa's (Slaney scale and area), cached.

    Filter m rises from edge m to edge m + 1 and falls to edge m + 2, with area 1 per Hz: height 2 / (its width).
    """
    highest = slaney_mel(sample_rate / 2)
    edges = slaney_hz(torch.linspace(0, highest, n_mels + 2, dtype=torch.float64))
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    slopes = rearrange(edges, "m -> m 1") - bins  # (M + 2, bins) Hz from each bin to each edge
    widths = rearrange(edges.diff(), "m -> m 1")
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    height = 2 / (widths[:-1] + widths[1:])
    return (torch.minimum(rising, falling).clamp(min=0) * height).to(device, dtype)


def slaney_mel(hz: float) -> float:
    """Slaney's mel scale: 3 mel per 200 Hz up to 1 kHz (15 mel), then 27 mel for each factor of 6.4."""
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def slaney_hz(mel: Tensor) -> Tensor:
    """Inverse of `slaney_mel`, for a tensor."""
    return torch.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))
