"""From sound to log-mel and back. A new vocoder is one class and one line in VOCODERS."""

from pathlib import Path

from vocoder.griffin_lim import GriffinLim
from vocoder.hifigan import HiFiGAN, HiFiGANConfig
from vocoder.mel import CONTEXT, from_model, log_mel, peak_normalise, to_model
from vocoder.stream import VocoderStream, stream

VOCODERS = {
    "hifigan": HiFiGAN,
    "griffin-lim": GriffinLim,
}


def load_vocoder(name: str, folder: str | Path) -> HiFiGAN | GriffinLim:
    """The vocoder `name` as stored in `folder` by its `save` (or, for HiFi-GAN, as released)."""
    if name not in VOCODERS:
        raise ValueError(f"vocoder {name!r} is unknown; choose one of {sorted(VOCODERS)}")
    return VOCODERS[name].from_pretrained(folder)


__all__ = [
    "CONTEXT",
    "VOCODERS",
    "GriffinLim",
    "HiFiGAN",
    "HiFiGANConfig",
    "VocoderStream",
    "from_model",
    "load_vocoder",
    "log_mel",
    "peak_normalise",
    "stream",
    "to_model",
]
