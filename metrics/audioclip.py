"""Features of sound for the Frechet audio distance: the audio branch of AudioCLIP (Guzhov et al. 2021, 2106.13043).

The branch is ESResNeXt-fbsp (Guzhov et al. 2021, 2104.11587): frames are analysed with learned frequency B-spline
wavelets, and the power in dB is the image that a ResNeXt-50 with attention gates reads. Waves are 44.1 kHz.
"""

from math import ceil, pi
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOURCE = "https://github.com/AndreyGuzhov/AudioCLIP/releases (AudioCLIP-Full-Training.pt; its keys begin with 'audio.')"
SAMPLE_RATE = 44100  # Hz
N_FFT, WINDOW, HOP = 2048, 1654, 561  # samples
BANDS, BINS = 3, 341  # channels of the image, and rows in each: 1023 of N_FFT // 2 + 1 frequencies
BLACKMAN_HARRIS = (0.35875, 0.48829, 0.14128, 0.01168)  # coefficients of the window
SILENCE = 1e-18  # power that stands for none at all: -180 dB
FULL_SCALE = 32768  # of int16
STEP = 2 / 65535  # of int16 after `rescaled`


class AudioCLIP(nn.Module):
    """Audio branch of AudioCLIP, 32 million parameters under the names of the published file."""

    def __init__(self):
        super().__init__()
        window = torch.signal.windows.general_cosine(WINDOW, a=BLACKMAN_HARRIS, sym=False, dtype=torch.float64)
        self.register_buffer("window", window.float())
        self.conv1 = nn.Conv2d(BANDS, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = Norm(64)
        self.layer1, self.att1 = _stage(64, 256, blocks=3, stride=1), Gate(64, 256, (3, 1))
        self.layer2, self.att2 = _stage(256, 512, blocks=4, stride=2), Gate(256, 512, (1, 5))
        self.layer3, self.att3 = _stage(512, 1024, blocks=6, stride=2), Gate(512, 1024, (3, 1))
        self.layer4, self.att4 = _stage(1024, 2048, blocks=3, stride=2), Gate(1024, 2048, (1, 5))
        self.att5 = Gate(2048, 2048, (3, 5))
        self.fc = nn.Linear(2048, 1024)
        self.fbsp = Wavelets()
        self._analysis_of, self._analysis = torch.empty(0, dtype=torch.float64), torch.empty(0)
        self.requires_grad_(False)

    def embed(self, wave: Tensor, mode: Literal["sound", "compat"]) -> Tensor:
        """Embed clips of sound.

        `sound` is what to use: the wave is scaled to the int16 range that the network was trained on, and batch norms
        use their running statistics, so a clip's feature does not depend on its neighbours. No bin falls below the
        power of 16-bit rounding noise: decibels would tell a digital silence from one that a decoder computed.

        `compat` repeats the protocol that published numbers come from, with two quirks. The wave stays in [-1, 1], so
        the network's own division by 32767.5 leaves it nearly constant, rounded in float32 to a few hundred values.
        And batch norms normalise by the batch, so a feature depends on the batch's size and its other clips, and one
        clip alone has none. Running statistics stay as they are in both modes.

        Args:
            wave: (B, N) or (B, C, N) in [-1, 1] at 44.1 kHz; 70560 samples are 1.6 s. Channels are heard one by one
                and their pooled features summed.
            mode: the normalisation of wave and batch.
        Returns:
            (B, 1024) in the precision of the weights, not normalised.
        Raises:
            ValueError: wave is no batch of float waves or shorter than one window, mode is unknown, or `compat` has
                one clip.
        """
        _check(wave, mode)
        self.train(mode == "compat")
        wave = rescaled(wave.float() * (FULL_SCALE if mode == "sound" else 1))
        channels = wave.unsqueeze(1) if wave.ndim == 2 else wave  # (B, C, N)
        floor = self.rounding_power() if mode == "sound" else None
        return self.fc(sum(self.pooled(self.spectrogram(channel, floor)) for channel in channels.unbind(1)))

    def spectrogram(self, wave: Tensor, floor: Tensor | None = None) -> Tensor:
        """Power of the wavelets in dB: rescaled wave (B, N) -> (B, 3, 341, frames), low frequencies in channel 0.

        floor: (1023,) least power of each bin; without one only no power at all is lifted, to -180 dB.
        """
        re, im = (frames(wave.double()) @ self.analysis()).chunk(2, dim=-1)  # (B, frames, 1023)
        power = re**2 + im**2
        power = power.where(power != 0, SILENCE) if floor is None else power.maximum(floor)
        db = 10 * torch.log10(power)
        return db.to(self.conv1.weight).unflatten(2, (BANDS, BINS)).permute(0, 2, 3, 1)

    def rounding_power(self) -> Tensor:
        """Mean power in each bin of what rounding to int16 leaves, white noise of variance step^2 / 12: (1023,)."""
        re, im = self.analysis().square().sum(0).chunk(2)
        return (re + im) * STEP**2 / 12

    def pooled(self, x: Tensor) -> Tensor:
        """Spectrogram (B, 3, 341, frames) -> gated average over time and frequency (B, 2048)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for layer, gate in (
            (self.layer1, self.att1),
            (self.layer2, self.att2),
            (self.layer3, self.att3),
            (self.layer4, self.att4),
        ):
            y = layer(x)
            x = y * gate(x, y.shape[2:])
        return (x.mean((2, 3), keepdim=True) * self.att5(x, (1, 1))).flatten(1)

    def analysis(self) -> Tensor:
        """Windowed wavelets, real parts before imaginary ones: (1654, 2 * 1023), made anew where weights changed.

        Float64, because in plain float32 weak bins stray: by up to 0.7 dB in `sound` and 2 dB in `compat`.
        """
        weights = torch.cat([self.fbsp.m, self.fbsp.fb, self.fbsp.fc, self.window]).double()
        if self._analysis_of.device != weights.device or not torch.equal(self._analysis_of, weights):
            left = (N_FFT - WINDOW) // 2  # a frame lies in the middle of the wavelets
            wavelets = self.fbsp.kernel()[: BANDS * BINS, left : left + WINDOW]  # (1023, 1654, 2)
            self._analysis = (wavelets.permute(1, 2, 0) * self.window.double()[:, None, None]).flatten(1)
            self._analysis_of = weights
        return self._analysis


class Wavelets(nn.Module):
    """Frequency B-spline wavelets: order m, bandwidth fb and centre fc (in bins) of each bin; the bias is empty."""

    def __init__(self):
        super().__init__()
        bins = N_FFT // 2 + 1
        self.m, self.fb = nn.Parameter(torch.ones(bins)), nn.Parameter(torch.ones(bins))
        self.fc, self.bias = nn.Parameter(torch.arange(bins).float()), nn.Parameter(torch.empty(0))

    def kernel(self) -> Tensor:
        """sqrt(fb / n) * sinc(fb t / m)^m * exp(-i fc t), t in (-pi, pi): (1025, 2048, 2), float64, (re, im).

        A negative sinc has the phase pi, which m multiplies.
        """
        m, fb, fc = (x.double().unsqueeze(1) for x in (self.m, self.fb, self.fc))
        t = pi * torch.linspace(-1, 1, N_FFT, dtype=m.dtype, device=m.device) + 1e-8
        spline = torch.sinc(fb * t / (m + 1e-8) / pi)
        size = (fb / N_FFT).sqrt() * spline.abs() ** m
        phase = pi * m * (spline < 0) - fc * t
        return torch.stack([size * phase.cos(), size * phase.sin()], dim=-1)


class Norm(nn.BatchNorm2d):
    """Batch norm that in training mode normalises by the batch, but keeps its running statistics as they are."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (None, None) if self.training else (self.running_mean, self.running_var)
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=self.training, eps=self.eps)


class Bottleneck(nn.Module):
    """Residual block of ResNeXt 32x4d: half as wide inside as outside, 32 groups."""

    def __init__(self, d_in: int, d_out: int, stride: int):
        super().__init__()
        width = d_out // 2
        self.conv1, self.bn1 = nn.Conv2d(d_in, width, 1, bias=False), Norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=32, bias=False)
        self.bn2 = Norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, d_out, 1, bias=False), Norm(d_out)
        project = nn.Sequential(nn.Conv2d(d_in, d_out, 1, stride=stride, bias=False), Norm(d_out))
        self.downsample = project if d_in != d_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, d_in, F, T) -> (B, d_out, F / stride, T / stride)"""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Gate(nn.Module):
    """Attention: what goes into a stage decides how much of what comes out goes on."""

    def __init__(self, d_in: int, d_out: int, kernel: tuple[int, int]):
        super().__init__()
        self.conv_depth = nn.Conv2d(d_in, d_in, kernel, padding="same", groups=d_in)
        self.conv_point = nn.Conv2d(d_in, d_out, 1)
        self.bn = Norm(d_out)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, d_in, F, T) -> (B, d_out, *size) in (0, 1)"""
        return self.bn(self.conv_point(self.conv_depth(F.adaptive_max_pool2d(x, size)))).sigmoid()


def _stage(d_in: int, d_out: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of which the first changes the number of channels and the size."""
    return nn.Sequential(Bottleneck(d_in, d_out, stride), *(Bottleneck(d_out, d_out, 1) for _ in range(blocks - 1)))


def rescaled(x: Tensor) -> Tensor:
    """int16 range -> [-1, 1], in the precision of x and in the published order: `compat` lives on its rounding."""
    whole = x.new_tensor(65535)  # by a plain number, CUDA multiplies by the reciprocal: a sixth off in `compat`
    return ((x + FULL_SCALE) * 2) / whole - 1


def frames(x: Tensor) -> Tensor:
    """Overlapping frames, with zeros around x until they fit: (B, N) -> (B, frames, 1654)."""
    missing = ceil((x.shape[-1] - WINDOW) / HOP) * HOP + WINDOW - x.shape[-1]
    return F.pad(x, (missing // 2, missing - missing // 2)).unfold(-1, WINDOW, HOP)


def _check(wave: Tensor, mode: str) -> None:
    if mode not in ("sound", "compat"):
        raise ValueError(f"mode is {mode!r}; choose 'sound' or 'compat'")
    if not wave.is_floating_point():
        raise ValueError(f"wave is {wave.dtype}; give floats in [-1, 1], which int16 divided by 32768 is")
    if wave.ndim not in (2, 3) or wave.shape[-1] < WINDOW or not wave.numel():
        raise ValueError(f"wave has shape {tuple(wave.shape)}, expected (B, N) or (B, C, N) with N >= {WINDOW}")
    if mode == "compat" and len(wave) < 2:
        raise ValueError(f"compat normalises by the batch and cannot take a batch of {len(wave)}; give 2 clips or more")
