"""Parts that the blocks of all systems are made of: attention, adaptive layer norm, positions, time, output layers."""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.text import Text

COMPILED = 64  # kinds of call at most; compiling for one takes seconds
DATA_PREDICTION_FLOOR = 0.05  # smallest 1 - t that divides a predicted displacement


def norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis without weights, eps 1e-6: adaLN brings scale and shift (DiT, Sec. 3.2)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def adaptive(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """What adaLN gives, (B,T,parts D), as vectors (B,T,1,D): shift, 1 + scale and, but of two, gate, in turn."""
    vectors = x.unsqueeze(2).chunk(parts, dim=-1)
    return tuple(1 + y if i % 3 == 1 else y for i, y in enumerate(vectors))


def modulate(x: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
    """x (B,T,N,D) times and plus one vector per frame, (B,T,1,D)."""
    return torch.addcmul(shift, x, gain)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x (B,T,N,D) plus an update of it times one vector per frame, (B,T,1,D)."""
    return torch.addcmul(x, update, gate)


class PatchEmbed(nn.Conv2d):
    """A token for each patch of a frame: (B,T,C,H,W) -> (B,T,L,D), row by row.

    As the matrix product it is: on a CPU torch's strided convolution takes ten times as long on small frames.
    """

    def __init__(self, channels: int, dim: int, patch: int):
        super().__init__(channels, dim, patch, stride=patch)

    def forward(self, v: Tensor) -> Tensor:
        p, q = self.kernel_size
        patches = rearrange(v, "b t c (h p) (w q) -> b t (h w) (c p q)", p=p, q=q)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class Mlp(nn.Module):
    """Feed-forward of each token, (..., D) -> (..., D), with GELU's tanh form as in DiT.

    timm has this class too, and importing it takes longer than all else that sampling imports together.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


Shown = tuple[Tensor, Tensor]  # keys and values, (N,heads,L,d) each


class Recall:
    """Keys and values of leading frames, which later ones see and do not change: noted once, then set before theirs.

    Args:
        kept: by name of an attention, as an earlier `Recall` noted them; None to note them. name: of whose these are.
    """

    def __init__(self, kept: dict[str, Shown] | None = None, name: str = ""):
        self.noting, self.kept, self.name = kept is None, {} if kept is None else kept, name

    def of(self, part: str) -> "Recall":
        """That of a part."""
        recall = Recall(self.kept, f"{self.name}.{part}" if self.name else part)
        recall.noting = self.noting
        return recall

    def __call__(self, k: Tensor, w: Tensor) -> Shown:
        """Keys and values of an attention, behind those that are recalled."""
        if self.noting:
            self.kept[self.name] = k, w
            return k, w
        return tuple(torch.cat(pair, 2) for pair in zip(self.kept[self.name], (k, w)))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # it may be made while sampling, and serve training
def after(tokens: int, before: int, device: torch.device) -> Tensor:
    """Mask (tokens, before + tokens) of a causal attention whose tokens follow `before` others."""
    return torch.ones(tokens, before + tokens, dtype=torch.bool, device=device).tril(before)


class Attention(nn.Module):
    """Multi-head self-attention inside each sequence of tokens; `heads` is apart for masks that are slices of keys."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"hidden size {dim} is not a multiple of {num_heads} heads; choose heads that divide it")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, L, D) -> queries, keys, values, each (N, heads, L, D / heads)."""
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, causal: bool = False, recall: "Recall | None" = None) -> Tensor:
        """(...,L,D) -> (...,L,D); causal: token i of a sequence sees its tokens 0..i, and all that is recalled.

        recall: what earlier tokens showed, or where to note what these show.
        """
        q, k, w = self.heads(x.flatten(0, -3))
        if recall is not None:
            k, w = recall(k, w)
        mask = after(q.shape[2], k.shape[2] - q.shape[2], q.device) if causal and k.shape[2] > q.shape[2] else None
        out = F.scaled_dot_product_attention(q, k, w, attn_mask=mask, is_causal=causal and mask is None)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class CrossAttention(nn.Module):
    """Attention of tokens to others, with queries and keys of unit size (QK norm): logits that cannot grow.

    Also of tokens to themselves, where `forward` gets no others. Rotary positions (Su et al., 2021, arXiv 2104.09864)
    turn queries and keys by the time that each token stands at.

    Args:
        of: width of the others.
    """

    def __init__(self, dim: int, num_heads: int, of: int | None = None):
        super().__init__()
        if dim % num_heads or dim // num_heads % 2:
            raise ValueError(f"hidden size {dim} does not give {num_heads} heads of even width; choose other heads")
        self.num_heads = num_heads
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(of or dim, 2 * dim)
        self.query_norm, self.key_norm = (nn.RMSNorm(dim // num_heads, eps=1e-6) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        others: Tensor | None = None,
        at: Tensor | None = None,
        others_at: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (N,L,D) -> (N,L,D).

        Args:
            others: (N,K,of); None for x itself. at, others_at: positions as of `rotated`; None for none.
            mask: (N,K) bool, which others there are.
        """
        others, others_at = (x, at) if others is None else (others, others_at)
        q, (k, w) = self.queries(x, at), self.keys_values(others, None if at is None else others_at)
        return self.attended(q, k, w, None if mask is None else mask[:, None, None])

    def queries(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """(N,L,D) at their positions -> (N,heads,L,D / heads)."""
        q = self.query_norm(self.query(x).unflatten(-1, (self.num_heads, -1))).transpose(1, 2)
        return q if at is None else rotated(q, at)

    def keys_values(self, others: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N,K,of) at their positions -> keys, values, (N,heads,K,D / heads) each."""
        k, w = self.key_value(others).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        k = self.key_norm(k)
        return (k if at is None else rotated(k, at)), w

    def attended(self, q: Tensor, k: Tensor, w: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries, keys and values, of one attention or of several, -> (N,L,D)."""
        out = F.scaled_dot_product_attention(q, k, w, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class TextBlock(nn.Module):
    """Self-attention, cross-attention to a text, feed-forward; where the six vectors that modulate it come from, its
    kinds say."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.attn, self.text_attn = (CrossAttention(dim, num_heads) for _ in range(2))
        self.mlp = Mlp(dim, 4 * dim)

    def modulated(self, x: Tensor, six: Tensor, text: Text, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B,R,L,D) of rows that attend apart -> x, and what the self-attention in each row gave.

        Args:
            six: (B,6,D): shift, scale and gate of the attention, and of the feed-forward. text: of each clip.
            at: positions as of `rotated`.
        """
        shift, scale, gate, shift_m, scale_m, gate_m = six[:, :, None, None].unbind(1)  # (B,1,1,D) each
        rows = (norm(x) * (1 + scale) + shift).flatten(0, 1)
        seen = self.attn(rows, at=at).view_as(x)
        x = x + gate * seen
        x = x + self.text_attn(x.flatten(1, 2), text.tokens, mask=text.mask).view_as(x)
        return x + gate_m * self.mlp(norm(x) * (1 + scale_m) + shift_m), seen


def rotated(x: Tensor, at: Tensor) -> Tensor:
    """x (N,heads,L,d) with each pair of numbers turned by its position times its frequency 10^(-8 i / d).

    at: (L,), or (L,n) of n axes that share the pairs, each with frequencies of its own; the first takes what is over.
    """
    n, pairs = (1 if at.ndim == 1 else at.shape[-1]), x.shape[-1] // 2
    sizes = [pairs - (n - 1) * (pairs // n), *[pairs // n] * (n - 1)]
    axes = zip(at.view(-1, n).float().split(1, dim=-1), sizes)
    angles = torch.cat([axis * frequencies(2 * size, x.device) for axis, size in axes], dim=-1)
    cos, sin = (y.to(x.dtype) for y in (angles.cos(), angles.sin()))
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1)


def grid_positions(height: int, width: int, dim: int, device: torch.device, side: int | None = None) -> Tensor:
    """Sinusoids of row and column for a grid of any size, (height * width, dim), row by row; dim a multiple of 4.

    Args:
        side: of the square grid of training, over whose area the places of any other grid are spread, as in PixArt
            (Chen et al., 2023, arXiv 2310.00426): finer grids lie within what was trained. None to count them.
    """
    step = side / math.sqrt(height * width) if side else 1.0
    rows, columns = (step * torch.arange(size, device=device).float() for size in (height, width))
    parts = [position.unsqueeze(-1) * frequencies(dim // 2, device) for position in (rows, columns)]
    of_row, of_column = (torch.cat([x.sin(), x.cos()], dim=-1) for x in parts)  # (size, dim / 2)
    grid = of_row.unsqueeze(1).expand(-1, width, -1), of_column.unsqueeze(0).expand(height, -1, -1)
    return torch.cat(grid, dim=-1).flatten(0, 1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def frequencies(width: int, device: torch.device) -> Tensor:
    """exp(-ln(10^4) i / half) for i in 0..half-1: (width / 2,) float32.

    The exponent is float32, as the released weights were trained; its exponential is taken in float64 on the CPU,
    because float32 ones differ in the last bit from machine to machine, and one bit moves an angle by 6e-5.
    """
    half = width // 2
    exponent = -math.log(1e4) * torch.arange(half, dtype=torch.float32) / half
    return exponent.double().exp().float().to(device)


def time_features(t: Tensor, width: int = 256) -> Tensor:
    """Sinusoids of the model time 999 t + 1: (...,) in [0, 1] -> (..., width) float32, cosines first.

    999 t + 1 is formed in the dtype of `t`, the angles in float32: float64 ones would move outputs by 1e-5.
    """
    angles = (t * 999 + 1).float().unsqueeze(-1) * frequencies(width, t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbed(nn.Module):
    """Flow time of each frame -> condition: (B, T) in [0, 1] -> (B, T, D)."""

    def __init__(self, dim: int, width: int = 256):
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_features(t, self.width).to(self.mlp[0].weight.dtype))


class Head(nn.Module):
    """Last layer of a branch: adaLN from the condition, then a linear map to the values of one token."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.adaln = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, out)

    def modulation(self, c: Tensor) -> Tensor:
        """What depends on the condition (B,T,D) alone, (B,T,2D), for `adaptive`."""
        return self.adaln(F.silu(c))

    def forward(self, x: Tensor, c: Tensor, modulation: tuple[Tensor, ...] | None = None) -> Tensor:
        """x (B,T,N,D), c (B,T,D) -> (B,T,N,out); modulation: the vectors of c, if they are known already."""
        return self.linear(modulate(norm(x), *(modulation or adaptive(self.modulation(c), 2))))


def displacement(clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Velocity that leads from x at time t to `clean` at time 1, for networks that predict clean data.

    1 - t is floored where the division would blow up.

    Args:
        clean, x: (B,T,...). t: (B,T), or (B,) for whole clips.
    """
    left = (1 - t).clamp(min=DATA_PREDICTION_FLOOR).to(x.dtype)
    return (clean - x) / left.reshape(*t.shape, *[1] * (x.ndim - t.ndim))


def begin_linears(model: nn.Module, zero: tuple[str, ...]) -> None:
    """DiT's start of linear maps and patch convolutions: Xavier, but zero weights where their names end with `zero`."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)
    for name, module in model.named_modules():
        if name.endswith(zero):
            nn.init.zeros_(module.weight)


def compile_each(layers: Iterable[nn.Module]) -> None:
    """Compile layers where they stand: one compilation for all of a kind, at each kind of call that they meet.

    Calls differ in kind by one frame or more, one clip or more, gradients, a memory; those of a fusion that goes frame
    by frame in their number, too. torch gives up at 8.
    """
    torch._dynamo.config.recompile_limit = COMPILED
    for layer in layers:
        layer.compile()  # no CUDA graphs: outside the main thread they fail (pytorch issue 123177)


def run(grad_ckpt: bool, layer: Callable, *inputs):
    """What a layer gives; with `grad_ckpt` it is recomputed in the backward pass instead of kept."""
    if grad_ckpt and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
