"""Griffin-Lim block by block, the phase carried over: real-time iterative spectrogram inversion with look-ahead.

After Beauregard, Zhu and Wyse (2005), with the acceleration of Perraudin, Balazs and Søndergaard (2013). A signal is
handled in hops: frame m has its middle in hop m and reaches SPAN // 2 hops to either side, zeros included.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vocoder.mel import HOP, N_FFT, WINDOW, hann_window

BLOCK, AHEAD = 10, 20  # mel frames that are settled at a time, and that help to settle them
SPAN = math.ceil(WINDOW / HOP)  # hops that a window touches; odd, since its middle is the middle of a hop
SIDE = SPAN // 2  # hops that a frame reaches to either side of its own
MOMENTUM = 0.99
LEAST_WEIGHT = 1e-3  # of a sample; it is 2.4 where windows overlap fully, 0 beyond the first and the last window


def start(like: Tensor) -> dict[str, Tensor]:
    """The state of `refine` before the first frame, on the device and in the dtype of `like`."""
    return {
        "magnitude": like.new_zeros(0, N_FFT // 2 + 1),
        "wave": like.new_zeros((SPAN - 1) * HOP),
        "tail": like.new_zeros(0),
    }


def refine(
    magnitude: Tensor, state: dict[str, Tensor], iterations: int, last: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take frames in, improve the phase of all open frames, settle the oldest: a pure function of its arguments.

    Open frames are the new ones, which begin as a click in the middle of their window, and up to AHEAD earlier ones,
    which go on with the phase found so far. Frames settled before keep their phase: their share of the overlap-add is
    part of every iteration, and of the result, so that no seam can arise. With A the STFT, A+ its least-squares
    inverse and s the open magnitudes:

        c_i = A(A+(s sgn t_{i-1})),  t_i = c_i - 0.99 / 1.99 c_{i-1}

    Args:
        magnitude: (f, N_FFT/2+1) of the new frames.
        state: magnitude (n, N_FFT/2+1), n <= AHEAD, of the open frames; wave ((n + SPAN - 1) HOP,), the sound under
            their windows as estimated so far; tail ((SPAN - 1) HOP,), what the settled frames contribute there, or
            (0,) while there are none.
        iterations: how often the phase is improved.
        last: settle all frames, for none will follow.
    Returns:
        wave (n * HOP,) from where the last one ended; it ends SIDE hops before the first open frame's.
        state after it.
    """
    open_before, tail = len(state["magnitude"]), state["tail"]
    magnitude = torch.cat([state["magnitude"], magnitude])  # (n, N_FFT/2+1)
    spectrum = analyse(F.pad(state["wave"], (0, (len(magnitude) - open_before) * HOP)))
    spectrum[open_before:] = click(magnitude)
    weight = overlap_weight(magnitude, len(tail) // HOP)
    frames = find_phase(magnitude, spectrum, tail, weight, iterations)
    wave = overlap_add(frames, tail) / weight  # ((n + SPAN - 1) HOP,)

    settled = len(frames) if last else max(len(frames) - AHEAD, 0)
    first = 0 if len(tail) else SIDE  # the hops before the first frame's own are no part of the sound
    end = settled + SIDE if last else settled
    if settled:
        tail = overlap_add(frames[:settled], tail)[settled * HOP :]
    after = {"magnitude": magnitude[settled:], "wave": wave[settled * HOP :], "tail": tail}
    return wave[first * HOP : end * HOP], after


def find_phase(magnitude: Tensor, spectrum: Tensor, tail: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Windowed frames (n, SPAN * HOP) of the given magnitudes, their phase iterated from that of `spectrum`."""
    before = 0
    for _ in range(iterations):
        consistent = analyse(overlap_add(synthesise(magnitude * spectrum.sgn()), tail) / weight)
        spectrum, before = consistent - MOMENTUM / (1 + MOMENTUM) * before, consistent
    return synthesise(magnitude * spectrum.sgn())


def analyse(wave: Tensor) -> Tensor:
    """STFT (n, N_FFT/2+1) of a wave ((n + SPAN - 1) HOP,)."""
    return torch.fft.rfft(wave.unfold(0, SPAN * HOP, HOP) * wide_window(wave), N_FFT)


def synthesise(spectrum: Tensor) -> Tensor:
    """Frames (n, SPAN * HOP) of an STFT (n, N_FFT/2+1), windowed a second time for the overlap-add."""
    frames = torch.fft.irfft(spectrum, N_FFT)[:, : SPAN * HOP]
    return frames * wide_window(frames)


def overlap_add(frames: Tensor, tail: Tensor) -> Tensor:
    """Sum ((n + SPAN - 1) HOP,) of frames (n, SPAN * HOP), each a hop later, and of `tail` at the beginning."""
    hops = rearrange(frames, "n (s h) -> s n h", s=SPAN)
    total = F.pad(rearrange(tail, "(n h) -> n h", h=HOP), (0, 0, 0, len(frames) + SPAN - 1 - len(tail) // HOP))
    for late, part in enumerate(hops):
        total[late : late + len(frames)] += part
    return total.flatten()


def overlap_weight(magnitude: Tensor, settled: int) -> Tensor:
    """Sum ((n + SPAN - 1) HOP,) of the squared windows of n frames (n, N_FFT/2+1) and of `settled` ones before them."""
    power = wide_window(magnitude).square().expand(settled + len(magnitude), -1)
    return overlap_add(power, power.new_zeros(0))[settled * HOP :].clamp(min=LEAST_WEIGHT)


def click(like: Tensor) -> Tensor:
    """Spectrum (N_FFT/2+1,) of a click in the middle of a frame: zero phase, where a window is widest."""
    impulse = like.new_zeros(SPAN * HOP)
    impulse[SPAN * HOP // 2] = 1
    return torch.fft.rfft(impulse, N_FFT)


def wide_window(like: Tensor) -> Tensor:
    """The Hann window of the mel (SPAN * HOP,), with zeros on both sides up to whole hops."""
    margin = (SPAN * HOP - WINDOW) // 2
    return F.pad(hann_window(like.device, like.dtype), (margin, margin))
