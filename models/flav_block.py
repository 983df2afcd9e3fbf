"""A block of FLAV: attention inside each branch, what passes between them, feed-forward of each."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.fusion import FUSIONS
from models.layers import Attention, Mlp, Recall, add_gated, modulate, norm

Modulation = tuple[Tensor, Tensor]  # of the video and the audio branch, (B,T,k D)


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

    def modulation(self, c_v: Tensor, c_a: Tensor) -> Modulation:
        """Shifts, scales and gates of the attentions, which depend on the conditions (B,T,D) alone."""
        return self.video_adaln(F.silu(c_v)), self.audio_adaln(F.silu(c_a))

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
        of_video, of_audio = modulation or self.modulation(c_v, c_a)
        shift_s, scale_s, gate_s, shift_t, scale_t, gate_t = of_video.chunk(6, dim=-1)
        x = modulate(norm(v), shift_s, scale_s)
        v = add_gated(v, self.spatial_attn(x.flatten(0, 1)).view_as(x), gate_s)
        x = modulate(norm(v), shift_t, scale_t).transpose(1, 2).contiguous()  # (B,L,T,D): a place is a sequence
        v = add_gated(v, self.temporal_attn(x.flatten(0, 1), causal, of_picture).view_as(x).transpose(1, 2), gate_t)

        shift, scale, gate = of_audio.chunk(3, dim=-1)
        x = modulate(norm(a), shift, scale)
        a = add_gated(a, self.audio_attn(x.flatten(1, 2), causal, of_sound).view_as(x), gate)

        v, a, m_v, m_a = self.fusion(v, a, c_v, c_a, causal, at, of_both)
        if not feeds:
            return v, a
        v = self.feed_forward(v, m_v, self.video_mlp_adaln, self.video_mlp)
        a = self.feed_forward(a, m_a, self.audio_mlp_adaln, self.audio_mlp)
        return v, a

    @staticmethod
    def feed_forward(x: Tensor, m: Tensor, adaln: nn.Linear, mlp: nn.Module) -> Tensor:
        shift, scale, gate = adaln(F.silu(m)).chunk(3, dim=-1)
        return add_gated(x, mlp(modulate(norm(x), shift, scale)), gate)
