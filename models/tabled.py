"""A model whose conditions are looked up: the times of sampling are known before its first step."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.flav import FLAV, Conditioned, Kept

ROWS = 1024  # largest table, 350 kB a row for FLAV-B/1 in float32
MET = 4  # sets of times and labels whose rows are kept as the model takes them: a film has as many as steps a frame


class Remembered(Protocol):
    """Clean frames of the past: v (B,K,C,H,W), a (B,K,S,M) on the device; t (B,K) and labels y or None on the CPU."""

    v: Tensor
    a: Tensor
    t: Tensor
    y: Tensor | None


class TabledFLAV:
    """FLAV for sampling in which each frame takes `steps` steps from noise to data, so at times s / steps, s whole.

    What depends on time and label alone (time embedding, the modulation of every block and head) is computed once per
    label, for all times and the model's conditioning times, and then looked up: the same up to rounding. Calls at other
    times, or with more labels than a table holds, compute it as ever; with `steps` None all calls do.

    Args:
        prompts: prompts() -> (P,D_t) on the model's device, for a model with text; rows are only ever added.
        forward: called in the model's place, with the arguments of `FLAV.forward`.
    """

    def __init__(
        self,
        model: FLAV,
        steps: int | None,
        prompts: Callable[[], Tensor | None] = lambda: None,
        forward: Callable | None = None,
    ):
        self.model, self.steps, self.prompts, self.forward = model, steps, prompts, forward or model
        schedule = [] if steps is None else [s / steps for s in range(steps + 1)]
        self.times = torch.tensor([*schedule, *(model.conditioning_times or ())], dtype=torch.float64)
        self.video = self.audio = None  # (labels * times, K) each, as of `FLAV.conditions`
        self._kept = None, None  # a memory, and what it shows to the window: computed once for all steps of a frame
        self.starts = torch.full((model.num_classes + 2,), -1)  # first row of each label from -1 on; -1: no rows
        self._met: dict[tuple, Conditioned] = {}

    def __call__(
        self,
        v: Tensor,
        a: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        t_a: Tensor | None = None,
        memory: Remembered | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `FLAV.forward`; t, t_a and y lie on the CPU, where choosing a row waits for no device.

        memory: of the clips, if the model has one; what it shows is kept for calls with the very same.
        """
        conditions, kept = self.conditions(t, y, t if t_a is None else t_a), self._shown_by(memory)
        t, y, t_a = (None if x is None else x.to(v.device, non_blocking=True) for x in (t, y, t_a))
        how = dict(prompts=self.prompts(), conditions=conditions, kept=kept)
        if torch.is_grad_enabled():
            return self.forward(v, a, t, y, t_a, **how)
        with torch.inference_mode():  # a twentieth of a small model's call; what leaves it is a tensor like others
            velocities = self.forward(v, a, t, y, t_a, **how)
        return tuple(x.clone() for x in velocities)

    @torch.no_grad()
    def _shown_by(self, memory: Remembered | None) -> Kept | None:
        if memory is None:
            return None
        if self._kept[0] is not memory:
            v, a = (x.to(self.model.video_patch_pos.dtype) for x in (memory.v, memory.a))
            t, y = (None if x is None else x.to(v.device, non_blocking=True) for x in (memory.t, memory.y))
            conditions = self.conditions(memory.t, memory.y, memory.t)
            self._kept = memory, self.model.remember(v, a, t, y, self.prompts(), conditions)
        return self._kept[1]

    @torch.no_grad()
    def conditions(self, t: Tensor, y: Tensor | None, t_a: Tensor) -> Conditioned | None:
        """Rows of the tables for (B,T) times, as the model takes them; None where there is one that the tables lack."""
        if self.steps is None:
            return None
        key = tuple(None if x is None else (x.shape, x.numpy().tobytes()) for x in (t, y, t_a))
        if key not in self._met:
            if (rows := self._rows(t, y, t_a)) is None:
                return None
            while len(self._met) >= MET:
                self._met.pop(next(iter(self._met)))
            self._met[key] = self.model.parted(*rows)
        return self._met[key]

    def _rows(self, t: Tensor, y: Tensor | None, t_a: Tensor) -> tuple[Tensor, Tensor] | None:
        at, at_a = self._places(t), self._places(t_a)
        if not (torch.equal(self.times[at], t) and torch.equal(self.times[at_a], t_a)):
            return None
        place = (torch.tensor(self.model.null_label) if y is None else y) + 1
        if (more := int(place.max()) + 1 - len(self.starts)) > 0:
            self.starts = F.pad(self.starts, (0, more), value=-1)
        if (self.starts[place] < 0).any() and not self._take_in(place[self.starts[place] < 0].unique().tolist()):
            return None
        start = self.starts[place if place.ndim != 1 else place.unsqueeze(1)]
        rows = ((start + place).to(self.video.device, non_blocking=True) for place in (at, at_a))
        return tuple(F.embedding(row, table) for row, table in zip(rows, (self.video, self.audio)))

    def _places(self, t: Tensor) -> Tensor:
        """Where times (B,T) stand in the list of times, if they do."""
        place = (t * self.steps).round().long()
        for i in range(self.steps + 1, len(self.times)):
            place = torch.where(t == self.times[i], i, place)
        return place

    @torch.no_grad()
    def _take_in(self, places: list[int]) -> bool:
        """Append the rows of new labels, each one less than its place; False if there is no room for them."""
        rows, device = len(self.times), self.model.video_patch_pos.device
        if ((self.starts >= 0).sum() + len(places)) * rows > ROWS:
            return False
        t = self.times.to(device).unsqueeze(0)
        for place in places:
            y = None if place - 1 == self.model.null_label else torch.tensor([place - 1], device=device)
            self.starts[place] = (self.starts >= 0).sum() * rows
            new = (x.squeeze(0) for x in self.model.conditions(t, y, prompts=self.prompts()))
            old = (self.video, self.audio)
            self.video, self.audio = (y if x is None else torch.cat([x, y]) for x, y in zip(old, new))
        return True
