"""Transformers that make one modality from a text: the two towers of AV-Link (arXiv 2412.15191)."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from models.layers import Head, PatchEmbed, TextBlock, TimeEmbed
from models.text import Text, with_null

AXES = 3  # of a picture's rotary positions: frame, row, column


class Layer(TextBlock):
    """Self-attention, cross-attention to the text, feed-forward; adaLN from the modality's time: 22 D^2 numbers."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads)
        self.adaln = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, c: Tensor, text: Text, at: Tensor) -> Tensor:
        """x (B,T,L,D) in which all tokens see all, c (B,D) of the time, text of each clip, at (T*L,...) -> x."""
        six = self.adaln(nn.functional.silu(c)).unflatten(-1, (6, -1))
        return self.modulated(x.flatten(1, 2).unsqueeze(1), six, text, at)[0].squeeze(1).view_as(x)


@dataclass(frozen=True)
class Passage:
    """A side on its way through its tower: tokens x (B,T,L,D) by frame, c (B,D) of its time, its text, at (T*L,...)."""

    x: Tensor
    c: Tensor
    text: Text
    at: Tensor


class Tower(nn.Module):
    """A generator of one modality.

    Args:
        embed: of the values of a token, of which there are `values`. text_width: of text tokens, 0 for none.
    """

    def __init__(self, embed: nn.Module, values: int, dim: int, depth: int, num_heads: int, text_width: int):
        super().__init__()
        self.embed, self.time = embed, TimeEmbed(dim)
        if text_width:
            self.text = nn.Sequential(nn.Linear(text_width, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.text_width, self.null_text = text_width, nn.Parameter(torch.zeros(dim))
        self.layers = nn.ModuleList(Layer(dim, num_heads) for _ in range(depth))
        self.head = Head(dim, values)

    def begin(self, x: Tensor, t: Tensor, text: Text | None) -> Passage:
        """What enters the first layer: x as the tower takes it, t (B,), text of each clip.

        Raises:
            ValueError: a text of another width.
        """
        if text is not None:
            if text.tokens.shape[-1] != self.text_width:
                takes = f"takes width {self.text_width}" if self.text_width else "takes none"
                raise ValueError(f"text of width {text.tokens.shape[-1]} does not fit this model, which {takes}; use "
                                 "the encoder it was trained with")  # fmt: skip
            text = Text(self.text(text.tokens.to(self.null_text.dtype)), text.mask) if self.text_width else None
        tokens, at = self._tokens(x)
        return Passage(tokens, self.time(t), with_null(text, self.null_text, len(x)), at)

    def end(self, on: Passage, like: Tensor) -> Tensor:
        """What the last layer's tokens say, shaped as `like` that entered."""
        return self._values(self.head(on.x, on.c.unsqueeze(1)), like)


class PictureTower(Tower):
    """Of pictures (B,T,C,H,W): a token for each patch, at its frame, row and column."""

    def __init__(self, channels: int, patch: int, dim: int, depth: int, num_heads: int, text_width: int):
        embed = PatchEmbed(channels, dim, patch)
        super().__init__(embed, patch**2 * channels, dim, depth, num_heads, text_width)
        self.channels, self.patch = channels, patch

    def check(self, v: Tensor) -> None:
        """Raise a ValueError if this is no picture that the tower takes."""
        p = self.patch
        if v.ndim != 5 or v.shape[2] != self.channels or v.shape[3] % p or v.shape[4] % p:
            raise ValueError(f"v {tuple(v.shape)} does not fit this model; it takes v (B, T, {self.channels}, H, W) of "
                             f"sides that {p} divides")  # fmt: skip

    def _tokens(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(B,T,L,D) and positions (T*L,3)."""
        sizes = v.shape[1], v.shape[3] // self.patch, v.shape[4] // self.patch
        at = torch.meshgrid(*(torch.arange(n, device=v.device).float() for n in sizes), indexing="ij")
        return self.embed(v), torch.stack(at, -1).flatten(0, 2)

    def _values(self, tokens: Tensor, like: Tensor) -> Tensor:
        h, p = like.shape[3] // self.patch, self.patch
        return rearrange(tokens, "b t (h w) (p q c) -> b t c (h p) (w q)", h=h, p=p, q=p)


class SoundTower(Tower):
    """Of sound (B,N,M): a token for each `patch` that follow each other, at its number."""

    def __init__(self, channels: int, patch: int, dim: int, depth: int, num_heads: int, text_width: int):
        values = patch * channels
        super().__init__(nn.Linear(values, dim), values, dim, depth, num_heads, text_width)
        self.channels, self.patch = channels, patch

    def check(self, a: Tensor) -> None:
        """Raise a ValueError if this is no sound that the tower takes."""
        if a.ndim != 3 or a.shape[2] != self.channels or a.shape[1] % self.patch:
            raise ValueError(f"a {tuple(a.shape)} does not fit this model; it takes a (B, N, {self.channels}) of N "
                             f"that {self.patch} divides")  # fmt: skip

    def _tokens(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """(B,N,1,D), a token being a frame of its own, and positions (N,)."""
        x = self.embed(a.unflatten(1, (-1, self.patch)).flatten(2)).unsqueeze(2)
        return x, torch.arange(x.shape[1], device=a.device).float()

    def _values(self, tokens: Tensor, like: Tensor) -> Tensor:
        return tokens.squeeze(2).unflatten(-1, (self.patch, -1)).flatten(1, 2)
