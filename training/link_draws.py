"""The random part of a step in which a link between two towers learns (AV-Link, arXiv 2412.15191, Eq. 5, App. C, D)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from diffusion.noise import TrainingDraws, sent
from diffusion.times import logit_normal_times
from models.link import SIDES
from models.text import Text
from training.draws import Draws, chosen_captions, on_device

MADE_DROP, GIVEN_DROP = 0.5, 0.2  # shares of texts that are dropped: of the side that is made, and of the given one
BYPASS = 0.1  # share of clips through which nothing passes, without text: what guidance leads away from


class LinkDraws(Draws):
    """What the loss needs where one side of each clip is made for the other, as functions of (seed, step, place).

    Args:
        rows, shapes, null_label, texts: as of `ClipDraws`; texts None for models that are told none.
        made: the sides that are learnt to be made; of two, each clip has one of them, the next step the other.
        conditioning_times: of a given picture and of a given sound; None for uniform ones.
        reinject: whether the given side of the model hears the one that is made.
        spread: mean and std of the logit of the made side's time, where other than -1 and 1.
    """

    def __init__(
        self,
        seed: int,
        rows: range,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        null_label: int,
        texts: Callable[[Tensor], Text] | None,
        made: tuple[str, ...] = SIDES,
        conditioning_times: Sequence[float] | None = None,
        reinject: bool = True,
        spread: Mapping[str, float] | None = None,
    ):
        super().__init__(seed, rows, shapes, 0.0, 0.0, null_label, texts=texts)
        self.made, self.conditioning_times, self.reinject = made, conditioning_times, reinject
        self.drawn_as = partial(logit_normal_times, **{"mean": -1.0, "std": 1.0, **(spread or {})})

    def __call__(self, step: int, mean: Tensor, std: Tensor, a: Tensor, y: Tensor, start: Tensor | None = None) -> dict:
        """Arguments of `flow_loss` for latents (B,T',C,h,w), (B,N,M) of this process's clips, captions y (B,K)."""
        drawn, v, noise = self._drawn(step, mean, std)
        turns = (torch.tensor(self.rows) + step) % len(self.made)
        is_made = torch.stack([turns == self.made.index(side) if side in self.made else turns < 0 for side in SIDES], 1)
        bypass = (drawn.cut < BYPASS).unsqueeze(1) | (~is_made & (not self.reinject))
        inputs = {"v": v, "a": a, "noise": noise, "y": None, "bypass": sent(bypass, v.device)}
        inputs["times"] = tuple(sent(t, v.device) for t in self._times_of(drawn, is_made))
        if len(self.made) == len(SIDES):
            inputs["shares"] = tuple(sent(x.to(v.dtype) * len(SIDES), v.device) for x in is_made.unbind(1))
        else:
            inputs["given"] = next(side for side in SIDES if side not in self.made)
        return inputs | (self._told(drawn, is_made, y, v) if self.texts else {})

    def _times_of(self, drawn: TrainingDraws, is_made: Tensor) -> tuple[Tensor, Tensor]:
        """Times (B,) of picture and sound."""
        made, uniform = self.drawn_as(drawn.w), drawn.w_a
        held = self.conditioning_times
        given = [uniform] * len(SIDES) if held is None else [torch.full_like(uniform, at) for at in held]
        return tuple(torch.where(is_made[:, i], made, given[i]) for i in range(len(SIDES)))

    def _told(self, drawn: TrainingDraws, is_made: Tensor, y: Tensor, like: Tensor) -> dict:
        """Text of each side, of which more are dropped where it is made."""
        y = chosen_captions(y, drawn.caption)
        bypassed = drawn.cut < BYPASS
        dropped = torch.where(is_made, (drawn.drop < MADE_DROP).unsqueeze(1),
                              (drawn.independent < GIVEN_DROP).unsqueeze(1))  # fmt: skip
        texts = (self.texts(y.masked_fill(bypassed | drop, self.null_label)) for drop in dropped.unbind(1))
        return dict(zip(("text", "text_a"), (on_device(text, like) for text in texts)))
