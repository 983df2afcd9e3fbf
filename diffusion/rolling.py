"""The one sampler: a window of frames, each nearer to noise the further it lies ahead, advanced step by step.

Rows of a window are independent streams. Their times are looked up by whole step, never accumulated, so rows of any
age share a call, join and leave by indexing, and saving a stream is saving its `Window`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from diffusion.flow import per_frame
from diffusion.guidance import Guidance, guided_velocity
from diffusion.known import Known
from diffusion.memory import Memory
from diffusion.noise import Modality, frame_noise, sent
from diffusion.times import moving_frames, sampling_times


@dataclass(frozen=True)
class Window:
    """The whole state of B streams.

    v: (B,T,C,H,W), a: (B,T,S,M) frames on their way from noise to data, on any device. On the CPU, so that no step
    waits for the device, int64: y (B,T), label of each frame, or None; (B,) first, index in the stream of the window's
    first frame; step in [0, n T); seed and sample, which name the stream's noise.
    past_v, past_a (B,A,...), past_y (B,A): of a model with a memory, the A frames before the first one, as far as there
    were any, and their labels; else None.
    """

    v: Tensor
    a: Tensor
    y: Tensor | None
    first: Tensor
    step: Tensor
    seed: Tensor
    sample: Tensor
    past_v: Tensor | None = None
    past_a: Tensor | None = None
    past_y: Tensor | None = None

    @property
    def T(self) -> int:
        return self.v.shape[1]

    @property
    def frames(self) -> Tensor:
        """(B,T) index in the stream of every frame."""
        return self.first.unsqueeze(1) + torch.arange(self.T)

    def __getitem__(self, rows) -> "Window":
        """Some of the rows: an index tensor, a slice or a mask."""
        return Window(*(None if x is None else x[rows] for x in vars(self).values()))


@dataclass(frozen=True)
class Emitted:
    """Frames that became clean in a step: rows (R,) of the window, index (R,) in their streams, v (R,C,H,W), a (R,S,M).

    window: the state right after, from which the stream goes on.
    """

    rows: Tensor
    index: Tensor
    v: Tensor
    a: Tensor
    window: Window


def start(
    T: int,
    frame_shapes: tuple[tuple[int, ...], tuple[int, ...]],
    seed: Tensor | int,
    sample: Tensor,
    y: Tensor | None = None,
    noise: Callable = frame_noise,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    past: int = 0,
) -> Window:
    """A window of pure noise before its first step.

    Args:
        frame_shapes: of one video latent (C,H,W) and one audio frame (S,M).
        seed: one for all rows or (B,). sample: (B,) number of each stream under its seed.
        y: (B,) or (B,T) labels or None.
        noise: noise(seed, sample, frame, modality, shape) -> float32 CPU tensor.
        past: A, frames to keep for a model with a memory.
    """
    sample = torch.as_tensor(sample, dtype=torch.int64)
    seed = torch.as_tensor(seed, dtype=torch.int64).expand(len(sample)).clone()
    zero = torch.zeros_like(sample)
    v, a = (
        torch.stack(
            [
                torch.stack([noise(int(s), int(row), k, modality, shape) for k in range(T)])
                for s, row in zip(seed, sample)
            ]
        ).to(device, dtype)
        for modality, shape in zip((Modality.VIDEO, Modality.AUDIO), frame_shapes)
    )
    if y is not None:
        y = (y if y.ndim == 2 else y.unsqueeze(1).expand(-1, T)).cpu()
    window = Window(v, a, y, zero, zero.clone(), seed, sample)
    if not past:
        return window
    past_v, past_a = (torch.zeros_like(x[:, :1]).repeat(1, past, *[1] * (x.ndim - 2)) for x in (v, a))
    return replace(window, past_v=past_v, past_a=past_a, past_y=None if y is None else y[:, :1].repeat(1, past))


def advance(
    window: Window,
    velocity: Callable,
    n: int,
    known: Callable[[Window], tuple[Known | None, Known | None]] | None = None,
    guidance: Guidance | None = None,
    frames: int | Tensor | None = None,
    skip: bool = True,
    noise: Callable = frame_noise,
    memory: Callable[[Window], Memory] | None = None,
) -> tuple[Window, Emitted | None]:
    """One Euler step of every row; rows whose first frame becomes clean emit it and take in a frame of noise.

    Args:
        velocity: called as velocity(v, a, t, y=, t_a=) -> (dv, da), with times (B, frames) float64 and labels on the
            CPU.
        n: steps between two frames (`num_timesteps`).
        known: what is given of video and of audio for the frames of a window.
        guidance: gradient guidance by the given modality; needs the whole window, so nothing is skipped.
        frames: frames asked for of each stream, or (B,) of every one; later ones are left out of the call.
        skip: leave out trailing frames that cannot influence an earlier one. Exact for a causal model only.
        noise: source of the frame that enters.
        memory: what a model remembers beyond a window, given to `velocity` as memory=.
    Returns:
        the window after the step, and what it emitted or None.
    """
    table = sampling_times(window.T, n)
    t, t_next = table[window.step], table[window.step + 1]
    seen = _frames_that_matter(window, n, frames) if skip and guidance is None else window.T
    known_v, known_a = known(window) if known else (None, None)

    if memory:
        velocity = partial(velocity, memory=memory(window))
    v, a = _stepped(window, velocity, t, t_next, (known_v, known_a), guidance, seen)
    after = replace(window, v=v, a=a, step=window.step + 1)
    clean = after.step == n * window.T  # (B,) on the CPU: deciding costs no synchronisation
    if not clean.any():
        return after, None
    rows = clean.nonzero().squeeze(1)
    entered, at = _enter(after, clean, n, noise), sent(rows, v.device)
    return entered, Emitted(rows, window.first[rows], v[at, 0], a[at, 0], entered)


def roll(window: Window, velocity: Callable, n: int, frames: int | None = None, **how) -> Iterator[Emitted]:
    """Frames of a window's streams as they become clean, in constant memory, for ever or until `frames` of each.

    `how` goes to `advance`.
    """
    while frames is None or (window.first < frames).any():
        window, emitted = advance(window, velocity, n, frames=frames, **how)
        if emitted:
            yield emitted


def _stepped(window, velocity, t, t_next, known, guidance, seen) -> tuple[Tensor, Tensor]:
    """v and a after one Euler step of the first `seen` frames, known frames placed on their lines before and after."""
    now = slice(seen)
    known_v, known_a = known = tuple(k and k[now] for k in known)
    t, t_next = t[:, now], t_next[:, now]
    (v, t_v), (a, t_a) = (_placed(x[:, now], k, t) for x, k in zip((window.v, window.a), known))
    conditions = {
        **({} if window.y is None else {"y": window.y[:, now]}),
        **({} if t_a is t_v else {"t_a": t_a}),
    }
    if guidance is None:
        dv, da = velocity(v, a, t_v, **conditions)
    else:
        moves = (t_next > t) & (t_next < 1)
        dv, da = guided_velocity(velocity, v, a, t_v, known, moves, guidance, **conditions)
    dt = t_next - t
    v, _ = _placed(v + per_frame(dt, v) * dv, known_v, t_next)
    a, _ = _placed(a + per_frame(dt, a) * da, known_a, t_next)
    return torch.cat([v, window.v[:, seen:]], 1), torch.cat([a, window.a[:, seen:]], 1)


def _placed(x: Tensor, known: Known | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """x and its times, with what is known put in place."""
    if known is None:
        return x, t
    t = known.times(t)
    return known.place(x, t), t


def _frames_that_matter(window: Window, n: int, frames: int | Tensor | None) -> int:
    """Leading frames of the call: in any row they move in this step, and they or a later one is asked for."""
    matter = moving_frames(window.step, n).clamp(max=window.T)
    if frames is not None:
        matter = torch.minimum(matter, frames - window.first)
    return max(1, int(matter.max()))


def _enter(window: Window, clean: Tensor, n: int, noise: Callable) -> Window:
    """The window one frame later for the rows whose first frame is clean."""
    rows = clean.nonzero().squeeze(1)
    at = sent(rows, window.v.device)

    def shifted(x: Tensor, modality: Modality) -> Tensor:
        shape = tuple(x.shape[2:])
        fresh = [
            noise(int(window.seed[r]), int(window.sample[r]), int(window.first[r]) + window.T, modality, shape)
            for r in rows
        ]
        x = x.clone()
        x[at] = torch.cat([x[at, 1:], sent(torch.stack(fresh), x.device).to(x.dtype).unsqueeze(1)], 1)
        return x

    y = window.y
    if y is not None:  # the label of the frame that enters is that of the frame before it
        y = torch.where(clean.unsqueeze(1), torch.cat([y[:, 1:], y[:, -1:]], 1), y)
    return replace(
        _with_past(window, rows),
        v=shifted(window.v, Modality.VIDEO),
        a=shifted(window.a, Modality.AUDIO),
        y=y,
        first=window.first + clean,
        step=window.step - n * clean,
    )


def _with_past(window: Window, rows: Tensor) -> Window:
    """The window whose first frame, clean in these rows, has become the newest of its past."""
    pasts = {"past_v": window.v, "past_a": window.a, "past_y": window.y}

    def longer(past: Tensor, x: Tensor) -> Tensor:
        at, past = sent(rows, past.device), past.clone()
        past[at] = torch.cat([past[at, 1:], x[at, :1]], 1)
        return past

    kept = {name: (getattr(window, name), x) for name, x in pasts.items() if getattr(window, name) is not None}
    return replace(window, **{name: longer(*pair) for name, pair in kept.items()})
