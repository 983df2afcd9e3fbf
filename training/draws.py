"""The random part of a training step, as functions of (seed, step, place in the global batch)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from diffusion.noise import TrainingDraws, sent, training_draws
from diffusion.pairing import paired
from diffusion.times import draw_times, logit_normal_times
from models.text import Text

FORGET = 0.1  # share of the clips that have no memory, as streams that begin


class Draws:
    """The random part of a step: what the loss needs, as functions of (seed, step, place in the global batch).

    Args:
        rows: places of this process in the global batch.
        shapes: of one clip, (T,C,H,W) and (T,S,M).
        theta: share of clips in pre-rolling. drop: share of labels that become `null_label`, for both branches alike.
        null_label: None for a model without classes.
        independent: share of clips whose picture and sound have different times (`paired_times`).
        cuts: share of clips that become, from a frame on, the clip beside them in the batch if it has another label;
            so frames learn to follow their own label, not the frames before.
        texts: captions -> Text, for a model with text; labels are then the captions of each clip's file.
        ages: of the frames of a memory, which come before those of a clip; shapes count them. A share FORGET of the
            clips has none. Those in pre-rolling have it as others do, though no stream begins so: their frames are all
            nearly noise, and what only a memory tells is learnt from such.
        memory_noise: how far from data the memory's frames may be: their time is uniform in [1 - it, 1]. It is one for
            all of a clip, since sampling shows all of them at 1, which times of their own would hardly ever meet.
    """

    def __init__(
        self,
        seed: int,
        rows: range,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        theta: float,
        drop: float,
        null_label: int | None,
        independent: float = 0.0,
        texts: Callable[[Tensor], Text] | None = None,
        cuts: float = 0.0,
        ages: Sequence[int] = (),
        memory_noise: float = 0.0,
    ):
        self.texts, self.cuts, self.ages = texts, cuts, torch.tensor(sorted(ages, reverse=True))
        self.memory_noise = memory_noise
        self.seed, self.rows, self.shapes = seed, rows, shapes
        self.theta, self.drop, self.null_label, self.independent = theta, drop, null_label, independent

    def __call__(self, step: int, mean: Tensor, std: Tensor, a: Tensor, y: Tensor, start: Tensor | None = None) -> dict:
        """Arguments of `flow_loss` for latents (B,T,...) of this process's clips.

        On the CPU: y (B,), or with texts (B,K), captions of a clip before -1 that fill the row; start (B,), where the
        clips begin in their files, for a memory.
        """
        drawn, v, noise = self._drawn(step, mean, std)
        times = tuple(sent(t, mean.device) for t in self._remembering(self._times(drawn), drawn, start))
        shares = self._shares(drawn, mean.device) | ({"memory": True} if len(self.ages) else {})
        if self.null_label is None:
            return dict(v=v, a=a, times=times, noise=self._paired(noise, (v, a)), y=None, **shares)
        y = chosen_captions(y, drawn.caption) if self.texts else y
        y = y.masked_fill(drawn.drop < self.drop, self.null_label)
        cut = self._cut(drawn, y) if self.cuts else None
        v, a = (x if cut is None else spliced(x, cut) for x in (v, a))
        said = self._said(y, cut, mean)
        return dict(v=v, a=a, times=times, noise=self._paired(noise, (v, a)), **said, **shares)

    @property
    def window(self) -> int:
        """Frames of a clip without those of its memory."""
        return self.shapes[0][0] - len(self.ages)

    def _remembering(
        self, times: tuple[Tensor, Tensor], drawn: TrainingDraws, start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Times (B,K + T): 1, or a little less, of the memory's frames that are there, 0 of the others; the clip's."""
        if not len(self.ages):
            return times
        there = (start.unsqueeze(1) >= self.ages) & (drawn.forget >= FORGET).unsqueeze(1)
        remembered = there * (1 - self.memory_noise * drawn.memory_w.unsqueeze(1))
        return tuple(torch.cat([remembered.to(t), t], 1) for t in times)

    def _drawn(self, step: int, mean: Tensor, std: Tensor) -> tuple[TrainingDraws, Tensor, tuple[Tensor, Tensor]]:
        """All that is random in a step; a draw of the picture's latents, and the noise of both sides, on the device."""
        drawn = training_draws(self.seed, step, self.rows, *self.shapes)
        gaussians = (drawn.posterior, drawn.eps_v, drawn.eps_a)
        posterior, eps_v, eps_a = (sent(x.to(mean.dtype), mean.device) for x in gaussians)
        return drawn, mean + std * posterior, (eps_v, eps_a)

    def _paired(self, noise: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The noise of each clip: as it was drawn."""
        return noise

    def _cut(self, drawn: TrainingDraws, y: Tensor) -> Tensor:
        """(B,T) bool, the frames that become those of the clip beside, where both have labels, and not the same."""
        T, other = self.window, beside(y)
        drawn_so = (drawn.cut < self.cuts) & (y != other) & (y != self.null_label) & (other != self.null_label)
        first = 1 + (drawn.cut_at * (T - 1)).long()
        cut = drawn_so.unsqueeze(1) & (torch.arange(T) >= first.unsqueeze(1))
        return torch.nn.functional.pad(cut, (len(self.ages), 0))  # what is remembered is the clip's own

    def _said(self, y: Tensor, cut: Tensor | None, like: Tensor) -> dict:
        """Labels (B,), or text, of clips; of each frame where clips are cut."""
        if not self.texts:
            y = y if cut is None else spliced(y.unsqueeze(1).expand(cut.shape), cut)
            return {"y": sent(y, like.device)}
        text = self.texts(y)
        if cut is not None:  # a frame's text is the mean of its tokens
            means, there = (x.unsqueeze(1).expand(*cut.shape, *x.shape[1:]) for x in (text.pooled(), text.there))
            text = Text(*(spliced(x, cut).unsqueeze(2) for x in (means, there)))
        return {"y": None, "text": on_device(text, like)}

    def _times(self, drawn: TrainingDraws) -> tuple[Tensor, Tensor]:
        """Times (B,T) of video and audio."""
        early, T = drawn.pre_rolling < self.theta, self.window
        t, t_a = draw_times(drawn.w, early, T), draw_times(drawn.w_a, early, T)
        return paired_times(t, t_a, drawn.independent, self.independent)

    def _shares(self, drawn: TrainingDraws, device: torch.device) -> dict:
        """Which sides count, as `flow_loss` is told: both of all clips."""
        return {}


class HeldDraws(Draws):
    """The random part of a step that trains a link: a side of each clip is given, the other learns (AV-Link, Eq. 5).

    The given side is at its conditioning time in every frame, the other at its usual ones. Sides take turns by chance.

    Args:
        how: as of `Draws`. conditioning_times: of a given picture and of a given sound.
        carries: sides that may be given, of "picture" and "sound".
    """

    def __init__(self, *how, conditioning_times: Sequence[float], carries: Sequence[str]):
        super().__init__(*how)
        self.conditioning_times, self.carries = conditioning_times, carries

    def _given(self, drawn: TrainingDraws) -> tuple[Tensor, Tensor]:
        """(B,) bool of picture and of sound, in which clips it is given."""
        turn = (drawn.independent * len(self.carries)).long()
        return tuple(torch.isin(turn, torch.tensor([i for i, own in enumerate(self.carries) if own == side]))
                     for side in ("picture", "sound"))  # fmt: skip

    def _times(self, drawn: TrainingDraws) -> tuple[Tensor, Tensor]:
        held = zip(super()._times(drawn), self._given(drawn), self.conditioning_times)
        return tuple(torch.where(given.unsqueeze(1), at, t) for t, given, at in held)

    def _shares(self, drawn: TrainingDraws, device: torch.device) -> dict:
        return {"shares": tuple(sent(~given, device) for given in self._given(drawn))}


class ClipDraws(Draws):
    """The random part of a step of a model of whole clips, which has one time for picture and sound (SyncFlow, Eq. 2).

    Args:
        rows, shapes, null_label, texts, drop: as of `Draws`; shapes (T',C,h,w) and (N,M).
        sampling: how times are drawn, a key of TIMES. spread: more of it, such as the mean of logit-normal times.
        pairing: noise is led to clips by optimal transport within so many of them; 0 for none. Costs are compared on
            the CPU, so each step waits for the device.
        alone: the side whose tower alone is called, of a model that has towers of each; None for both.
    Raises:
        ValueError: there is no such way to draw times.
    """

    def __init__(
        self,
        seed: int,
        rows: range,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        null_label: int | None,
        texts: Callable[[Tensor], Text] | None,
        drop: float,
        sampling: str = "uniform",
        spread: Mapping[str, float] | None = None,
        pairing: int = 0,
        alone: str | None = None,
    ):
        if sampling not in TIMES:
            raise ValueError(f"--sampling {sampling} draws no times of whole clips; choose {' or '.join(TIMES)}")
        super().__init__(seed, rows, shapes, 0.0, drop, null_label, texts=texts)
        self.drawn_as, self.pairing = partial(TIMES[sampling], **(spread or {})), pairing
        self.called = {"alone": alone} if alone else {}

    def __call__(self, step: int, mean: Tensor, std: Tensor, a: Tensor, y: Tensor, start: Tensor | None = None) -> dict:
        return super().__call__(step, mean, std, a, y) | self.called

    def _times(self, drawn: TrainingDraws) -> tuple[Tensor, Tensor]:
        """Times (B,), the same of video and audio."""
        t = self.drawn_as(drawn.w)
        return t, t

    def _paired(self, noise: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.pairing:
            return noise
        order = paired(noise, data, self.pairing).to(data[0].device)
        return tuple(eps[order] for eps in noise)


TIMES: dict[str, Callable[[Tensor], Tensor]] = {"uniform": lambda u: u, "logit": logit_normal_times}


def on_device(text: Text, like: Tensor) -> Text:
    """A text where `like` is, in its dtype."""
    return Text(sent(text.tokens.to(like.dtype), like.device), sent(text.mask, like.device))


def beside(x: Tensor) -> Tensor:
    """What the clips beside have, (B,...): clips 0 and 1 of a batch are neighbours, 2 and 3, and so on; B is even."""
    return rearrange(x, "(n two) ... -> n two ...", two=2).flip(1).flatten(0, 1)


def spliced(x: Tensor, cut: Tensor) -> Tensor:
    """x (B,T,...), but that of the clip beside in the frames that are cut, (B,T)."""
    cut = sent(cut, x.device).reshape(*cut.shape, *[1] * (x.ndim - 2))
    return torch.where(cut, beside(x), x)


def chosen_captions(captions: Tensor, u: Tensor) -> Tensor:
    """One of each clip's captions (B,K), which stand before the -1 that fill a row: (B,), -1 where there is none.

    Args:
        u: (B,) uniform in [0, 1).
    """
    counts = (captions >= 0).sum(1)
    chosen = (u * counts).long().clamp(max=captions.shape[1] - 1)
    return captions.gather(1, chosen.unsqueeze(1)).squeeze(1)


def paired_times(t: Tensor, t_a: Tensor, u: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Times (B,T) of video and audio: `t` for both, but in a share of the clips different ones.

    Of these a quarter has a clean picture (t = 1 in every frame), a quarter a clean sound, and half have a sound at
    `t_a`. The clean quarters are what A2V and V2A without guidance meet; independent phases alone, as in UniDiffuser
    (Bao et al., 2023), would never show them. The other half lies between them and the common time, so that the model
    learns to read its two times apart. Pure noise beside a clip is not trained: no mode of sampling asks for it.

    Args:
        t, t_a: (B,T) common times, and those of a second phase. u: (B,) uniform in [0, 1). share: in [0, 1].
    """
    u = rearrange(u, "b -> b 1")
    picture, sound, phase = share / 4, share / 2, share  # the ends of the three kinds
    t_v = t.masked_fill(u < picture, 1)
    t_a = torch.where((sound <= u) & (u < phase), t_a, t)
    return t_v, t_a.masked_fill((picture <= u) & (u < sound), 1)
