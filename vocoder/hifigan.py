"""HiFi-GAN generator: log-mel to wave by upsampling and parallel residual blocks (Kong et al., 2020)."""

import json
import math
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from reprlib import repr as shown
from typing import Any
from zipfile import BadZipFile

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vocoder.stream import speak_in_context

# What torch.load and safetensors raise depends on where a file was cut or changed.
DAMAGED = (SafetensorError, UnpicklingError, struct.error, BadZipFile, EOFError, OSError, RuntimeError, LookupError,
           ValueError, TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError)  # fmt: skip
LARGEST = 2**16  # channels, samples or mel bins
SIZES = {  # of a config: how deep their lists are
    "num_mels": 0,
    "upsample_initial_channel": 0,
    "upsample_rates": 1,
    "upsample_kernel_sizes": 1,
    "resblock_kernel_sizes": 1,
    "resblock_dilation_sizes": 2,
}
SLOPE, LAST_SLOPE = 0.1, 0.01  # of the leaky ReLUs; the one before the last convolution differs
DILATIONS = {"1": 3, "2": 2}  # dilations that a residual block of each type reads
PRE_KERNEL = POST_KERNEL = 7
WEIGHT_NORM_NAMES = (  # of g and v, by the old and the new way of torch
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


@dataclass(frozen=True)
class HiFiGANConfig:
    """Shape of a generator, named as in the `config.json` of released vocoders."""

    resblock: str  # "1": pairs of a dilated and a plain convolution; "2": single dilated convolutions
    num_mels: int
    upsample_initial_channel: int  # channels after the first convolution, halved by every stage
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        self._check_types()
        if self.resblock not in DILATIONS:
            raise ValueError(f'resblock is {shown(self.resblock)}, expected "1" or "2"; take the config of a HiFi-GAN')
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ValueError(
                f"{len(self.upsample_rates)} upsample_rates but {len(self.upsample_kernel_sizes)} "
                f"upsample_kernel_sizes; give one kernel per rate"
            )
        if any(k < r for r, k in zip(self.upsample_rates, self.upsample_kernel_sizes)):
            raise ValueError(
                f"upsample_kernel_sizes {self.upsample_kernel_sizes} must not be smaller than "
                f"upsample_rates {self.upsample_rates}, or samples between them are lost; choose wider kernels"
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError(
                f"{len(self.resblock_kernel_sizes)} resblock_kernel_sizes but "
                f"{len(self.resblock_dilation_sizes)} resblock_dilation_sizes; give one list per kernel"
            )
        if any(k % 2 == 0 for k in self.resblock_kernel_sizes):
            raise ValueError(
                f"resblock_kernel_sizes {self.resblock_kernel_sizes} must be odd; others change the length"
            )
        if self.upsample_initial_channel < 2 ** len(self.upsample_rates):
            raise ValueError(
                f"{self.upsample_initial_channel} channels cannot be halved {len(self.upsample_rates)} times; "
                f"choose a larger upsample_initial_channel"
            )

    def _check_types(self) -> None:
        """A config comes from a file of others: whole numbers from 1 to LARGEST, and tuples of them."""
        for name, depth in SIZES.items():
            if not _are_sizes(getattr(self, name), depth):
                raise ValueError(
                    f"{name} is {shown(getattr(self, name))}, not {'a list of ' * depth}whole numbers from 1 to "
                    f"{LARGEST}; take the config of a HiFi-GAN"
                )

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates)

    @property
    def blocks(self) -> list[tuple[int, tuple[int, ...]]]:
        """(kernel, dilations) of the parallel residual blocks of every stage."""
        read = DILATIONS[self.resblock]
        return [(k, d[:read]) for k, d in zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes)]

    @property
    def context(self) -> int:
        """Mel frames on each side of a frame that its samples depend on.

        The last sample of frame 0 is followed from the wave back to the last mel frame that it sees: a convolution
        adds its radius; of a transposed one (rate r, padding p) output o sees inputs up to floor((o + p) / r). The
        other side reaches no farther: upsampling is symmetric or, where kernel - rate is odd, shifted to this one.
        """
        last = self.hop - 1 + POST_KERNEL // 2
        radius = max(block_radius(self.resblock, kernel, dilations) for kernel, dilations in self.blocks)
        for rate, kernel in reversed(list(zip(self.upsample_rates, self.upsample_kernel_sizes))):
            last = (last + radius + upsample_padding(rate, kernel)[0]) // rate
        return last + PRE_KERNEL // 2

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, folder: Path) -> "HiFiGANConfig":
        """Read `config.json`; keys about training and the mel are passed over, the hop is the product of the rates."""
        path = folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; give the folder of a HiFi-GAN vocoder "
                f"(config.json with model.safetensors or vocoder.pt)"
            )
        try:
            saved = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it again") from None
        if missing := [f.name for f in fields(cls) if not isinstance(saved, dict) or f.name not in saved]:
            raise ValueError(f"{path} lacks {missing}; it is not the config of a HiFi-GAN generator")
        return cls(**{f.name: as_tuple(saved[f.name]) for f in fields(cls)} | {"resblock": str(saved["resblock"])})


class HiFiGAN(nn.Module):
    """log-mel (B,M,F) -> wave (B, F * hop) in [-1, 1], with weight norm already folded into plain weights."""

    state_keys = frozenset({"mel"})

    def __init__(self, config: HiFiGANConfig):
        super().__init__()
        self.config = config
        channels = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.num_mels, channels, PRE_KERNEL, padding="same")
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            padding, extra = upsample_padding(rate, kernel)
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding, extra))
            channels //= 2
            self.resblocks.extend(RESBLOCKS[config.resblock](channels, k, d) for k, d in config.blocks)
        self.conv_post = nn.Conv1d(channels, 1, POST_KERNEL, padding="same")

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        return self.config.hop

    @property
    def n_mels(self) -> int:
        return self.config.num_mels

    @property
    def context(self) -> int:
        """Mel frames on each side of a frame that its samples depend on."""
        return self.config.context

    def forward(self, log_mel: Tensor) -> Tensor:
        if log_mel.ndim != 3 or log_mel.shape[1] != self.n_mels:
            raise ValueError(f"log-mel has shape {tuple(log_mel.shape)}, this vocoder takes (B, {self.n_mels}, frames)")
        x = self.conv_pre(log_mel)
        width = len(self.config.blocks)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))  # (B, C / 2, frames * rate)
            x = sum(block(x) for block in self.resblocks[i * width : (i + 1) * width]) / width
        x = self.conv_post(F.leaky_relu(x, LAST_SLOPE))
        return rearrange(x.tanh(), "b 1 n -> b n")

    def ahead(self, step: int) -> int:
        """Mel frames that must follow one before `speak` gives out its samples."""
        return self.context

    def speak(self, log_mel: Tensor, state: dict[str, Tensor], last: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of a stream (`vocoder.stream`): the samples of the whole file, `context` mel frames late."""
        return speak_in_context(self, self.context, log_mel, state, last)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (plain weights)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder)
        (folder / "model.safetensors").write_bytes(save(self.state_dict()))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HiFiGAN":
        """Load a folder of ours (`model.safetensors`) or a released one (`vocoder.pt`), ready for inference.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the weights do not fit the config; the message names the keys.
        """
        folder = Path(folder)
        config = HiFiGANConfig.load(folder)
        weights = read_weights(folder)
        with torch.device("meta"):  # no memory for what the file does not fill
            expected = cls(config).state_dict()
        check_keys(weights, expected, folder)
        model = cls(config)
        model.load_state_dict(weights)
        return model.eval().requires_grad_(False)


class ResBlock1(nn.Module):
    """Residual pairs x + conv(act(dilated_conv(act(x)))), one per dilation: (B,C,N) -> (B,C,N)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(same_conv(channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(same_conv(channels, kernel, 1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class ResBlock2(nn.Module):
    """Residual convolutions x + dilated_conv(act(x)), one per dilation: (B,C,N) -> (B,C,N)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs = nn.ModuleList(same_conv(channels, kernel, d) for d in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, SLOPE))
        return x


RESBLOCKS = {"1": ResBlock1, "2": ResBlock2}


def same_conv(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    """Convolution that keeps channels and length."""
    return nn.Conv1d(channels, channels, kernel, padding="same", dilation=dilation)


def block_radius(resblock: str, kernel: int, dilations: tuple[int, ...]) -> int:
    """Samples on each side that the output of a residual block depends on."""
    plain = len(dilations) if resblock == "1" else 0  # convolutions with dilation 1
    return (kernel - 1) // 2 * (sum(dilations) + plain)


def upsample_padding(rate: int, kernel: int) -> tuple[int, int]:
    """(padding, output_padding) that make a transposed convolution lengthen its input exactly `rate` times."""
    odd = (kernel - rate) % 2
    return (kernel - rate) // 2 + odd, odd


def fold_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace each pair g, v by weight = g v / |v|, the norm over all axes but the first; other weights stay.

    For transposed convolutions the first axis is the input channel. Old (`weight_g`) and new
    (`parametrizations.weight.original0`) names are known.
    """
    folded = dict(weights)
    for g_name, v_name in WEIGHT_NORM_NAMES:
        for key in [k for k in folded if k.endswith("." + v_name) and k.removesuffix(v_name) + g_name in folded]:
            stem = key.removesuffix(v_name)
            v, g = folded.pop(key), folded.pop(stem + g_name)
            folded[stem + "weight"] = g * v / v.norm(dim=tuple(range(1, v.ndim)), keepdim=True)
    return folded


def read_weights(folder: Path) -> dict[str, Tensor]:
    """State dict of `model.safetensors`, or of the entry "generator" of a released `vocoder.pt`, weight norm folded."""
    path = next((p for p in (folder / "model.safetensors", folder / "vocoder.pt") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor vocoder.pt; put the vocoder's weights beside its config.json"
        )
    try:
        saved = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        weights = saved if path.suffix == ".safetensors" else saved.get("generator", {})
        hollow = sum(w.numel() for w in weights.values()) > path.stat().st_size  # a stride of 0 claims any size
        weights = fold_weight_norm(weights)
    except DAMAGED:
        weights, saved, hollow = {}, {}, True
    if hollow:
        raise ValueError(
            f"{path} cannot be opened: it is damaged, or holds more than tensors; "
            f"fetch it again, or save its weights as model.safetensors where you trust it"
        )
    if not weights:
        raise ValueError(
            f'{path} has no entry "generator" but {shown(list(saved))}; '
            f"give the generator's checkpoint, not the discriminator's"
        )
    return weights


def check_keys(weights: dict[str, Tensor], expected: dict[str, Tensor], folder: Path) -> None:
    """Raise a ValueError that names the missing, strange and misshapen weights."""
    common = weights.keys() & expected.keys()
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(k for k in common if weights[k].shape != expected[k].shape),
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:5])}" for what, keys in problems.items() if keys)
        raise ValueError(f"weights in {folder} do not fit its config.json ({listed}); take both from the same vocoder")


def _are_sizes(value: Any, depth: int) -> bool:
    """Whether a value is a whole number from 1 to LARGEST, or a list of such that is not empty."""
    if depth:
        return isinstance(value, tuple | list) and bool(value) and all(_are_sizes(x, depth - 1) for x in value)
    return type(value) is int and 1 <= value <= LARGEST


def as_tuple(value):
    """JSON lists as tuples, at every depth, so that a config can be frozen and compared."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value
