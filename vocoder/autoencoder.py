"""Codecs of sound, for models that make whole clips: waves to tokens of a steady rate and back.

A new one is one class and one line in SOUND_CODECS.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vocoder.audioldm import AudioLDM
from vocoder.mel import CONTEXT, HOP, from_model, log_mel, to_model
from vocoder.sound_codec import CONFIG, WEIGHTS, SoundCodec, fetch, read_network


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
        self.model = model
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

        return cls(read_network(AutoencoderOobleck, fetch(source, cls.name, (CONFIG, WEIGHTS)), cls.name))

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(wave.unsqueeze(1).expand(-1, self._of, -1)).latent_dist
        return posterior.mean.transpose(1, 2), posterior.std.transpose(1, 2)

    def _decode(self, tokens: Tensor) -> Tensor:
        z = torch.cat([tokens, tokens[:, -1:]], 1) if self._more else tokens
        return self.model.decode(z.transpose(1, 2)).sample.mean(1)[:, : tokens.shape[1] * self.hop]


SOUND_CODECS: dict[str, type[SoundCodec]] = {kind.name: kind for kind in (MelTokens, Oobleck, AudioLDM)}
