"""The plain side of every comparison: the transformer and the rolling sampler of R-FLAV, as one writes them first.

Attention is torch's fused kernel after one qkv map, and the rest is common practice too; but every step sees all
frames of the window, and nothing is skipped, kept from step to step or done beside something else. It shares no code
with `models/` and `diffusion/` and takes the weights of a `FLAV` by the same names, with fusion none, a, b or c.
tests/benchmarks/test_reference.py holds both to the same numbers in float64.
"""

import math
from collections.abc import Callable, Iterator
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head self-attention: (N,L,D) -> (N,L,D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        N, L, D = x.shape
        q, k, v = self.qkv(x).view(N, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(x.transpose(1, 2).reshape(N, L, D))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Fusion(nn.Module):
    """The paper's: joint attention (a), the mean of the other branch as condition (b), added to one's own (c)."""

    def __init__(self, kind: str, dim: int, heads: int):
        super().__init__()
        self.kind = kind
        if kind == "a":
            self.attn = Attention(dim, heads)
        elif kind == "c":
            self.from_audio, self.from_video = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.kind == "b":
            return v, a, a.mean(2), v.mean(2)
        if self.kind == "c":
            return v, a, self.from_audio(a.mean(2)) + c_v, self.from_video(v.mean(2)) + c_a
        if self.kind == "a":
            joint = torch.cat([v, a], 2)  # (B,T,L+S,D)
            B, T, N, D = joint.shape
            frame = torch.arange(T, device=v.device).repeat_interleave(N)
            mask = frame[:, None] >= frame  # a token sees its own frame and those before
            joint = joint + self.attn(norm(joint).reshape(B, T * N, D), mask=mask).view(B, T, N, D)
            v, a = joint.split([v.shape[2], a.shape[2]], 2)
        return v, a, c_v, c_a


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, fusion: str):
        super().__init__()
        self.spatial_attn, self.temporal_attn, self.audio_attn = (Attention(dim, heads) for _ in range(3))
        self.video_adaln, self.audio_adaln = nn.Linear(dim, 6 * dim), nn.Linear(dim, 3 * dim)
        self.fusion = Fusion(fusion, dim, heads)
        self.video_mlp, self.audio_mlp = Mlp(dim, hidden), Mlp(dim, hidden)
        self.video_mlp_adaln, self.audio_mlp_adaln = nn.Linear(dim, 3 * dim), nn.Linear(dim, 3 * dim)

    def forward(self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor) -> tuple[Tensor, Tensor]:
        """v (B,T,L,D), a (B,T,S,D), conditions (B,T,D)."""
        B, T, L, D = v.shape
        shift, scale, gate, shift_t, scale_t, gate_t = self.video_adaln(F.silu(c_v))[:, :, None].chunk(6, -1)
        x = modulate(norm(v), shift, scale).reshape(B * T, L, D)
        v = v + gate * self.spatial_attn(x).view(B, T, L, D)
        x = modulate(norm(v), shift_t, scale_t).transpose(1, 2).reshape(B * L, T, D)
        v = v + gate_t * self.temporal_attn(x, causal=True).view(B, L, T, D).transpose(1, 2)

        shift, scale, gate = self.audio_adaln(F.silu(c_a))[:, :, None].chunk(3, -1)
        x = modulate(norm(a), shift, scale).flatten(1, 2)
        a = a + gate * self.audio_attn(x, causal=True).view(a.shape)

        v, a, m_v, m_a = self.fusion(v, a, c_v, c_a)
        shift, scale, gate = self.video_mlp_adaln(F.silu(m_v))[:, :, None].chunk(3, -1)
        v = v + gate * self.video_mlp(modulate(norm(v), shift, scale))
        shift, scale, gate = self.audio_mlp_adaln(F.silu(m_a))[:, :, None].chunk(3, -1)
        return v, a + gate * self.audio_mlp(modulate(norm(a), shift, scale))


class TimeEmbed(nn.Module):
    """Flow time of each frame, (B,T) in [0,1] -> (B,T,D); the frequencies are those of the released weights."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        exponent = -math.log(1e4) * torch.arange(128, dtype=torch.float32) / 128
        self.frequencies = exponent.double().exp().float()

    def forward(self, t: Tensor) -> Tensor:
        self.frequencies = self.frequencies.to(t.device)
        angles = (t * 999 + 1).float()[..., None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class Head(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.adaln, self.linear = nn.Linear(dim, 2 * dim), nn.Linear(dim, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaln(F.silu(c))[:, :, None].chunk(2, -1)
        return self.linear(modulate(norm(x), shift, scale))


class Reference(nn.Module):
    """Velocities of a window; arguments and names of the weights are those of `FLAV`, attention is causal."""

    def __init__(
        self,
        latent_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        predict_frames: int = 10,
        grad_ckpt: bool = False,
        n_mels: int = 256,
        audio_fr: int = 10,
        fusion: str = "c",
        prediction: str = "velocity",
    ):
        super().__init__()
        D, self.side, self.patch, self.channels = hidden_size, latent_size // patch_size, patch_size, in_channels
        self.num_classes, self.grad_ckpt, self.prediction = num_classes, grad_ckpt, prediction
        self.video_embed = nn.Conv2d(in_channels, D, patch_size, patch_size)
        self.audio_embed = nn.Linear(n_mels, D)
        self.video_patch_pos = nn.Parameter(torch.zeros(self.side**2, D))
        self.video_frame_pos = nn.Parameter(torch.zeros(predict_frames, D))
        self.audio_mel_pos = nn.Parameter(torch.zeros(audio_fr, D))
        self.audio_frame_pos = nn.Parameter(torch.zeros(predict_frames, D))
        self.video_time, self.audio_time = TimeEmbed(D), TimeEmbed(D)
        if num_classes:
            self.video_class, self.audio_class = nn.Embedding(num_classes + 1, D), nn.Embedding(num_classes + 1, D)
        self.blocks = nn.ModuleList(Block(D, num_heads, int(mlp_ratio * D), fusion) for _ in range(depth))
        self.video_head, self.audio_head = Head(D, patch_size**2 * in_channels), Head(D, n_mels)

    def forward(self, v: Tensor, a: Tensor, t: Tensor, y: Tensor | None = None, t_a=None, y_a=None):
        """v (B,T,C,H,W), a (B,T,S,M), t (B,T), y (B,) -> dv, da; t_a and y_a, which the loss gives, must be t and y."""
        B, T = t.shape
        c_v, c_a = self.video_time(t), self.audio_time(t)
        if self.num_classes:
            y = torch.full((B,), self.num_classes, device=t.device) if y is None else y
            c_v, c_a = c_v + self.video_class(y)[:, None], c_a + self.audio_class(y)[:, None]
        x = self.video_embed(v.flatten(0, 1)).flatten(2).transpose(1, 2).reshape(B, T, self.side**2, -1)
        x = x + self.video_frame_pos[:T, None] + self.video_patch_pos
        z = self.audio_embed(a) + self.audio_frame_pos[:T, None] + self.audio_mel_pos
        for block in self.blocks:
            if self.grad_ckpt and torch.is_grad_enabled():
                x, z = checkpoint(block, x, z, c_v, c_a, use_reentrant=False)
            else:
                x, z = block(x, z, c_v, c_a)
        dv, da = self.unpatched(self.video_head(x, c_v)), self.audio_head(z, c_a)
        if self.prediction == "data":
            left = (1 - t).clamp(min=0.05).to(dv.dtype)
            dv, da = (dv - v) / left[:, :, None, None, None], (da - a) / left[:, :, None, None]
        return dv, da

    def unpatched(self, x: Tensor) -> Tensor:
        """Tokens (B,T,L,p*p*C), channel fastest -> (B,T,C,H,W)."""
        B, T, s, p = *x.shape[:2], self.side, self.patch
        x = x.view(B, T, s, s, p, p, self.channels).permute(0, 1, 6, 2, 4, 3, 5)
        return x.reshape(B, T, self.channels, s * p, s * p)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


@torch.no_grad()
def sample(
    model: Reference, v: Tensor, a: Tensor, n: int, noise: Callable, y: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Clean frames v (B,C,H,W), a (B,S,M), one after the other and without end.

    The first takes n T Euler steps from w = 1 to 0 on the times of Eq. 7, every other one n steps on those of Eq. 6;
    then the window moves on by a frame.

    Args:
        v, a: window of pure noise. n: steps per frame. y: (B,) labels.
        noise: frame -> (B,C,H,W), (B,S,M), the noise of the frame that enters.
    """
    T, dtype = v.shape[1], model.audio_embed.weight.dtype
    for frame in count():
        for t, t_next in schedule(frame, n, T, v.device):
            dv, da = model(v.to(dtype), a.to(dtype), t.expand(len(v), T), y)
            dt = (t_next - t).to(v.dtype)
            v, a = v + dt[:, None, None, None] * dv, a + dt[:, None, None] * da
        yield v[:, 0], a[:, 0]
        new_v, new_a = noise(frame + T)
        v, a = torch.cat([v[:, 1:], new_v[:, None]], 1), torch.cat([a[:, 1:], new_a[:, None]], 1)


def sample_a2v(
    model: Reference, v: Tensor, a: Tensor, n: int, noise: Callable, sound: Tensor, scale: float
) -> Iterator[Tensor]:
    """Clean video latents (B,C,H,W) for a given sound, one after the other and without end, as `sample` makes them.

    The sound lies on its lines from noise to data, and behind its end it is generated; pictures that are on their way
    are led down the gradient of its velocity's error.

    Args:
        v, a, n, noise: as of `sample`. sound: (B,L,S,M) of the first L frames.
        scale: of the gradient of each clip's mean squared error.
    """
    T, dtype, eps = v.shape[1], model.audio_embed.weight.dtype, a
    for frame in count():
        x = F.pad(sound[:, frame : frame + T], (0, 0, 0, 0, 0, T))[:, :T]  # zeros where nothing is known
        given = (torch.arange(frame, frame + T) < sound.shape[1]).to(v.device)
        mask, known = given[:, None, None], given.sum().clamp(min=1) * x[0, 0].numel()
        for t, t_next in schedule(frame, n, T, v.device):
            at, dt = t.to(a.dtype)[:, None, None], (t_next - t).to(a.dtype)[:, None, None]
            a, led = torch.where(mask, at * x + (1 - at) * eps, a), v.detach().requires_grad_()
            with torch.enable_grad():
                dv, da = model(led.to(dtype), a.to(dtype), t.expand(len(v), T))
                error = ((x - eps - da).square() * mask).flatten(1).sum(1) / known
                (gradient,) = torch.autograd.grad(error.sum(), led)
            on_its_way = ((t_next > t) & (t_next < 1))[:, None, None, None]
            v = v + dt[..., None] * (dv.detach() - scale * on_its_way * gradient)
            a = a + dt * da.detach()
        yield v[:, 0]
        new_v, new_a = (new[:, None] for new in noise(frame + T))
        v, a, eps = (torch.cat([old[:, 1:], new], 1) for old, new in ((v, new_v), (a, new_a), (eps, new_a)))


def schedule(frame: int, n: int, T: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Times (T,) of the window before and after each step that makes a frame clean: Eq. 7 for the first, then Eq. 6."""
    k, steps = torch.arange(T, device=device, dtype=torch.float64), n if frame else n * T
    for s in range(steps):
        w, w_next = 1 - s / steps, 1 - (s + 1) / steps
        if frame:
            yield 1 - (k + w) / T, 1 - (k + w_next) / T
        else:
            yield (1 - (k / T + w)).clamp(0, 1), (1 - (k / T + w_next)).clamp(0, 1)
