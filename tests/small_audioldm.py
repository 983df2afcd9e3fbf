"""An AudioLDM of a few thousand random weights, as diffusers keeps one on disk."""

from pathlib import Path

import torch
from torch import nn

BINS = 16
VAE = {"in_channels": 1, "out_channels": 1, "latent_channels": 3, "norm_num_groups": 2, "scaling_factor": 0.4,
       "block_out_channels": [4, 4, 8], "down_block_types": ["DownEncoderBlock2D"] * 3,
       "up_block_types": ["UpDecoderBlock2D"] * 3}  # fmt: skip
VOCODER = {"model_in_dim": BINS, "sampling_rate": 16000, "upsample_initial_channel": 16, "normalize_before": False,
           "upsample_rates": [5, 8, 4], "upsample_kernel_sizes": [16, 16, 8], "resblock_kernel_sizes": [3],
           "resblock_dilation_sizes": [[1, 3, 5]]}  # fmt: skip


def write_audioldm(folder: Path, vae: dict | None = None, vocoder: dict | None = None) -> tuple[nn.Module, nn.Module]:
    """Write vae/ and vocoder/ with these entries of their configs changed; returns both networks."""
    from diffusers import AutoencoderKL  # seconds, which only the process that needs it shall spend
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    networks = AutoencoderKL(**VAE | (vae or {})), SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER | (vocoder or {})))
    for name, network in zip(("vae", "vocoder"), networks):
        for x in network.parameters():
            nn.init.normal_(x, std=0.2)
        network.eval().requires_grad_(False).save_pretrained(folder / name)
    return networks
