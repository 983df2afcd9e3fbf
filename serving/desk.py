"""The desk: films that are made together, and all that can be done to them between two frames. Knows no time."""

import gc
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import allocator
from data.av import MediaError
from diffusion.pace import pace
from pipeline import AVPipeline, Streams, StreamState
from pipeline.film import RealClip
from pipeline.overlap import steps_of
from pipeline.streams import Chunk
from serving.film import Film, Piece
from serving.given import Given
from serving.history import History, Turn
from serving.messages import MOST

FARTHEST = 2**40  # frame or seed that a state from a file may have
LOUDEST = 1e6  # latent or sample that it may lead to


@dataclass
class Settings:
    """Of all films: steps per frame, guidance, what it leads away from; and label and seed of the first film.

    steps: n, or 1/m, by which m frames are made together. solver: as of `Streams`. overlap: as of
    `pipeline.overlap.steps_of`.
    """

    steps: float
    guidance: float
    negative: str = ""
    label: str | None = None
    seed: int = 0
    solver: str = "euler"
    overlap: bool | None = None


class Desk:
    """Films on show, made in one batch.

    `tick` makes a frame of each, `send` shows the oldest that was made; a command takes back what was made and not
    shown. All methods are for one thread.

    Args:
        load: makes the pipeline, again after `release`. begin: states that the first films go on from; none for a new
            film.
    """

    def __init__(self, load: Callable[[], AVPipeline], settings: Settings, begin: tuple[StreamState, ...] = ()):
        self._load, self.settings, self._numbers = load, settings, 0
        self.films: dict[int, Film] = {}
        self.pipe, self.streams = None, None
        self._open()
        for state in begin:
            self._take_in(state, self._turn(state.frame, None, int(state.window.seed), "goes on from a state", "state"))
        if not begin:
            turn = self._turn(0, settings.label, settings.seed, "a new film", "new")
            self._take_in(self._new(turn), turn)

    def _open(self) -> None:
        self.pipe = self._load()
        self.of_states = self.pipe.of_states
        self.streams = self._no_streams()
        self._made: deque[tuple[Streams, list[tuple[str, Chunk]]]] = deque()
        self._settle()

    def _no_streams(self) -> Streams:
        """Streams with the present settings, in which there is none yet."""
        how = self.settings
        return Streams(self.pipe, how.steps, how.guidance, negative=how.negative, solver=how.solver)

    def _turn(self, frame: int, label: str | None, seed: int, told: str, begun: str = "") -> Turn:
        return Turn(frame, label, seed, self.settings.steps, self.settings.guidance, told, begun, opened=seed)

    def _new(self, turn: Turn) -> StreamState:
        return self.pipe.new_stream(y=self._label(turn.label), seed=turn.seed)

    def _label(self, label: str | None) -> int | None:
        """A class or a prompt as the model takes it."""
        if label is None or self.texts:
            return None if label is None else int(self.pipe.label(label))
        return self.pipe.spec.class_names.index(label)

    @property
    def texts(self) -> bool:
        """Whether labels are prompts."""
        return bool(self.pipe.model.text_width)

    # ------------------------------------------------------------------------------------------------ frames

    @property
    def waiting(self) -> int:
        """Frames of each film that are made and not shown."""
        return len(self._made) * self.at_once

    @property
    def at_once(self) -> int:
        """Frames of each film that are made together."""
        return pace(self.settings.steps)[1]

    def tick(self) -> bool:
        """Make the next frame of every film, or the `at_once` that are made together.

        False where none was done, as before the first frame of a new film.
        """
        chunks = []
        while True:
            chunks += next(self._steps)
            if self.streams.between_frames:
                break
        if chunks or self._made:
            self._made.append((copy(self.streams), chunks))
        else:
            self._place = copy(self.streams)
        return bool(chunks)

    def send(self) -> list[Piece]:
        """Show the oldest frame that was made, with those that were made with it."""
        self._place, chunks = self._made.popleft()
        pieces = []
        for name, chunk in chunks:
            film = self.films[int(name)]
            pieces += film.show(chunk)
            if film.given and film.next >= film.given.end:
                film.history.add(film.next, f"the {film.given.kind} {film.given.over}", given="")
                film.follow(None)
                self._give(film)
        return pieces

    def _give(self, film: Film) -> None:
        """Let a film's stream have what the film follows."""
        given = film.given
        self.streams.give(str(film.number), {given.modality: given.latents} if given else {})

    def _take_back(self) -> None:
        """Stand after the last frame shown."""
        self.streams.go_to(self._place)
        for film in self.films.values():  # a place from before a given file ended
            self._give(film)
        self._made.clear()

    def _settle(self) -> None:
        """After a change: steps are taken from here on."""
        self._steps, self._place = steps_of(self.streams, self.settings.overlap), copy(self.streams)

    # ------------------------------------------------------------------------------------------------ commands

    def obey(self, message: dict) -> dict:
        """Do what a checked message asks for between two frames; what there is to say of it.

        Raises:
            ValueError: it cannot be done; in one sentence.
        """
        self._take_back()
        try:
            return getattr(self, f"_do_{message['do']}")(**{k: x for k, x in message.items() if k != "do"})
        finally:
            for film in self.films.values():  # what was changed holds from the last frame shown on
                film.state = self.streams.state(str(film.number))
            self._settle()

    def film(self, film: int) -> Film:
        """A film that runs.

        Raises:
            ValueError: it does not.
        """
        if film not in self.films:
            raise ValueError(f"film {film} is not running; choose one of {', '.join(map(str, self.films))}")
        return self.films[film]

    def _obeying(self, film: Film) -> dict:
        """Film and the first of its frames that is not done yet."""
        row = list(self.streams.rows).index(str(film.number))
        return {"film": film.number, "frame": int(self.streams.window.first[row])}

    def _again(self, film: Film) -> None:
        """Begin a film anew of which nothing was shown."""
        self.streams.leave(str(film.number))
        self.streams.join(str(film.number), self._new(film.history.now))

    def _do_label(self, film: int, to: str) -> dict:
        film, to = self.film(film), " ".join(to.split())
        if not self.texts and to not in self.pipe.spec.class_names:
            known = ", ".join(self.pipe.spec.class_names)
            raise ValueError(f"the model has no such class; it has {known or 'none, and takes no text'}")
        y = self._label(to)
        film.history.add(film.next, to if self.texts else f"class {to}", label=to)
        if film.unbegun:
            self._again(film)
        else:
            self.streams.relabel(str(film.number), y)
        return self._obeying(film)

    def _do_seed(self, film: int, to: int) -> dict:
        film = self.film(film)
        film.history.add(film.next, f"seed {to}", seed=to)
        if film.unbegun:
            self._again(film)
        else:
            self.streams.reseed(str(film.number), to)
        return self._obeying(film)

    def _do_steps(self, to: int) -> dict:
        self.streams.retime(to)
        self.settings.steps = to
        return self._of_all(f"{to} steps a frame", steps=to)

    def _do_guidance(self, to: float) -> dict:
        self.streams.reguide(to)
        self.settings.guidance = to
        return self._of_all(f"guidance {to:g}", guidance=to)

    def _of_all(self, told: str, **changed) -> dict:
        for film in self.films.values():
            film.history.add(film.next, told, **changed)
            if film.unbegun:
                self._again(film)
        return self._obeying(next(iter(self.films.values())))

    def _do_fork(self, film: int, at: int | None = None, seed: int | None = None) -> dict:
        parent = self.film(film)
        self._check_room()
        state = parent.state if at is None else parent.place(at)
        if state.frame == 0:
            raise ValueError(f"film {film} has no frame yet; wait a moment")
        turns = parent.history.until(state.frame)
        if seed is None:
            seed = 1 + max(turn.seed for other in self.films.values() for turn in other.history.turns)
        before = parent.history.now if state is parent.state else turns[-1]
        turn = replace(before, frame=state.frame, seed=seed, told=f"leaves film {film} with seed {seed}",
                       begun="", given="", steps=self.settings.steps, guidance=self.settings.guidance)  # fmt: skip
        return self._obeying(self._take_in(state.forked(seed), turn, turns, film))

    def _do_close(self, film: int) -> dict:
        self.film(film)
        if len(self.films) == 1:
            raise ValueError("this film is the last one; pause it instead")
        self._drop(film)
        return {"film": film}

    def _do_joint(self, film: int) -> dict:
        return self._follow(self.film(film), None, "picture and sound made together")

    def _do_give(self, film: int, given: Given) -> dict:
        return self._follow(self.film(film), given, f"the {given.kind} of {given.name}")

    def _follow(self, film: Film, given: Given | None, told: str) -> dict:
        film.follow(given)
        obeying = self._obeying(film)
        if given:
            given.start = obeying["frame"]
        film.history.add(film.next, told, given=given.kind if given else "")
        self._give(film)
        return obeying

    def _do_open(self, path: Path, name: str) -> dict:
        self._check_room()
        try:
            state, facts = StreamState.load(path)
            self._try(state, facts)
        except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
            reason = str(error).replace(str(path), name) if isinstance(error, ValueError) else "it does not fit"
            raise ValueError(f"{name} cannot go on here: {' '.join(reason.split())[:300]}") from None
        turn = self._turn(state.frame, None, int(state.window.seed), f"goes on from {name}", "state")
        return self._obeying(self._take_in(state, turn))

    def _do_extend(self, real: RealClip, name: str, done: Callable[[], None] = lambda: None) -> dict:
        self._check_room()
        turn = self._turn(0, self.settings.label, self.settings.seed, f"goes on from the clip {name}", "clip")
        state = real.begun(self.pipe, y=self._label(turn.label), seed=turn.seed)
        film = self._take_in(state, replace(turn, frame=state.frame), real=real)
        film.done = done
        return self._obeying(film)

    def _check_room(self) -> None:
        if len(self.films) == MOST:
            raise ValueError(f"{MOST} films are running, the most there may be; close one first")

    def _take_in(
        self, state: StreamState, turn: Turn, turns: tuple = (), parent: int = 0, real: RealClip | None = None
    ) -> Film:
        self._numbers += 1
        film = Film(self._numbers, state, self.pipe.spec, History(turn, self.texts, turns), real, parent)
        self.streams.join(str(film.number), state)
        self.films[film.number] = film
        self._settle()
        return film

    def _drop(self, film: int) -> None:
        self.streams.leave(str(film))
        self.films.pop(film).close()

    def _try(self, state: StreamState, facts: dict) -> None:
        """Raise an error where a state from a stranger's file would not go on: make some frames apart."""
        window, spec, shapes = state.window, self.pipe.spec, self.pipe.model.frame_shapes
        if facts.get("checksum") != self.pipe.checksum:
            raise ValueError("it was saved with another checkpoint; open one of this model")
        T = self.pipe.model.predict_frames
        if (*window.v.shape, *window.a.shape) != (1, T, *shapes[0], 1, T, *shapes[1]):
            raise ValueError("its frames have another shape than this model's")
        counts = [int(x) for x in (window.first, window.seed, window.sample)]
        if not all(0 <= count < FARTHEST for count in counts):
            raise ValueError("its frame or seed is out of range")
        labels = self.pipe.label(None)
        if (window.y is None) != (labels is None) or (window.y is not None and window.y.shape != (1, T)):
            raise ValueError("its labels are not this model's")
        if window.y is not None and not state.said:
            self.pipe.label(window.y)
        if len(state.v) > self.streams.run_on or len(state.sound) >= spec.samples_per_frame:
            raise ValueError("more of it waits than can be")
        apart = self._no_streams()
        apart.join("trial", state)
        frames = [chunk for _ in range(3 * pace(apart.n)[0]) for _, chunk in apart.step()]
        kept = (apart.window.v, apart.window.a, *(chunk.wave for chunk in frames))
        if not all(float(x.abs().amax()) < LOUDEST for x in kept):  # nor where they are no numbers
            raise ValueError("its numbers are out of range")

    # ------------------------------------------------------------------------------------------------ life

    def facts(self, film: Film) -> dict:
        """What is saved beside a state, as sample_long.py does."""
        facts = dict(base=f"live_{film.number}", cfg_scale=self.settings.guidance, **self.of_states)
        return facts | ({"negative": self.settings.negative} if self.settings.negative else {})

    def save(self, film: int, path: Path) -> None:
        """Write the state after the last frame shown of a film, which `sample_long.py --resume` takes."""
        film = self.film(film)
        film.state.save(path, **self.facts(film))

    def release(self) -> None:
        """Give the model's memory back; the films stay and go on after `restore`."""
        self._made.clear()
        for film in self.films.values():
            film.follow(None)
            film.leave_clip()
        self.pipe = self.streams = self._steps = self._place = None
        gc.collect()
        allocator.give_back()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def restore(self) -> None:
        """Load the model again, after `release`."""
        self._open()
        for film in self.films.values():
            self.streams.join(str(film.number), film.state)
        self._settle()

    def recover(self, close: bool) -> None:
        """After a failure of a step: films go on after their last frames shown, with what they follow.

        Args:
            close: the youngest film, or begin it anew if it is alone.
        """
        if close:
            number, film = self.films.popitem()
            with suppress(ValueError, OSError, MediaError):
                film.close()
        states = {str(other.number): other.state for other in self.films.values()}
        self.streams = self._no_streams()
        self._made.clear()
        for name, state in states.items():
            self.streams.join(name, state)
            self._give(self.films[int(name)])
        if not self.films:
            turn = self._turn(
                0, film.history.now.label, film.history.now.seed + 1, f"a new film after film {number}", "new"
            )
            self._take_in(self._new(turn), turn)
        self._settle()
