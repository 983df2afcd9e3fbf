"""A block of FLAV: attention inside each branch, what passes between them, feed-forward of each."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.fusion import FUSIONS
from models.layers import Attention, Mlp, Recall, adaptive, add_gated, modulate, norm

Modulation = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # vectors of the video and the audio branch, (B,T,1,D)


class Block(nn.Module):
    """Attention inside each branch, fusion of the branches, feed-forward of each branch."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, fusion: str):
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.spatial_attn = Attention(dim, num_heads)
        self.temporal_attn = Attention(dim, num_heads)
        self.audio_attn = Attention(dim, num_heads)
        self.video_adaln = nn.Linear(dim, 6 * dim)
        self.audio_adaln = nn.Linear(dim, 3 * dim)
        self.fusion = FUSIONS[fusion](dim, num_heads)
        self.video_mlp = Mlp(dim, hidden)
        self.audio_mlp = Mlp(dim, hidden)
        self.video_mlp_adaln = nn.Linear(dim, 3 * dim)
        self.audio_mlp_adaln = nn.Linear(dim, 3 * dim)

    def modulation(self, c_v: Tensor, c_a: Tensor) -> tuple[Tensor, Tensor]:
        """What of the attentions depends on the conditions (B,T,D) alone, (B,T,6D) and (B,T,3D), for `vectors`."""
        return self.video_adaln(F.silu(c_v)), self.audio_adaln(F.silu(c_a))

    @staticmethod
    def vectors(of_video: Tensor, of_audio: Tensor) -> Modulation:
        """Shifts, 1 + scales and gates: of attention in space and over time, and of that of the sound."""
        return adaptive(of_video, 6), adaptive(of_audio, 3)

    def forward(
        self,
        v: Tensor,
        a: Tensor,
        c_v: Tensor,
        c_a: Tensor,
        causal: bool,
        modulation: Modulation | None = None,
        at: Tensor | None = None,
        recall: Recall | None = None,
        feeds: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """v (B,T,L,D), a (B,T,S,D), conditions (B,T,D) -> v, a; causal: nothing in frame k sees a later frame.

        modulation: of these conditions, if it is known already. at: numbers of the frames, as fusions take them.
        recall: of frames before these, or where to note what these show to later ones. feeds: whether tokens go on
        through the feed-forwards; not where nothing but what they show is asked for.
        """
        of_picture, of_sound, of_both = (recall and recall.of(part) for part in ("picture", "sound", "fusion"))
        of_video, (shift, gain, gate) = modulation or self.vectors(*self.modulation(c_v, c_a))
        shift_s, gain_s, gate_s, shift_t, gain_t, gate_t = of_video
        v = add_gated(v, self.spatial_attn(modulate(norm(v), shift_s, gain_s)), gate_s)
        x = modulate(norm(v), shift_t, gain_t).transpose(1, 2).contiguous()  # (B,L,T,D): a place is a sequence
        v = add_gated(v, self.temporal_attn(x, causal, of_picture).transpose(1, 2), gate_t)

        x = modulate(norm(a), shift, gain).flatten(1, 2)
        a = add_gated(a, self.audio_attn(x, causal, of_sound).view_as(a), gate)

        v, a, m_v, m_a = self.fusion(v, a, c_v, c_a, causal, at, of_both)
        if not feeds:
            return v, a
        v = self.feed_forward(v, m_v, self.video_mlp_adaln, self.video_mlp)
        a = self.feed_forward(a, m_a, self.audio_mlp_adaln, self.audio_mlp)
        return v, a

    @staticmethod
    def feed_forward(x: Tensor, m: Tensor, adaln: nn.Linear, mlp: nn.Module) -> Tensor:
        shift, gain, gate = adaptive(adaln(F.silu(m)), 3)
        return add_gated(x, mlp(modulate(norm(x), shift, gain)), gate)
