"""What is given to the sampler: frames of a modality that are placed on their lines instead of being generated."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.flow import interpolate, per_frame
from diffusion.noise import Modality, frame_noise, sent


@dataclass(frozen=True)
class Known:
    """Known frames of one modality, aligned with a window of T frames.

    clean, eps: (B,T,...) data and noise, the ends of each frame's line. mask: (B,T) bool on the CPU, which frames are
    known.
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


def known_frames(
    fetch: Callable[[int, int], Tensor | None],
    modality: Modality,
    shape: tuple[int, ...],
    t: float | None = None,
    pad: str = "joint",
    noise: Callable = frame_noise,
    seed_of: Callable[[int, int], int | None] | None = None,
) -> Callable:
    """What is known of one modality as a window moves: window -> `Known` frames of that window.

    Their noise is the very noise the frames would have been generated from, so it is drawn once however often asked.

    Args:
        fetch: fetch(row, frame) -> clean latents of a frame of the stream in that row, None where they are not known.
        shape: of one frame.
        t: as in `Known`.
        pad: what stands in for a frame that is not known: "joint" generates it, "noise" takes Gaussian noise for data
            as the released code does past the end of its conditioning.
        noise: as `diffusion.noise.frame_noise`.
        seed_of: seed_of(row, frame) -> seed of that frame's noise where it is not the window's.
    """
    if pad not in ("joint", "noise"):
        raise ValueError(f"pad {pad!r} is unknown; choose joint or noise")
    invented = {Modality.VIDEO: Modality.PAD_VIDEO, Modality.AUDIO: Modality.PAD_AUDIO}[modality]
    last = None  # (frames, Known): a window asks once per step, its frames change once per frame

    def clean(row: int, seed: int, sample: int, frame: int) -> tuple[Tensor, bool]:
        if (found := fetch(row, frame)) is not None:
            return found, True
        if pad == "noise":
            return noise(seed, sample, frame, invented, shape), True
        return torch.zeros(shape), False

    def drawn_with(row: int, frame: int, seed: int) -> int:
        own = seed_of(row, frame) if seed_of else None
        return seed if own is None else own

    def of(window) -> Known:
        streams = zip(window.seed.tolist(), window.sample.tolist(), window.frames.tolist())
        places = [(row, drawn_with(row, frame, seed), sample, frame)
                  for row, (seed, sample, frames) in enumerate(streams) for frame in frames]  # fmt: skip
        data, mask = zip(*(clean(*place) for place in places))
        eps = [noise(seed, sample, frame, modality, shape) for _, seed, sample, frame in places]
        grid, (device, dtype) = tuple(window.frames.shape), (window.v.device, window.v.dtype)
        data, eps = (torch.stack([sent(x, device).to(dtype) for x in xs]).unflatten(0, grid) for xs in (data, eps))
        return Known(data, eps, torch.tensor(mask).view(grid), t)

    def known(window) -> Known:
        nonlocal last
        if last is None or not torch.equal(window.frames, last[0]):
            last = window.frames, of(window)
        return last[1]

    return known


def known_clip(clean: Tensor, modality: Modality, **how) -> Callable:
    """Clips in memory as what is known: clean (B,L,...) are frames 0..L-1 of the streams in rows 0..B-1.

    `how` goes to `known_frames`.
    """

    def fetch(row: int, frame: int) -> Tensor | None:
        return clean[row, frame] if frame < clean.shape[1] else None

    return known_frames(fetch, modality, tuple(clean.shape[2:]), **how)
