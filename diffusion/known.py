"""What is given to the sampler: frames of a modality that are placed on their lines instead of being generated."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.flow import interpolate, per_frame
from diffusion.noise import Modality, frame_noise


@dataclass(frozen=True)
class Known:
    """Known frames of one modality, aligned with a window of T frames.

    clean, eps: (B,T,...) data and noise, the ends of each frame's line. mask: (B,T) bool, which frames are known.
    t: None to place them at the schedule's times, or one flow time for all of them (1: shown clean).
    """

    clean: Tensor
    eps: Tensor
    mask: Tensor
    t: float | None = None

    def __getitem__(self, frames: slice) -> "Known":
        return replace(self, clean=self.clean[:, frames], eps=self.eps[:, frames], mask=self.mask[:, frames])

    def times(self, t: Tensor) -> Tensor:
        """(B,T) schedule times -> the times this modality is really at."""
        return t if self.t is None else torch.where(self.mask, self.t, t)

    def place(self, x: Tensor, t: Tensor) -> Tensor:
        """x with its known frames put at x_t = t clean + (1 - t) eps; t (B,T) from `times`."""
        return torch.where(per_frame(self.mask, x).bool(), interpolate(self.clean, self.eps, t).to(x.dtype), x)


def known_clip(
    clean: Tensor,
    modality: Modality,
    t: float | None = None,
    pad: str = "joint",
    noise: Callable = frame_noise,
) -> Callable:
    """A clip in memory as what is known of one modality: window -> `Known` frames of that window.

    Its noise is the very noise the frames would have been generated from, so it is drawn once however often asked.

    Args:
        clean: (B,L,...) latents of frames 0..L-1 of each row's stream.
        t: as in `Known`.
        pad: past the last frame "joint" generates both modalities, "noise" takes Gaussian noise for data as the
            released code does.
        noise: as `diffusion.noise.frame_noise`.
    """
    if pad not in ("joint", "noise"):
        raise ValueError(f"pad {pad!r} is unknown; choose joint or noise")
    invented = {Modality.VIDEO: Modality.PAD_VIDEO, Modality.AUDIO: Modality.PAD_AUDIO}[modality]
    length, shape = clean.shape[1], tuple(clean.shape[2:])

    def drawn(window, frames: Tensor, kind: Modality) -> Tensor:
        rows = [
            torch.stack([noise(seed, sample, frame, kind, shape) for frame in row])
            for seed, sample, row in zip(window.seed.tolist(), window.sample.tolist(), frames.tolist())
        ]
        return torch.stack(rows).to(clean)

    last = None  # (frames, Known): a window asks once per step, its frames change once per frame

    def known(window) -> Known:
        nonlocal last
        frames = window.frames
        if last is None or not torch.equal(frames, last[0]):
            last = frames, of(window, frames)
        return last[1]

    def of(window, frames: Tensor) -> Known:
        mask = frames < length
        rows = torch.arange(len(clean)).unsqueeze(1)
        window_clean = clean[rows, frames.clamp(max=length - 1)]
        if pad == "noise" and not mask.all():
            window_clean = torch.where(
                per_frame(mask, clean).bool().to(clean.device), window_clean, drawn(window, frames, invented)
            )
            mask = torch.ones_like(mask)
        return Known(window_clean, drawn(window, frames, modality), mask.to(clean.device), t)

    return known
