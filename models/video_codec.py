"""Codecs of clips, whose latents are fewer than their frames: for models that make whole clips, not frame by frame."""

import torch
from einops import rearrange
from torch import Tensor

from models.frame_codec import DiffusersCodec, FrameCodec, PatchPCA, as_floats


class VideoCodec(FrameCodec):
    """What codecs of clips share: a clip passes through the network at once, and one clip after the other.

    Attributes:
        temporal_factor: k, frames to a latent. causal: whether the first frame has a latent of its own, so that
            k n + 1 frames make n + 1 latents; otherwise k n frames make n.
        together: of the latents after the first.
    """

    causal = True

    def latent_frames(self, frames: int) -> int:
        """Number of latents of so many frames.

        Raises:
            ValueError: they do not divide.
        """
        k, one = self.together * self.temporal_factor, int(self.causal)
        if frames < 1 or (frames - one) % k:
            below = (frames - one) // k * k + one
            nearest = f"{below} or {below + k}" if below > 0 else f"{one or k}"
            kind = f"{k} n + 1" if one else f"a multiple of {k}"
            raise ValueError(f"{frames} frames are not {kind}, which codec {self.name} takes; cut clips of {nearest}")
        return (frames - one) // self.temporal_factor + one

    @torch.no_grad()
    def encode(self, frames: Tensor, batch_size: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B,T',C,H/factor,W/factor) of the latents of clips (B,T,3,H,W) in [-1,1].

        Args:
            batch_size: clips that pass through the network together.
        Raises:
            ValueError: the shape, the dtype, the size or the length of the clips does not fit.
        """
        self.check(frames)
        self.latent_frames(frames.shape[1])
        clips = rearrange(frames, "b t c h w -> b c t h w").split(batch_size)
        mean, std = (torch.cat(part) for part in zip(*map(self._encode, clips)))
        return rearrange(mean, "b c t h w -> b t c h w"), rearrange(std, "b c t h w -> b t c h w")

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 1) -> Tensor:
        """Clips (B,T,3,H,W) in [-1,1] of latents (B,T',C,h,w), `batch_size` clips at a time.

        Raises:
            ValueError: the latents are not those of this codec.
        """
        self.check_latents(latents)
        clips = rearrange(latents, "b t c h w -> b c t h w").split(batch_size)
        return rearrange(torch.cat([self._decode(z).clamp(-1, 1) for z in clips]), "b c t h w -> b t c h w")


class CogVideoX(VideoCodec, DiffusersCodec):
    """CogVideoX's causal autoencoder (Yang et al., 2024, arXiv 2408.06072): 4 frames x 8 x 8 pixels to 16 channels.

    It gives back as many frames as it took only where latents are odd in number: of 49 frames it makes 13.
    """

    together = 2
    name = "cogvideox"
    library_class = "AutoencoderKLCogVideoX"
    default_source = "THUDM/CogVideoX-2b"
    channels_of_stages = "block_out_channels"

    def __init__(self, model):
        super().__init__(model)
        self.temporal_factor = int(model.config.temporal_compression_ratio)


class Wan(VideoCodec, DiffusersCodec):
    """Wan's causal autoencoder (Wan team, 2025, arXiv 2503.20314), whose latents are normalised channel by channel."""

    name = "wan"
    library_class = "AutoencoderKLWan"
    default_source = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"

    def __init__(self, model):
        super(DiffusersCodec, self).__init__()
        config = model.config
        self.model = model.eval().requires_grad_(False)
        self.factor, self.channels = 2 ** len(config.temperal_downsample), config.z_dim
        self.temporal_factor = 2 ** sum(config.temperal_downsample)
        for name, values in (("mean", config.latents_mean), ("std", config.latents_std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1, 1), persistent=False)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(x).latent_dist
        return (posterior.mean - self.mean) / self.std, posterior.std / self.std

    def _decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z * self.std + self.mean).sample


class BlockPCA(VideoCodec, PatchPCA):
    """Principal components of blocks of 4 frames x p x p pixels: no weights, fitted in seconds, deterministic.

    A block is a patch whose channels are those of its frames, one after the other.
    """

    name = "block-pca"
    temporal_factor = 4
    causal = False
    values = 3 * temporal_factor  # of a pixel: its colours in all frames of the block
    kept = 16

    @classmethod
    def blocks(cls, clip: Tensor) -> Tensor:
        """(B,3,4n,H,W) -> (B n, 12, H, W)."""
        return rearrange(clip, "b c (n k) h w -> (b n) (k c) h w", k=cls.temporal_factor)

    @classmethod
    def to_patches(cls, frames: Tensor, patch: int) -> Tensor:
        """All blocks of uint8 (...,T,H,W,3) or float (...,T,3,H,W) clips, (count, 12 patch^2), in float64 and [-1,1].

        What is left of a clip after its last whole block is not looked at.
        """
        clips = as_floats(frames)
        clips = clips.reshape(-1, *clips.shape[-4:])
        whole = clips[:, : clips.shape[1] // cls.temporal_factor * cls.temporal_factor]
        return super().to_patches(cls.blocks(whole.transpose(1, 2)), patch)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(rearrange(z, "(b n) c h w -> b c n h w", b=len(x)) for z in super()._encode(self.blocks(x)))

    def _decode(self, z: Tensor) -> Tensor:
        blocks = super()._decode(rearrange(z, "b c n h w -> (b n) c h w"))
        return rearrange(blocks, "(b n) (k c) h w -> b c (n k) h w", b=len(z), c=3)
