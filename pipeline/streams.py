"""Streams: endless films that share the model's calls, each of its own age, seed and label."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.guidance import Guidance
from diffusion.known import known_frames
from diffusion.noise import Modality
from diffusion.pace import pace
from diffusion.rolling import Emitted, Window, advance
from diffusion.solvers import solved_by
from pipeline.state import Past, StreamState
from vocoder import VocoderStream

Fetch = Callable[[int], Tensor | None]  # frame of the stream -> its clean latents, None where they are not known


@dataclass(frozen=True)
class Chunk:
    """Frames of a stream with exactly their sound: frames uint8 (t,H,W,3), wave (t * samples_per_frame,).

    first: index in the stream of the first frame. v (t,C,h,w), a (t,S,M): the latents. state: right after this chunk.
    """

    frames: Tensor
    wave: Tensor
    first: int
    v: Tensor
    a: Tensor
    state: StreamState


@dataclass(frozen=True)
class Made:
    """Frames that the model finished in a call, v (m,C,h,w), a (m,S,M), with their stream's window and past after it.

    index: of the first, in the stream. end: frame before which the stream ends, None for never. last: no other is made
    after them.
    """

    name: str
    index: int
    v: Tensor
    a: Tensor
    window: Window
    past: Past | None
    end: int | None
    last: bool

    @property
    def next(self) -> int:
        """Index of the frame after them."""
        return self.index + len(self.v)


@dataclass(frozen=True, eq=False)
class _Row:
    """One stream's place in the batch: where it ends and what is given to it."""

    past: Past | None
    frames: int | None
    given: dict[Modality, Fetch]
    labels: Callable[[int], int] | None

    def fetch(self, modality: Modality, frame: int) -> Tensor | None:
        """Clean latents of a frame that is known."""
        if self.past and frame in self.past:
            return self.past.fetch(modality, frame)
        return self.given[modality](frame) if modality in self.given else None


@dataclass(frozen=True)
class _Waiting:
    """What a stream's decoding goes on with: fields as in `StreamState`."""

    v: Tensor
    a: Tensor
    sound: Tensor
    voice: dict[str, Tensor]

    def without(self, count: int, samples: int) -> "_Waiting":
        """What is left once some frames and their samples have gone out."""
        return replace(self, v=self.v[count:], a=self.a[count:], sound=self.sound[samples:])


class Streams:
    """Films that share one model call per step.

    A step has two stages with nothing in common but the `Made` that the first hands to the second: `denoise` works on
    `window` and `rows`, `finish` on `waiting`. All three are replaced, never changed in place, so `copy.copy` is a
    place to come back to, and `pipeline.overlap` runs the stages beside each other.

    Args:
        pipe: an `AVPipeline`.
        num_timesteps, cfg_scale, guidance, negative: of all streams; steps n per frame, or 1/m, by which m frames leave
            per call; cfg_scale None is the pipeline's own, negative the text that it leads away from.
        t: flow time at which given frames are shown; None for the schedule's own.
        picture, sound: whether frames and wave are decoded; a given modality needs neither.
        resumable: let a stream run on behind its end until that has its whole sound, so that it ends as if cut there
            and goes on without a seam; otherwise what lies behind the end is left out of the calls, and of the sound.
        solver: of all streams, "euler" or "ab2".
    """

    def __init__(
        self,
        pipe,
        num_timesteps: float = 2,
        cfg_scale: float | None = None,
        guidance: Guidance | None = None,
        t: float | None = None,
        picture: bool = True,
        sound: bool = True,
        resumable: bool = True,
        negative: str = "",
        solver: str = "euler",
    ):
        self.negative, self.solver = negative, solver
        self.pipe, self.n, self.cfg_scale, self.guidance, self.t = pipe, num_timesteps, cfg_scale, guidance, t
        self.velocity = pipe.velocity(cfg_scale, num_timesteps, negative)
        self.picture, self.sound, self.resumable = picture, sound, resumable
        S = pipe.codec.spec.mel_per_frame
        self.run_on = math.ceil(pipe.codec.vocoder.ahead(S) / S) if resumable and sound else 0  # frames behind an end
        self.rows: dict[str, _Row] = {}  # in the order of the window's rows
        self.window: Window | None = None
        self.waiting: dict[str, _Waiting] = {}
        self._known, self._memory = None, pipe.memory()

    def join(
        self,
        name: str,
        state: StreamState,
        frames: int | None = None,
        given: dict[Modality, Fetch] | None = None,
        labels: Callable[[int], int] | None = None,
    ) -> None:
        """Take in a stream, new or resumed.

        Args:
            frames: index at which it ends; None for never.
            given: latents of a modality that is not generated, by frame.
            labels: class or prompt (`AVPipeline.label`) of each frame, instead of the state's own.
        Raises:
            ValueError: the name is taken, or the end is past already.
        """
        if name in self.rows:
            raise ValueError(f"a stream {name!r} is running already; give this one another name")
        made = state.frame if self.resumable else max(state.frame, int(state.window.first))
        if frames is not None and frames <= made:
            raise ValueError(f"the stream is made up to frame {made} and cannot end at {frames}; give a later end")
        state = state.retimed(self.n) if state.num_timesteps != pace(self.n)[0] else state
        if not self.sound:  # what waits for its sound goes out without it
            state = replace(state, sound=state.sound[:0], voice={})
        window = solved_by(self.pipe.placed(state.window), self.solver, self.n)
        if state.said and state.said.texts:
            places = self.pipe.prompts.take(state.said)
            window = replace(
                window, y=places[window.y], past_y=None if window.past_y is None else places[window.past_y]
            )
        if labels:
            window = replace(window, y=torch.tensor([[labels(int(k)) for k in window.frames[0]]]))
        self.waiting = self.waiting | {name: self._begun(state)}
        self.window = window if self.window is None else self.window.joined(window)
        self.rows = self.rows | {name: _Row(state.past, frames, given or {}, labels)}
        self._known = self._known_frames()

    def _begun(self, state: StreamState) -> _Waiting:
        """What waits in a state, on the device.

        Raises:
            ValueError: the sound is of another vocoder.
        """
        device = self.pipe.device
        voice = VocoderStream(self.pipe.codec.vocoder, {key: x.to(device) for key, x in state.voice.items()})
        return _Waiting(*(x.to(device) for x in (state.v, state.a, state.sound)), voice.state())

    def give(self, name: str, given: dict[Modality, Fetch]) -> None:
        """Change what is given to a running stream, as `join` takes it; {} generates both modalities from here on."""
        self.rows = self.rows | {name: replace(self.rows[name], given=given)}
        self._known = self._known_frames()

    def retime(self, n: float) -> None:
        """Change the steps per frame of all streams while they run.

        Raises:
            ValueError: one of them is between two frames.
        """
        (before, _), (after, _) = pace(self.n), pace(n)
        if (self.window.step * after % before).any():
            raise ValueError(
                f"num_timesteps cannot change from {self.n:g} to {n:g} in mid-frame; change it between frames"
            )
        self.velocity = self.pipe.velocity(self.cfg_scale, n, self.negative)
        self.window, self.n = replace(self.window, step=self.window.step * after // before), n

    def relabel(self, name: str, y: int) -> None:
        """Give a running stream a label from here on: all frames of its window that are not done, and those to come.

        As if the stream left and its state came back with `labels`, so a film resumed so is the same.
        """
        labels = self.window.y.clone()
        labels[list(self.rows).index(name)] = y
        self.window = replace(self.window, y=labels)

    def reguide(self, cfg_scale: float) -> None:
        """Change the guidance by class or text of all streams while they run.

        Raises:
            ValueError: as of `AVPipeline.velocity`.
        """
        self.velocity = self.pipe.velocity(cfg_scale, self.n, self.negative)
        self.cfg_scale, self.window = cfg_scale, replace(self.window)  # another window tells `overlapped_steps`

    def reseed(self, name: str, seed: int) -> None:
        """Give a running stream the noise of another seed for the frames that are yet to enter its window."""
        seeds = self.window.seed.clone()
        seeds[list(self.rows).index(name)] = seed
        self.window = replace(self.window, seed=seeds)

    @property
    def between_frames(self) -> bool:
        """Whether no stream is in the middle of a frame, so that states can be retimed."""
        return self.window is None or not (self.window.step % pace(self.n)[0]).any()

    def leave(self, name: str) -> StreamState:
        """Take a stream out; the state goes on elsewhere or later."""
        state = self.state(name)
        self._drop(name)
        self.waiting = {other: waiting for other, waiting in self.waiting.items() if other != name}
        return state

    def state(self, name: str) -> StreamState:
        """A stream's state now."""
        i = list(self.rows).index(name)
        return self._state(self.window[i : i + 1], self.rows[name].past, self.waiting[name])

    def go_to(self, place: "Streams") -> None:
        """Stand where a copy of these streams stands."""
        self.window, self.rows, self.waiting, self._known = place.window, place.rows, place.waiting, place._known

    def step(self) -> list[tuple[str, Chunk]]:
        """One call of the model for all streams; what became ready, by name. Streams that end leave."""
        return self.finish(self.denoise())

    def steps(self) -> Iterator[list[tuple[str, Chunk]]]:
        """Steps until the last stream ends."""
        while self.rows:
            yield self.step()

    def __iter__(self) -> Iterator[tuple[str, Chunk]]:
        """Chunks of all streams until the last one ends."""
        for chunks in self.steps():
            yield from chunks

    @torch.no_grad()
    def denoise(self) -> list[Made]:
        """First stage of a step: one call of the model, and the frames it finished."""
        ends = [row.frames for row in self.rows.values()]
        frames = None if self.resumable or None in ends else torch.tensor(ends)
        self.window, emitted = advance(
            self.window,
            self.velocity,
            self.n,
            known=self._known,
            guidance=self.guidance,
            frames=frames,
            skip=self.pipe.skip,
            memory=self._memory,
        )
        if emitted is None:
            return []
        self._relabel(emitted)
        names = list(self.rows)
        m = emitted.count
        made = [self._made(names[i], i, emitted, at * m) for at, i in enumerate(emitted.rows[::m].tolist())]
        for ended in (m.name for m in made if m.last):
            self._drop(ended)
        return made

    @torch.no_grad()
    def finish(self, made: list[Made]) -> list[tuple[str, Chunk]]:
        """Second stage of a step: the frames that have their whole sound now that these are made, decoded."""
        ready = [(frame.name, self._ready(frame)) for frame in made]
        ended = {frame.name for frame in made if frame.last}
        self.waiting = {name: waiting for name, waiting in self.waiting.items() if name not in ended}
        return [(name, chunk) for name, chunk in ready if chunk is not None]

    def _made(self, name: str, i: int, emitted: Emitted, at: int) -> Made:
        row, index, count = self.rows[name], int(emitted.index[at]), emitted.count
        last = row.frames is not None and index + count >= row.frames + self.run_on
        if last and not self.resumable:  # what lies behind the end was not in the call
            count = row.frames - index
        here = slice(at, at + count)
        return Made(name, index, emitted.v[here], emitted.a[here], self.window[i : i + 1], row.past, row.frames, last)

    def _ready(self, made: Made) -> Chunk | None:
        """The frames of a stream whose sound no later frame changes, or all that wait where none will follow."""
        now, size = self._heard(made), self.pipe.codec.spec.samples_per_frame
        count = len(now.sound) // size if self.sound else len(now.v)
        if made.end is not None:
            count = min(count, made.end - (made.next - len(now.v)))
        rest = now.without(count, count * size)
        self.waiting = self.waiting | {made.name: rest}
        return self._chunk(made, now, count, self._state(made.window, made.past, rest)) if count else None

    def _heard(self, made: Made) -> _Waiting:
        """What waits once frames are there and their sound has gone through the vocoder."""
        old, codec = self.waiting[made.name], self.pipe.codec
        sound, voice = old.sound, VocoderStream(codec.vocoder, old.voice)
        if self.sound:
            sound = torch.cat([sound, voice.push(codec.mel(made.a[None]))[0]])
            if made.last and not self.resumable:
                sound = torch.cat([sound, voice.finish()[0]])
        return _Waiting(torch.cat([old.v, made.v]), torch.cat([old.a, made.a]), sound, voice.state())

    def _chunk(self, made: Made, now: _Waiting, count: int, state: StreamState) -> Chunk:
        """The first frames that wait, decoded, with their sound."""
        codec, v, a = self.pipe.codec, now.v[:count], now.a[:count]
        pixels = codec.decode_frames(v[None])[0] if self.picture else torch.empty(0, 0, 0, 3, dtype=torch.uint8)
        wave = now.sound[: count * codec.spec.samples_per_frame]
        return Chunk(pixels, wave, made.next - len(now.v), v, a, state)

    def _state(self, window: Window, past: Past | None, waiting: _Waiting) -> StreamState:
        past = past and past.since(int(window.first))
        said, sounding = self.pipe.prompts.said, (waiting.sound, waiting.voice)
        return StreamState(window, pace(self.n)[0], waiting.v, waiting.a, *sounding, past, said)

    def _drop(self, name: str) -> None:
        """Take a stream's row out of the window."""
        keep = [i for i, other in enumerate(self.rows) if other != name]
        self.window = self.window[torch.tensor(keep)] if keep else None
        self.rows = {other: row for other, row in self.rows.items() if other != name}
        self._known = self._known_frames()

    def _relabel(self, emitted: Emitted) -> None:
        """Give the frames that entered the class that their stream's schedule has for them."""
        rows, m = list(self.rows.values()), emitted.count
        scheduled = [i for i in emitted.rows[::m].tolist() if rows[i].labels]
        if scheduled:
            y = self.window.y.clone()
            for i in scheduled:
                y[i, -m:] = torch.tensor([rows[i].labels(k) for k in self.window.frames[i, -m:].tolist()])
            self.window = replace(self.window, y=y)

    def _known_frames(self) -> Callable | None:
        """What is given to the present rows, as the sampler asks for it."""
        rows, pair = list(self.rows.values()), []

        def seed_of(row: int, frame: int) -> int | None:
            past = rows[row].past
            return past.seed if past and frame in past else None

        for modality, shape in zip((Modality.VIDEO, Modality.AUDIO), self.pipe.model.frame_shapes):
            some = any(row.past or modality in row.given for row in rows)
            fetch = lambda row, frame, m=modality: rows[row].fetch(m, frame)  # noqa: E731
            some_known = known_frames(fetch, modality, shape, self.t, seed_of=seed_of)
            pair.append(some_known if some else lambda window: None)
        video, audio = pair
        return lambda window: (video(window), audio(window))
