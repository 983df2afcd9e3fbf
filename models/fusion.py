"""What passes between picture and sound inside a block: R-FLAV's fusions, their control, SyncFlow's adaptor, a link.

A fusion is called between the attentions and the feed-forwards as `fusion(v, a, c_v, c_a, causal)` with video tokens
v (B,T,L,D), audio tokens a (B,T,S,D) and the conditions c_v, c_a (B,T,D) of both branches. It returns
`(v, a, m_v, m_a)`: the tokens, and the conditions that modulate both feed-forwards. In units of one frame, token l of
video frame k stands at time k and audio token s of it at k + s/S; `at` (T,) are the numbers k, 0 to T - 1 if None.
`recall` are keys and values of frames before these, or where to note those of these. `carries` names the sides that
reach the other one.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers import Attention, Mlp, Recall, adaptive, add_gated, modulate, norm, rotated

Fused = tuple[Tensor, Tensor, Tensor, Tensor]
CONDITIONING_TIMES = (0.96, 0.8)  # of a given picture and of a given sound, as AV-Link holds them (Sec. 4.4)


class Fusion(nn.Module):
    """What all have in common."""

    carries: ClassVar[tuple[str, ...]] = ("picture", "sound")


class NoFusion(Fusion):
    """Nothing passes: two models side by side. The control of every synchrony measurement."""

    carries = ()

    def __init__(self, dim: int, num_heads: int):
        super().__init__()

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool, at=None, recall=None) -> Fused:
        return v, a, c_v, c_a


class JointAttention(Fusion):
    """Fusion a: self-attention over the T*(L+S) tokens [v_k ; a_k], block-causal over frames."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.attn = Attention(dim, num_heads)

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool, at=None, recall=None) -> Fused:
        joint = torch.cat([v, a], dim=2)  # (B,T,L+S,D)
        T = joint.shape[1]
        out = seen_by_frames(*self.attn.heads(norm(joint).flatten(1, 2)), T, causal, recall)
        joint = joint + self.attn.proj(rearrange(out, "b h (t n) d -> b t n (h d)", t=T))
        return *joint.split([v.shape[2], a.shape[2]], dim=2), c_v, c_a


class PooledExchange(Fusion):
    """Fusion b: each feed-forward is modulated by the mean token of the other branch."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool, at=None, recall=None) -> Fused:
        return v, a, a.mean(2), v.mean(2)


class ConditionedExchange(Fusion):
    """Fusion c, the paper's choice: m_v = proj(mean_S a) + c_v and m_a = proj(mean_L v) + c_a."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.from_audio = nn.Linear(dim, dim)
        self.from_video = nn.Linear(dim, dim)

    def pool(self, x: Tensor) -> Tensor:
        """(B,T,N,D) -> (B,T,D)."""
        return x.mean(2)

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool, at=None, recall=None) -> Fused:
        return v, a, self.from_audio(self.pool(a)) + c_v, self.from_video(self.pool(v)) + c_a


class NormedExchange(ConditionedExchange):
    """Fusion c with LayerNorm on the means, so that the size of one branch cannot square through the other's gates."""

    def pool(self, x: Tensor) -> Tensor:
        return norm(super().pool(x))


class Adaptor(Fusion):
    """SyncFlow's adaptor (arXiv 2412.15220) as it rolls: the sound hears the picture, up to its own frame.

    h = Linear(LayerNorm(SelfAttn(F))) over the patches F of all frames, then cross-attention of the sound to h, zero at
    the start; both with rotary positions by time. SyncFlow's token of the time is left out: here the branch has it.
    """

    carries = ("picture",)

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.patch_attn = Attention(dim, num_heads)
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.cross = nn.ModuleDict({"query": nn.Linear(dim, dim), "key_value": nn.Linear(dim, 2 * dim)})
        self.cross["proj"] = nn.Linear(dim, dim)

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool, at=None, recall=None) -> Fused:
        T, heads = v.shape[1], self.patch_attn.num_heads
        recalls = [recall and recall.of(part) for part in ("patches", "sound")]
        of_patches, of_sound = (x.flatten() for x in times(v, a, at))
        q, k, w = self.patch_attn.heads(norm(v).flatten(1, 2))
        seen = seen_by_frames(*rotated(torch.stack([q, k]), of_patches), w, T, causal, recalls[0])
        shown = self.patch_attn.proj(seen.transpose(1, 2).flatten(2)).to(v.dtype)  # under autocast as wide as outside
        shown = self.linear(self.norm(shown))  # (B,T*L,D)
        q = self.cross["query"](norm(a).flatten(1, 2)).unflatten(-1, (heads, -1)).transpose(1, 2)
        k, w = self.cross["key_value"](shown).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        heard = seen_by_frames(rotated(q, of_sound), rotated(k, of_patches), w, T, causal, recalls[1])
        return v, a + self.cross["proj"](heard.transpose(1, 2).flatten(2)).view_as(a), c_v, c_a


class LinkSide(nn.Module):
    """What one modality has of its own in a link: a way in and out, modulation, attention, feed-forward."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.enter, self.back = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.adaln = nn.Linear(2 * dim, 6 * dim)
        self.attn = Attention(dim, num_heads)
        self.query_norm, self.key_norm = (nn.RMSNorm(dim // num_heads, eps=1e-6) for _ in range(2))
        self.mlp = Mlp(dim, 4 * dim)

    def inside(self, x: Tensor, both: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """x (B,T,N,D), both times' conditions (B,T,2D) -> it inside; its queries, keys, values; its modulation."""
        x = self.enter(x).to(x.dtype)  # under autocast as wide as the branch outside
        modulation = adaptive(self.adaln(both), 6)
        q, k, w = self.attn.heads(modulate(norm(x), *modulation[:2]).flatten(1, 2))
        heads = self.query_norm(q).to(w.dtype), self.key_norm(k).to(w.dtype), w  # autocast would cast each prefix anew
        return x, tuple(y.unflatten(2, x.shape[1:3]) for y in heads), modulation[2:]  # (B,heads,T,N,d)

    def outside(self, x: Tensor, seen: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """What x (B,T,N,D) inside gains from what it has seen (B,T,N,D), for the branch outside."""
        gate, shift, gain, gate_m = modulation
        y = add_gated(x, self.attn.proj(seen), gate)
        y = add_gated(y, self.mlp(modulate(norm(y), shift, gain)), gate_m)
        return self.back(y - x)


class Link(Fusion):
    """AV-Link's fusion block (arXiv 2412.15191, Eq. 3 and 4) as it rolls: joint attention, block-causal over frames.

    Both sides are modulated by both times' conditions of their frame, joined; queries and keys, of unit size (QK norm),
    are turned by the time that each token stands at. The gates are zero at the start, so a linked model is then the one
    without a link.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.video, self.audio = LinkSide(dim, num_heads), LinkSide(dim, num_heads)

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool, at=None, recall=None) -> Fused:
        T, both = v.shape[1], F.silu(torch.cat([c_v, c_a], dim=-1))
        (x_v, heads_v, m_v), (x_a, heads_a, m_a) = self.video.inside(v, both), self.audio.inside(a, both)
        q, k, w = (torch.cat(pair, dim=3).flatten(2, 3) for pair in zip(heads_v, heads_a))
        q, k = rotated(torch.stack([q, k]), torch.cat(times(v, a, at), dim=1).flatten())
        seen = rearrange(seen_by_frames(q, k, w, T, causal, recall), "b h (t n) d -> b t n (h d)", t=T)
        seen_v, seen_a = (x.contiguous() for x in seen.split([v.shape[2], a.shape[2]], dim=2))
        return v + self.video.outside(x_v, seen_v, m_v), a + self.audio.outside(x_a, seen_a, m_a), c_v, c_a


def seen_by_frames(q: Tensor, k: Tensor, w: Tensor, T: int, causal: bool, recall: Recall | None = None) -> Tensor:
    """Attention among the tokens of T frames: q (B,heads,T*n,d), keys k and values w (B,heads,T*m,d) -> as q.

    causal: a frame sees whole frames up to its own, so its keys are a prefix: slices need no mask and waste no product.
    recall: of frames before these, which all see.
    """
    n, m = q.shape[2] // T, k.shape[2] // T
    if recall is not None:
        k, w = recall(k, w)
    if not causal or T == 1:
        return F.scaled_dot_product_attention(q, k, w)
    before = k.shape[2] - T * m
    frames = [(slice(i * n, (i + 1) * n), slice(before + (i + 1) * m)) for i in range(T)]
    return torch.cat(
        [F.scaled_dot_product_attention(q[:, :, now], k[:, :, past], w[:, :, past]) for now, past in frames], 2
    )


def times(v: Tensor, a: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """When the tokens v (B,T,L,D) and a (B,T,S,D) stand, in mel frames since the window began: (T,L) and (T,S).

    A frame's patches stand where it begins, as its first mel frame does. Rotary positions compare times, so it does not
    matter where a window begins in its stream.

    Args:
        at: numbers (T,) of the frames, below 0 before the window; 0 to T - 1 if None.
    """
    (T, L), S = v.shape[1:3], a.shape[2]
    at = torch.arange(T, device=a.device) if at is None else at
    mel = at.unsqueeze(1) * S + torch.arange(S, device=a.device)
    return mel[:, :1].expand(T, L), mel


def check_heads(dim: int, num_heads: int) -> None:
    """Raise a ValueError if rotary positions, which turn pairs of numbers, do not fit the heads."""
    if dim % (2 * num_heads):
        raise ValueError(f"hidden size {dim} does not give {num_heads} heads of even width; choose other heads")


def placed(fusion_blocks: Sequence[int] | None, depth: int) -> Sequence[int]:
    """Numbers of the blocks that have the fusion, of `depth` blocks; None is all.

    Raises:
        ValueError: they are not some of the blocks, each once.
    """
    blocks = range(depth) if fusion_blocks is None else fusion_blocks
    if not blocks or len({*blocks}) < len(blocks) or not {*blocks} <= {*range(depth)}:
        raise ValueError(f"fusion blocks {list(blocks)} are not some of {depth} blocks, each once; choose from 0 to "
                         f"{depth - 1}")  # fmt: skip
    return blocks


def check_conditioning_times(times: Sequence[float]) -> None:
    """Raise a ValueError unless these are times of a given picture and a given sound, both in (0, 1]."""
    if len(times) != 2 or any(isinstance(t, str) or not 0 < t <= 1 for t in times):
        raise ValueError(f"conditioning times {list(times)} are not two in (0, 1], of a given picture and of a given "
                         "sound; the paper's are 0.96 and 0.8")  # fmt: skip


FUSIONS = {
    "none": NoFusion,
    "a": JointAttention,
    "b": PooledExchange,
    "c": ConditionedExchange,
    "c_norm": NormedExchange,
    "adaptor": Adaptor,
    "link": Link,
}
