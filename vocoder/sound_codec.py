"""What all codecs of sound share: the checks around their `_encode` and `_decode`, and how their weights are found."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vocoder.mel import log_mel

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # of a model of diffusers
MELS = 64  # bins in which what an autoencoder gives back is compared
HUB_TIMEOUT = 10  # seconds until the hub counts as out of reach


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
        """How far the log-mel of what tokens (B,N,M) give back is from the wave's: |natural log|, in any shape.

        Args:
            wave: with its context, as `encode` takes it.
        """
        wave = wave[:, self.context : wave.shape[1] - self.context]
        mels = (log_mel(x, MELS, sample_rate=self.sample_rate) for x in (self.decode(tokens)[:, : wave.shape[1]], wave))
        return torch.sub(*mels).abs()

    @abstractmethod
    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, context + N * hop + context) -> mean, std (B,N,M)."""

    @abstractmethod
    def _decode(self, tokens: Tensor) -> Tensor:
        """(B,N,M) -> (B, N * hop)."""


def fetch(source: str | Path, name: str, files: tuple[str, ...]) -> Path:
    """Local folder of the weights of codec `name`: `source` itself, or its snapshot from the hub.

    Args:
        files: that it must have, by their paths in it.
    Raises:
        FileNotFoundError: there is neither, or the folder is not complete.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(source), allow_patterns=list(files), etag_timeout=HUB_TIMEOUT))
        except (OSError, ValueError) as error:  # not found, no network, not an id: the remedy is the same
            raise FileNotFoundError(
                f"codec {name}: {source} is no directory and could not be had from the hub "
                f"({type(error).__name__}); give --sound-source the local directory with its {', '.join(files)}"
            ) from None
    if lacking := [file for file in files if not (folder / file).is_file()]:
        raise FileNotFoundError(f"codec {name}: {folder} lacks {lacking[0]}; give the whole directory")
    return folder


def read_network(kind: type, folder: Path, name: str) -> nn.Module:
    """A network of diffusers or transformers, of class `kind`, with all of its weights: for codec `name`.

    Raises:
        ValueError: the folder holds one of another class, or its config and its weights do not fit each other.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        stored = config.get("_class_name") or config.get("architectures", ["nobody knows what"])[0]
        found = stored == kind.__name__ and kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # libraries have no end of ways to fail on files that do not fit them
        reason = shorten(f"{type(error).__name__}: {error}", 200)
        raise ValueError(
            f"codec {name}: {folder} cannot be loaded ({reason}); take its config and weights from one place"
        ) from error
    if not found:
        raise ValueError(f"{folder} holds a {stored}, codec {name} needs an {kind.__name__}; give its folder")
    network, said = found
    if absent := sorted(said["missing_keys"]):
        raise ValueError(f"codec {name}: {folder} has no weights for {absent[0]} and {len(absent) - 1} others; take "
                         "its config and weights from one place")  # fmt: skip
    return network.eval().requires_grad_(False)
