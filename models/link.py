"""What passes between two towers after a layer of both: AV-Link's fusion (arXiv 2412.15191, Eq. 3, 4) and rivals.

    told = block(picture, sound, c, at_picture, at_sound, told=("sound",))   # what is added to the sides that are told

`picture` (B,T,L,D_v) and `sound` (B,N,1,D_a) are the towers' tokens by frame, `c` (B,D) the embedding of both flow
times, `at_*` (T,) and (N,) where frames stand on the time axis that both share. Fresh blocks give zeros. A new kind is
one class and one line in LINKS.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import CrossAttention, Mlp, norm, time_features

SIDES = ("picture", "sound")
FEATURES = 256  # of each flow time

Told = tuple[Tensor | None, Tensor | None]


class TimesEmbed(nn.Module):
    """Flow times of both sides, joined, so that (t, t_a) and (t_a, t) differ: (B,) and (B,) -> (B,D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor, t_a: Tensor) -> Tensor:
        both = torch.cat([time_features(x, FEATURES) for x in (t, t_a)], dim=-1)
        return self.mlp(both.to(self.mlp[0].weight.dtype))


class FusionBlock(nn.Module):
    """Joint self-attention over the tokens of both sides, then a feed-forward; each side has weights of its own.

    x~_m = enter_m(x_m);  u_m = gate_m Attn(x~_v, x~_a)_m;  u_m += gate'_m MLP_m(x~_m + u_m);  leave_m(u_m) is added to
    x_m (Eq. 3), where adaLN-Zero modulates each side's input of attention and feed-forward by both times. Queries and
    keys are turned by their frame's time (Eq. 4), so what is seen depends on differences of times alone.

    Args:
        widths: D_v, D_a of the towers. dim, num_heads: of the block.
    Attributes:
        timed: whether it looks at the flow times.
    """

    timed = True

    def __init__(self, widths: tuple[int, int], dim: int, num_heads: int):
        super().__init__()
        self.enter = _of_each(lambda width: nn.Linear(width, dim), widths)
        self.modulation = _of_each(lambda _: nn.Linear(dim, 6 * dim), widths)
        self.attn = _of_each(lambda _: CrossAttention(dim, num_heads), widths)
        self.mlp = _of_each(lambda _: Mlp(dim, 4 * dim), widths)
        self.leave = _of_each(lambda width: nn.Linear(dim, width), widths)

    def heard(self, side: str) -> tuple[str, ...]:
        """The sides whose tokens are keys of this one's queries."""
        return SIDES

    @property
    def gates(self) -> list[nn.Linear]:
        """What is zero at the start, so that the block gives zeros."""
        return [*self.modulation.values()]

    def parts(self, told: Sequence[str]) -> list[nn.Module]:
        """What serves to tell these sides: all that can learn where the others are not told."""
        heard = {other for side in told for other in self.heard(side)}
        both = [of[side] for side in SIDES if side in heard | {*told} for of in (self.enter, self.modulation)]
        keys = [part for side in heard for part in (self.attn[side].key_value, self.attn[side].key_norm)]
        own = [part for side in told for part in
               (self.attn[side].query, self.attn[side].query_norm, self.attn[side].proj, self.mlp[side],
                self.leave[side])]  # fmt: skip
        return [*both, *keys, *own]

    def forward(
        self,
        picture: Tensor,
        sound: Tensor,
        c: Tensor,
        at_picture: Tensor,
        at_sound: Tensor,
        told: Sequence[str] = SIDES,
    ) -> Told:
        """What is added to each side that is told, shaped like it; None for the others."""
        frames = dict(zip(SIDES, (picture, sound)))
        at = {side: x.repeat_interleave(frames[side].shape[2]) for side, x in zip(SIDES, (at_picture, at_sound))}
        heard = {other for side in told for other in self.heard(side)}
        used = [side for side in SIDES if side in heard | {*told}]
        x = {side: self.enter[side](frames[side].flatten(1, 2)) for side in used}
        six = {side: self.modulation[side](F.silu(c)).unsqueeze(1).chunk(6, dim=-1) for side in used}  # (B,1,D) each
        shown = {side: norm(x[side]) * (1 + six[side][1]) + six[side][0] for side in used}
        keys = {side: self.attn[side].keys_values(shown[side], at[side]) for side in used if side in heard}
        joined = {others: _joined([keys[other] for other in others]) for others in map(self.heard, told)}
        inside = {side: (x[side], shown[side], six[side], joined[self.heard(side)], at[side]) for side in told}
        return tuple(self._update(side, *inside[side]).view_as(frames[side]) if side in told else None
                     for side in SIDES)  # fmt: skip

    def _update(
        self, side: str, x: Tensor, shown: Tensor, six: Sequence[Tensor], keys: tuple[Tensor, Tensor], at: Tensor
    ) -> Tensor:
        """What is added to the tokens of a side, (B,T*L,D_m): of x inside the block, as it is shown to attentions."""
        gate, shift, scale, gate_m = six[2:]
        u = gate * self.attn[side].attended(self.attn[side].queries(shown, at), *keys)
        u = u + gate_m * self.mlp[side](norm(x + u) * (1 + scale) + shift)
        return self.leave[side](u)


class SymmetricCross(FusionBlock):
    """Two cross-attentions instead: each side sees the other's tokens alone."""

    def heard(self, side: str) -> tuple[str, ...]:
        return tuple(other for other in SIDES if other != side)


class DirectAlignment(nn.Module):
    """No attention: to each frame's tokens is added a linear map of the mean token of the other side's nearest frame.

    Args:
        widths: D_v, D_a of the towers. dim, num_heads: for the sake of one signature.
    """

    timed = False

    def __init__(self, widths: tuple[int, int], dim: int, num_heads: int):
        super().__init__()
        self.leave = nn.ModuleDict({side: nn.Linear(other, width) for side, width, other in
                                    zip(SIDES, widths, reversed(widths))})  # fmt: skip

    @property
    def gates(self) -> list[nn.Linear]:
        """What is zero at the start, so that the block gives zeros."""
        return [*self.leave.values()]

    def parts(self, told: Sequence[str]) -> list[nn.Module]:
        """What serves to tell these sides."""
        return [self.leave[side] for side in told]

    def forward(
        self,
        picture: Tensor,
        sound: Tensor,
        c: Tensor,
        at_picture: Tensor,
        at_sound: Tensor,
        told: Sequence[str] = SIDES,
    ) -> Told:
        """As of `FusionBlock`, broadcast over the tokens of a frame."""
        sides = zip(SIDES, (at_picture, at_sound), (sound, picture), (at_sound, at_picture))
        return tuple(self.leave[side](norm(_nearest(other, at, other_at))) if side in told else None
                     for side, at, other, other_at in sides)  # fmt: skip


def _nearest(x: Tensor, at: Tensor, x_at: Tensor) -> Tensor:
    """Mean token of the frames of x (B,K,L,D), at (K,), that are nearest to the places `at` (N,): (B,N,1,D)."""
    nearest = (at.unsqueeze(1) - x_at).abs().argmin(1)
    return x.mean(2, keepdim=True)[:, nearest]


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values of several sides in a row."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(x, 2) for x in zip(*parts))


def _of_each(make: Callable[[int], nn.Module], widths: tuple[int, int]) -> nn.ModuleDict:
    return nn.ModuleDict({side: make(width) for side, width in zip(SIDES, widths)})


LINKS: dict[str, type[nn.Module]] = {
    "fusion": FusionBlock,
    "symcross": SymmetricCross,
    "direct": DirectAlignment,
}
