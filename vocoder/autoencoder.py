"""Autoencoders of sound, for models that make whole clips: waves to tokens of a steady rate and back.

A new one is one class and one line in SOUND_CODECS.
"""

import json
import math
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILES = ("config.json", "diffusion_pytorch_model.safetensors")


class SoundCodec(nn.Module, ABC):
    """Waves (B,samples) to tokens (B,N,M) and back.

    Attributes:
        name: in the registry. sample_rate: in Hz. hop: samples to a token, so `sample_rate / hop` tokens a second.
        channels: M of a token.
    """

    name: str
    sample_rate: int
    hop: int
    channels: int

    def tokens(self, samples: int) -> int:
        """Number of tokens of so many samples; the last one may have fewer."""
        return math.ceil(samples / self.hop)

    @torch.no_grad()
    def encode(self, wave: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B,N,M) of the tokens of waves (B,samples) in [-1,1].

        Raises:
            ValueError: it is no float wave, or of another sample rate.
        """
        if wave.ndim != 2 or not wave.is_floating_point():
            raise ValueError(f"wave is {tuple(wave.shape)} {wave.dtype}, expected (B,samples) float in [-1,1]")
        if sample_rate != self.sample_rate:
            raise ValueError(
                f"sound of {sample_rate} Hz does not fit codec {self.name} of {self.sample_rate} Hz; resample it"
            )
        return self._encode(F.pad(wave, (0, self.tokens(wave.shape[1]) * self.hop - wave.shape[1])))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Waves (B, N * hop) in [-1,1] of tokens (B,N,M).

        Raises:
            ValueError: they are not those of this codec.
        """
        if tokens.ndim != 3 or tokens.shape[2] != self.channels:
            raise ValueError(
                f"tokens are {tuple(tokens.shape)}, codec {self.name} takes (B,N,{self.channels}); decode with the "
                "codec that made them"
            )
        return self._decode(tokens).clamp(-1, 1)

    @abstractmethod
    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N * hop) -> mean, std (B,N,M)."""

    @abstractmethod
    def _decode(self, tokens: Tensor) -> Tensor:
        """(B,N,M) -> (B, N * hop)."""


class Oobleck(SoundCodec):
    """Stable Audio's autoencoder (Evans et al., 2024, arXiv 2404.10301) as diffusers has it, heard as mono.

    An odd ratio of its decoder loses samples at the end: then they are made from a token more, which repeats the last.
    """

    name = "oobleck"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.sample_rate, self.hop = model.config.sampling_rate, math.prod(model.config.downsampling_ratios)
        self.channels, self._of = model.config.decoder_input_channels, model.config.audio_channels
        self._more = any(ratio % 2 for ratio in model.config.downsampling_ratios)

    @classmethod
    def load(cls, source: str | Path) -> "Oobleck":
        """From a local directory of the library's layout, or a hub id.

        Raises:
            FileNotFoundError: there is no whole autoencoder. ValueError: it is of another kind.
        """
        from diffusers import AutoencoderOobleck  # takes seconds
        from huggingface_hub import snapshot_download

        folder = Path(source)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(str(source), allow_patterns=list(FILES), etag_timeout=10))
            except (OSError, ValueError) as error:
                raise FileNotFoundError(
                    f"codec {cls.name}: {source} is no directory and could not be had from the hub "
                    f"({type(error).__name__}); give the local directory with its {' and '.join(FILES)}"
                ) from None
        if lacking := [name for name in FILES if not (folder / name).is_file()]:
            raise FileNotFoundError(f"codec {cls.name}: {folder} lacks {lacking[0]}; give the whole directory")
        stored = json.loads((folder / "config.json").read_text()).get("_class_name")
        if stored != "AutoencoderOobleck":
            raise ValueError(
                f"{folder} holds a {stored}, codec {cls.name} needs an AutoencoderOobleck; give its folder"
            )
        return cls(AutoencoderOobleck.from_pretrained(folder, local_files_only=True))

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(wave.unsqueeze(1).expand(-1, self._of, -1)).latent_dist
        return posterior.mean.transpose(1, 2), posterior.std.transpose(1, 2)

    def _decode(self, tokens: Tensor) -> Tensor:
        z = torch.cat([tokens, tokens[:, -1:]], 1) if self._more else tokens
        return self.model.decode(z.transpose(1, 2)).sample.mean(1)[:, : tokens.shape[1] * self.hop]


SOUND_CODECS: dict[str, type[SoundCodec]] = {"oobleck": Oobleck}
