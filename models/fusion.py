"""What passes between the picture and the sound branch inside a block: the paper's fusions a, b, c and their control.

A fusion is called between the attentions and the feed-forwards as `fusion(v, a, c_v, c_a, causal)` with video tokens
v (B,T,L,D), audio tokens a (B,T,S,D) and the conditions c_v, c_a (B,T,D) of both branches. It returns
`(v, a, m_v, m_a)`: the tokens, and the conditions that modulate both feed-forwards. In units of one frame, token l of
video frame k stands at time k and audio token s of it at k + s/S, so a block that wants times has them from the shapes.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers import Attention, norm

Fused = tuple[Tensor, Tensor, Tensor, Tensor]


class NoFusion(nn.Module):
    """Nothing passes: two models side by side. The control of every synchrony measurement."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool) -> Fused:
        return v, a, c_v, c_a


class JointAttention(nn.Module):
    """Fusion a: self-attention over the T*(L+S) tokens [v_k ; a_k], block-causal over frames."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.attn = Attention(dim, num_heads)

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool) -> Fused:
        joint = torch.cat([v, a], dim=2)  # (B,T,L+S,D)
        T, N = joint.shape[1:3]
        q, k, w = self.attn.heads(norm(joint).flatten(1, 2))
        if causal and T > 1:
            # A frame sees whole frames, so its keys are a prefix: slices need no mask and no wasted product.
            frames = [(slice(i * N, (i + 1) * N), slice((i + 1) * N)) for i in range(T)]
            out = torch.cat(
                [F.scaled_dot_product_attention(q[:, :, now], k[:, :, past], w[:, :, past]) for now, past in frames], 2
            )
        else:
            out = F.scaled_dot_product_attention(q, k, w)
        joint = joint + self.attn.proj(rearrange(out, "b h (t n) d -> b t n (h d)", t=T))
        return *joint.split([v.shape[2], a.shape[2]], dim=2), c_v, c_a


class PooledExchange(nn.Module):
    """Fusion b: each feed-forward is modulated by the mean token of the other branch."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool) -> Fused:
        return v, a, a.mean(2), v.mean(2)


class ConditionedExchange(nn.Module):
    """Fusion c, the paper's choice: m_v = proj(mean_S a) + c_v and m_a = proj(mean_L v) + c_a."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.from_audio = nn.Linear(dim, dim)
        self.from_video = nn.Linear(dim, dim)

    def pool(self, x: Tensor) -> Tensor:
        """(B,T,N,D) -> (B,T,D)."""
        return x.mean(2)

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool) -> Fused:
        return v, a, self.from_audio(self.pool(a)) + c_v, self.from_video(self.pool(v)) + c_a


class NormedExchange(ConditionedExchange):
    """Fusion c with LayerNorm on the means, so that the size of one branch cannot square through the other's gates."""

    def pool(self, x: Tensor) -> Tensor:
        return norm(super().pool(x))


FUSIONS = {
    "none": NoFusion,
    "a": JointAttention,
    "b": PooledExchange,
    "c": ConditionedExchange,
    "c_norm": NormedExchange,
}
