"""Codecs of sound, for models that make whole clips: waves to tokens of a steady rate and back.

A new one is one class and one line in SOUND_CODECS.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vocoder.mel import CONTEXT, HOP, from_model, log_mel, to_model

FILES = ("config.json", "diffusion_pytorch_model.safetensors")
MELS = 64  # bins in which what an autoencoder gives back is compared


class SoundCodec(nn.Module, ABC):
    """Waves (B,samples) to tokens (B,N,M) and back.

    Attributes:
        name: in the registry. sample_rate: in Hz. hop: samples to a token, so `sample_rate / hop` tokens a second.
        channels: M of a token. context: samples of sound that `encode` wants on both sides of a wave.
    """

    name: str
    sample_rate: int
    hop: int
    channels: int
    context = 0

    @classmethod
    def open(cls, source: str | Path | None, sample_rate: int, vocoder: Callable[[], nn.Module]) -> "SoundCodec":
        """The codec of a checkpoint or data set whose sound has this rate.

        Args:
            source: local directory or hub id of its weights. vocoder: makes that of the mel, which autoencoders lack.
        Raises:
            ValueError, FileNotFoundError: there is none, or it is of another rate.
        """
        if source is None:
            raise ValueError(f"codec {cls.name} needs weights; give --sound-source their directory or hub id")
        codec = cls.load(source)
        codec.check_rate(sample_rate)
        return codec

    @classmethod
    def load(cls, source: str | Path) -> "SoundCodec":
        """From a local directory of the library's layout, or a hub id."""
        raise NotImplementedError

    def check_rate(self, sample_rate: int) -> None:
        """Raise a ValueError for sound of another rate."""
        if sample_rate != self.sample_rate:
            raise ValueError(
                f"sound of {sample_rate} Hz does not fit codec {self.name} of {self.sample_rate} Hz; resample it"
            )

    def save(self, folder: Path) -> None:
        """Write what a checkpoint must hold of it: nothing, where its weights are found by their source."""

    def tokens(self, samples: int) -> int:
        """Number of tokens of so many samples; the last one may have fewer."""
        return math.ceil(samples / self.hop)

    @torch.no_grad()
    def encode(self, wave: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B,N,M) of the tokens of waves (B, context + samples + context) in [-1,1].

        Raises:
            ValueError: it is no float wave, or of another sample rate.
        """
        if wave.ndim != 2 or not wave.is_floating_point():
            raise ValueError(f"wave is {tuple(wave.shape)} {wave.dtype}, expected (B,samples) float in [-1,1]")
        self.check_rate(sample_rate)
        samples = wave.shape[1] - 2 * self.context
        return self._encode(F.pad(wave, (0, self.tokens(samples) * self.hop - samples)))

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

    def log_mel_error(self, wave: Tensor, tokens: Tensor) -> Tensor:
        """How far the log-mel of what tokens (B,N,M) give back is from the wave's: |natural log|, in any shape."""
        mels = (log_mel(x, MELS, sample_rate=self.sample_rate) for x in (self.decode(tokens)[:, : wave.shape[1]], wave))
        return torch.sub(*mels).abs()

    @abstractmethod
    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, context + N * hop + context) -> mean, std (B,N,M)."""

    @abstractmethod
    def _decode(self, tokens: Tensor) -> Tensor:
        """(B,N,M) -> (B, N * hop)."""


class MelTokens(SoundCodec):
    """Frames of the log-mel in [-1,1] as tokens, 100 a second at 16 kHz; a vocoder makes them sound again.

    Args:
        vocoder: of `vocoder.VOCODERS`. sample_rate: of the sound it speaks.
    """

    name = "mel"
    hop = HOP
    context = CONTEXT

    def __init__(self, vocoder: nn.Module, sample_rate: int):
        super().__init__()
        self.vocoder, self.sample_rate, self.channels = vocoder, sample_rate, vocoder.n_mels

    @classmethod
    def open(cls, source: str | Path | None, sample_rate: int, vocoder: Callable[[], nn.Module]) -> "MelTokens":
        return cls(vocoder(), sample_rate)

    def save(self, folder: Path) -> None:
        self.vocoder.save(folder / "vocoder")

    def log_mel_error(self, wave: Tensor, tokens: Tensor) -> Tensor:
        """Of the tokens themselves, which are the log-mel: what a vocoder adds is not theirs."""
        return torch.sub(*(from_model(x, 1.0) for x in (tokens, self._encode(wave)[0]))).abs()

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        mel = to_model(log_mel(wave, self.channels, padded=True, sample_rate=self.sample_rate), 1.0).transpose(1, 2)
        return mel, torch.zeros_like(mel)

    def _decode(self, tokens: Tensor) -> Tensor:
        return self.vocoder(from_model(tokens, 1.0).transpose(1, 2))


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


SOUND_CODECS: dict[str, type[SoundCodec]] = {kind.name: kind for kind in (MelTokens, Oobleck)}
