"""The one sampler: a window of frames, each nearer to noise the further it lies ahead, advanced step by step.

Rows of a window are independent streams. Their times are looked up by whole step, never accumulated, so rows of any
age share a call, join and leave by indexing, and saving a stream is saving its `Window`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from diffusion.guidance import Guidance, guided_velocity
from diffusion.known import Known
from diffusion.memory import Memory
from diffusion.noise import Modality, frame_noise, sent
from diffusion.pace import pace
from diffusion.solvers import moved, weights
from diffusion.times import following, moving_frames, sampling_times


@dataclass(frozen=True)
class Window:
    """The whole state of B streams.

    v: (B,T,C,H,W), a: (B,T,S,M) frames on their way from noise to data, on any device. On the CPU, so that no step
    waits for the device, int64: y (B,T), label of each frame, or None; (B,) first, index in the stream of the window's
    first frame; step in [0, n T), for n = 1/m in [0, T); seed and sample, which name the stream's noise.
    past_v, past_a (B,A,...), past_y (B,A): of a model with a memory, the A frames before the first one, as far as there
    were any, and their labels; else None.
    dv, da, t_before: of the solver AB2, the last velocity of each frame, as v and a, and on the CPU (B,T) float64 the
    flow time at which it had that; else None, for Euler (`diffusion.solvers.solved_by`).
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
    dv: Tensor | None = None
    da: Tensor | None = None
    t_before: Tensor | None = None

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

    def joined(self, other: "Window") -> "Window":
        """The rows of both."""
        pairs = zip(vars(self).values(), vars(other).values())
        return Window(*(None if x is None else torch.cat([x, y]) for x, y in pairs))


@dataclass(frozen=True)
class Emitted:
    """Frames that became clean in a step: rows (R,) of the window, index (R,) in their streams, v (R,C,H,W), a (R,S,M).

    window: the state right after, from which the stream goes on. count: frames of each row, m for n = 1/m, one after
    the other.
    """

    rows: Tensor
    index: Tensor
    v: Tensor
    a: Tensor
    window: Window
    count: int = 1

    def in_turn(self) -> Iterator["Emitted"]:
        """The first frame of every row, then the second of every row."""
        for k in range(self.count):
            nth = slice(k, None, self.count)
            yield Emitted(self.rows[nth], self.index[nth], self.v[nth], self.a[nth], self.window)


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
    past_v, past_a = (x.new_zeros(len(x), past, *x.shape[2:]) for x in (v, a))
    return replace(window, past_v=past_v, past_a=past_a, past_y=None if y is None else y[:, :1].repeat(1, past))


def advance(
    window: Window,
    velocity: Callable,
    n: float,
    known: Callable[[Window], tuple[Known | None, Known | None]] | None = None,
    guidance: Guidance | None = None,
    frames: int | Tensor | None = None,
    skip: bool = True,
    noise: Callable = frame_noise,
    memory: Callable[[Window], Memory] | None = None,
) -> tuple[Window, Emitted | None]:
    """One step of every row; rows whose first frame becomes clean emit it and take in a frame of noise.

    Args:
        velocity: called as velocity(v, a, t, y=, t_a=) -> (dv, da), with times (B, frames) float64 and labels on the
            CPU.
        n: steps between two frames (`num_timesteps`); for n = 1/m it is m frames that become clean, leave and enter.
        known: what is given of video and of audio for the frames of a window.
        guidance: gradient guidance by the given modality; what is given in frames that wait guides, too.
        frames: frames asked for of each stream, or (B,) of every one; later ones are left out of the call.
        skip: leave out trailing frames that cannot influence an earlier one. Exact for a causal model only.
        noise: source of the frame that enters.
        memory: what a model remembers beyond a window, given to `velocity` as memory=.
    Returns:
        the window after the step, and what it emitted or None.
    """
    table, step = sampling_times(window.T, n), following(window.step, n)
    known_v, known_a = known(window) if known else (None, None)
    guides = (known_v or known_a) if guidance else None
    seen = _frames_that_matter(window, n, frames, guides) if skip else window.T

    if memory:
        velocity = partial(velocity, memory=memory(window))
    after = _stepped(window, velocity, table[window.step], table[step], (known_v, known_a), guidance, seen)
    after = replace(after, step=step)
    clean = step == len(table) - 1  # (B,) on the CPU: deciding costs no synchronisation
    if not clean.any():
        return after, None
    m = pace(n)[1]
    rows, entered = clean.nonzero().squeeze(1), _enter(after, clean, n, noise)
    at = sent(rows, after.v.device)
    index = window.first[rows].unsqueeze(1) + torch.arange(m)
    v, a = (x[at, :m].flatten(0, 1) for x in (after.v, after.a))
    return entered, Emitted(rows.repeat_interleave(m), index.flatten(), v, a, entered, m)


def roll(window: Window, velocity: Callable, n: float, frames: int | None = None, **how) -> Iterator[Emitted]:
    """Frames of a window's streams as they become clean, in constant memory, for ever or until `frames` of each.

    `how` goes to `advance`.
    """
    while frames is None or (window.first < frames).any():
        window, emitted = advance(window, velocity, n, frames=frames, **how)
        for one in emitted.in_turn() if emitted else ():
            if emitted.count == 1 or frames is None or (one.index < frames).any():
                yield one


def _stepped(window, velocity, t, t_next, known, guidance, seen) -> Window:
    """The window after a step of its first `seen` frames, known frames placed on their lines before and after."""
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
    dv_before, da_before, t_before = (x if x is None else x[:, now] for x in (window.dv, window.da, window.t_before))
    weighed = weights(t, t_next, t_before)
    v, _ = _placed(moved(v, dv, dv_before, weighed), known_v, t_next)
    a, _ = _placed(moved(a, da, da_before, weighed), known_a, t_next)
    news = {"v": v, "a": a} | ({} if t_before is None else {"dv": dv.to(v), "da": da.to(a), "t_before": t})
    return replace(window, **{name: torch.cat([x, getattr(window, name)[:, seen:]], 1) for name, x in news.items()})


def _placed(x: Tensor, known: Known | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """x and its times, with what is known put in place."""
    if known is None:
        return x, t
    t = known.times(t)
    return known.place(x, t), t


def _frames_that_matter(window: Window, n: float, frames: int | Tensor | None, guides: Known | None = None) -> int:
    """Leading frames of the call: in any row they move in this step, and they or a later one is asked for.

    guides: what is given, if all of it that the window has guides earlier frames.
    """
    matter = moving_frames(window.step, n).clamp(max=window.T)
    if frames is not None:
        matter = torch.minimum(matter, frames - window.first)
    if guides is not None:
        matter = torch.maximum(matter, (guides.mask * torch.arange(1, window.T + 1)).amax(1))
    return max(1, int(matter.max()))


def _enter(window: Window, clean: Tensor, n: float, noise: Callable) -> Window:
    """The window one frame later, or m, for the rows whose first frame is clean."""
    (unit, m), rows = pace(n), clean.nonzero().squeeze(1)
    at = sent(rows, window.v.device)

    def shifted(x: Tensor, entering: Tensor) -> Tensor:
        x, to = x.clone(), rows if x.device.type == "cpu" else at
        x[to] = torch.cat([x[to, m:], entering], 1)
        return x

    def fresh(x: Tensor, modality: Modality) -> Tensor:
        shape, new = tuple(x.shape[2:]), window.first + window.T
        drawn = [
            noise(int(window.seed[r]), int(window.sample[r]), int(new[r]) + k, modality, shape)
            for r in rows
            for k in range(m)
        ]
        return sent(torch.stack(drawn), x.device).to(x.dtype).unflatten(0, (len(rows), m))

    y = window.y
    if y is not None:  # the label of the frame that enters is that of the frame before it
        y = torch.where(clean.unsqueeze(1), torch.cat([y[:, m:], y[:, -1:].expand(-1, m)], 1), y)
    before = {name: x for name in ("dv", "da", "t_before") if (x := getattr(window, name)) is not None}
    return replace(
        _with_past(window, rows, m),
        v=shifted(window.v, fresh(window.v, Modality.VIDEO)),
        a=shifted(window.a, fresh(window.a, Modality.AUDIO)),
        y=y,
        first=window.first + m * clean,
        step=window.step - unit * m * clean,
        **{name: shifted(x, x.new_zeros(len(rows), m, *x.shape[2:])) for name, x in before.items()},
    )


def _with_past(window: Window, rows: Tensor, m: int) -> Window:
    """The window whose first m frames, clean in these rows, have become the newest of its past."""
    pasts = {"past_v": window.v, "past_a": window.a, "past_y": window.y}

    def longer(past: Tensor, x: Tensor) -> Tensor:
        at, past = sent(rows, past.device), past.clone()
        past[at] = torch.cat([past[at], x[at, :m]], 1)[:, -past.shape[1] :]
        return past

    kept = {name: (getattr(window, name), x) for name, x in pasts.items() if getattr(window, name) is not None}
    return replace(window, **{name: longer(*pair) for name, pair in kept.items()})
