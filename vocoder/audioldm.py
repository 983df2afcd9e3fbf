"""AudioLDM's sound (Liu et al., 2023, arXiv 2301.12503): the log-mel autoencoded as a picture is, and its vocoder."""

import math
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from vocoder.mel import HOP, WINDOW, context_of, log_mel
from vocoder.sound_codec import CONFIG, WEIGHTS, SoundCodec, fetch, read_network

FILES = (f"vae/{CONFIG}", f"vae/{WEIGHTS}", f"vocoder/{CONFIG}", "vocoder/model.safetensors")


class AudioLDM(SoundCodec):
    """AudioLDM's and AudioLDM 2's autoencoder (diffusers' AutoencoderKL) with transformers' SpeechT5HifiGan.

    Of a released one a token is a column of 8 channels x 16 bins, 25 a second: of 4 frames of 64 mel bins, 100 a second
    at 16 kHz, by spectra of 1024 samples.

    Args:
        vae: log-mel (B,1,S,F) to latents (B,C,S/k,F/k). vocoder: log-mel (B,S,F) to waves, HOP samples to a frame.
    Raises:
        ValueError: they do not fit each other.
    """

    name = "audioldm"
    context = context_of(WINDOW)

    def __init__(self, vae: nn.Module, vocoder: nn.Module):
        super().__init__()
        self.vae, self.vocoder = vae, vocoder
        self.factor, self.bins = 2 ** (len(vae.config.block_out_channels) - 1), vocoder.config.model_in_dim
        self.sample_rate, self.hop = vocoder.config.sampling_rate, HOP * self.factor
        self.channels = vae.config.latent_channels * self.bins // self.factor
        self.register_buffer("scale", torch.tensor(vae.config.scaling_factor))  # so that a hash of the codec has it
        if (seen := (vae.config.in_channels, vae.config.out_channels)) != (1, 1):
            raise ValueError(f"the autoencoder takes pictures of {seen[0]} channels and gives {seen[1]}, a log-mel has "
                             "1; take the vae/ of an AudioLDM")  # fmt: skip
        if (made := math.prod(vocoder.config.upsample_rates)) != HOP:
            raise ValueError(f"the vocoder makes {made} samples of a mel frame, which stands for {HOP}; take the "
                             "vocoder/ of an AudioLDM")  # fmt: skip
        if self.bins % self.factor:
            raise ValueError(f"the vocoder's {self.bins} mel bins are not a multiple of the {self.factor} that the "
                             "autoencoder makes one; take both from one AudioLDM")  # fmt: skip

    @classmethod
    def load(cls, source: str | Path) -> "AudioLDM":
        """From a local directory with the vae/ and vocoder/ of an AudioLDM, as diffusers keeps one, or a hub id.

        Raises:
            FileNotFoundError: one of them is not there, or not whole. ValueError: it is of another kind.
        """
        from diffusers import AutoencoderKL  # takes seconds, as transformers does
        from transformers import SpeechT5HifiGan

        folder, kinds = fetch(source, cls.name, FILES), {"vae": AutoencoderKL, "vocoder": SpeechT5HifiGan}
        return cls(*(read_network(kind, folder / part, cls.name) for part, kind in kinds.items()))

    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        mel = log_mel(wave, self.bins, padded=True, sample_rate=self.sample_rate, n_fft=WINDOW)
        posterior = self.vae.encode(rearrange(mel, "b f s -> b 1 s f")).latent_dist
        return tuple(rearrange(z * self.scale, "b c n f -> b n (c f)") for z in (posterior.mean, posterior.std))

    def _decode(self, tokens: Tensor) -> Tensor:
        z = rearrange(tokens / self.scale, "b n (c f) -> b c n f", c=self.vae.config.latent_channels)
        mel = self.vae.decode(z).sample
        return self.vocoder(mel[:, 0])[:, : tokens.shape[1] * self.hop]  # an odd kernel beside its rate adds samples
