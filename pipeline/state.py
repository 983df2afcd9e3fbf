"""All that a stream needs to go on, as a value and as a file."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as shown
from textwrap import shorten

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffusion.noise import Modality
from diffusion.pace import pace
from diffusion.rolling import Window
from models.text import NULL_TEXT
from pipeline.dtypes import is_dtype
from pipeline.prompts import Said


@dataclass(frozen=True)
class Past:
    """Real frames that the window still holds when a clip is extended: v (P,C,h,w), a (P,S,M), from `first` on.

    seed: of their noise, which a fork leaves as it is.
    """

    v: Tensor
    a: Tensor
    first: int
    seed: int

    def since(self, frame: int) -> "Past | None":
        """What is left of it in a window that begins at a frame."""
        gone = max(0, frame - self.first)
        return Past(self.v[gone:], self.a[gone:], self.first + gone, self.seed) if gone < len(self.v) else None

    def __contains__(self, frame: int) -> bool:
        return 0 <= frame - self.first < len(self.v)

    def fetch(self, modality: Modality, frame: int) -> Tensor | None:
        return (self.v if modality is Modality.VIDEO else self.a)[frame - self.first] if frame in self else None


@dataclass(frozen=True)
class StreamState:
    """A stream after the last frame it gave out: all that is needed to go on, bit for bit on the same machine.

    window: of one row. num_timesteps: steps n per frame, in which the window counts; 1 for n = 1/m, so in frames.
    v (P,C,h,w), a (P,S,M): frames that were made but wait for their sound. sound: samples of the next frames that are
    known already. voice: state of the vocoder stream. past: of an extended clip. said: the texts that labels of the
    window stand for.
    """

    window: Window
    num_timesteps: int
    v: Tensor
    a: Tensor
    sound: Tensor
    voice: dict[str, Tensor] = field(default_factory=dict)
    past: Past | None = None
    said: Said | None = None

    @property
    def frame(self) -> int:
        """Index of the next frame to be given out."""
        return int(self.window.first) - len(self.v)

    @property
    def solver(self) -> str:
        """By which the stream was made, "euler" or "ab2"."""
        return "euler" if self.window.dv is None else "ab2"

    def retimed(self, n: float) -> "StreamState":
        """The same stream with n steps per frame from here on, or for n = 1/m with m frames per step.

        Raises:
            ValueError: the window is between two times that n steps visit; at a frame boundary it never is.
        """
        unit = pace(n)[0]
        step, rest = divmod(int(self.window.step) * unit, self.num_timesteps)
        if rest:
            raise ValueError(
                f"num_timesteps cannot change from {self.num_timesteps} to {n:g} at step {int(self.window.step)} of "
                "this window; change it at a frame boundary"
            )
        return replace(self, num_timesteps=unit, window=replace(self.window, step=torch.tensor([step])))

    def forked(self, seed: int) -> "StreamState":
        """The same stream with the noise of another seed for the frames that are yet to enter the window."""
        return replace(self, window=replace(self.window, seed=torch.tensor([seed])))

    def save(self, path: Path, **facts) -> None:
        """Write a safetensors file with `facts` beside the state; it appears complete or not at all."""
        window = self.window
        if self.said and self.said.texts:
            said, window = self._said_of(window)
            facts = {**facts, "prompts": said.texts}
        tensors = {f"window.{k}": x for k, x in vars(window).items() if x is not None}
        tensors |= {"said.vectors": said.vectors} if "prompts" in facts else {}
        tensors |= {"v": self.v, "a": self.a, "sound": self.sound}
        tensors |= {f"voice.{k}": x for k, x in self.voice.items()}
        facts["num_timesteps"] = self.num_timesteps
        if self.past:
            tensors |= {"past.v": self.past.v, "past.a": self.past.a}
            facts |= {"past_first": self.past.first, "past_seed": self.past.seed}
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        tensors = {k: x.cpu().contiguous() for k, x in tensors.items()}
        part.write_bytes(save(tensors, {"facts": json.dumps(facts)}))  # save_file lets nobody else read
        part.replace(path)

    def _said_of(self, window: Window) -> tuple[Said, Window]:
        """The texts of a window and of its past, and it with labels among these."""
        if window.past_y is None:
            said, y = self.said.only(window.y)
            return said, replace(window, y=y)
        said, y = self.said.only(torch.cat([window.past_y, window.y], 1))
        return said, replace(window, past_y=y[:, : -window.T], y=y[:, -window.T :])

    @classmethod
    def load(cls, path: Path) -> tuple["StreamState", dict]:
        """The state and the facts of a file.

        Raises:
            ValueError: it is not a complete state file.
        """
        try:
            data = Path(path).read_bytes()  # once: safe_open reads twice, and the file may be replaced in between
            tensors = load(data)
            facts = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["facts"])
            window = Window(**{"y": None, **_part(tensors, "window")})
            past = _part(tensors, "past")
            past = Past(**past, first=facts["past_first"], seed=facts["past_seed"]) if past else None
            made = (tensors[key] for key in ("v", "a", "sound"))
            said = Said(tuple(facts["prompts"]), tensors["said.vectors"]) if "prompts" in facts else None
            state = cls(window, facts["num_timesteps"], *made, _part(tensors, "voice"), past, said)
            _check(state, facts)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is no complete stream state ({shorten(str(error), 200)}); give one that --save-state wrote"
            ) from None
        return state, facts


def _check(state: StreamState, facts: dict) -> None:
    """Raise a ValueError where a state from a file could not go on, or its `base` would name a file elsewhere."""
    window, n = state.window, state.num_timesteps
    counts = (window.first, window.step, window.seed, window.sample)
    if type(n) is not int or n < 1 or any(x.shape != (1,) or x.dtype != torch.int64 for x in counts):
        raise ValueError("its counters are no whole numbers")
    if not 0 <= int(window.step) < n * (window.T if window.v.ndim == 5 else 0) or int(window.first) < len(state.v):
        raise ValueError("its counters are out of range")
    frames = [(state.v, state.a), *([(state.past.v, state.past.a)] if state.past else [])]
    frames += [(window.past_v[0], window.past_a[0])] if window.past_v is not None else []
    shapes = [(x.shape[1:], window.v.shape[2:], y.shape[1:], window.a.shape[2:]) for x, y in frames]
    if any(v != of_v or a != of_a for v, of_v, a, of_a in shapes) or state.sound.ndim != 1:
        raise ValueError("its frames differ in shape")
    _check_velocities(window)
    _check_said(state)
    base = facts.get("base", "state")
    if not isinstance(base, str) or base in ("", "..") or base != Path(base).name:
        raise ValueError(f"its base {shown(base)} is no plain file name")
    if not isinstance(facts.get("negative", ""), str):
        raise ValueError(f"its negative prompt {shown(facts['negative'])} is no text")
    if not is_dtype(facts.get("dtype", "float32")):
        raise ValueError(f"its type of numbers {shown(facts['dtype'])} is none")
    if type(facts.get("cfg_scale", 1.0)) not in (int, float):
        raise ValueError(f"its cfg scale {shown(facts['cfg_scale'])} is no number")


def _check_velocities(window: Window) -> None:
    """Those of the solver AB2: all there, each of its frame, or none."""
    there = [x for x in (window.dv, window.da, window.t_before) if x is not None]
    shapes = [window.v.shape, window.a.shape, window.v.shape[:2]]
    if there and ([x.shape for x in there] != shapes or window.t_before.dtype != torch.float64):
        raise ValueError("its velocities are not those of its frames")


def _check_said(state: StreamState) -> None:
    said, y, past = state.said, state.window.y, state.window.past_y
    y = y if past is None or y is None else torch.cat([past, y], 1)
    if said and (not all(isinstance(text, str) for text in said.texts) or said.vectors.ndim != 2):
        raise ValueError("its prompts are no texts")
    if said and (len(said.vectors) != len(said.texts) or y is None or not NULL_TEXT <= int(y.min())):
        raise ValueError("its prompts are not as many as their vectors")
    if said and int(y.max()) >= len(said.texts):
        raise ValueError("its labels have no prompt")


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
