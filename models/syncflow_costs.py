"""What a SyncFlow configuration costs in each stage of training: its pieces for `models.system_costs`."""

from dataclasses import dataclass
from typing import NamedTuple

from models.syncflow import STAGES, SyncFlow
from models.system_costs import (
    TIME_FEATURES,
    ClipCosts,
    ClipSize,
    Piece,
    attention_bytes,
    attention_linears,
    copies,
    mlp_linears,
    widths,
)

PAPERS_CLIP = ClipSize(T=8, height=32, width=32, sound=100, text=300)  # 2 s at 16 fps, 256 px and 48 kHz


class _Sizes(NamedTuple):
    """What costs depend on: a configuration, a stage, and `batch` clips, as tokens of width D."""

    D: int
    heads: int
    patch: int  # values of a video token
    samples: int  # values of a sound token
    text_width: int
    adaptor: bool
    audio_text: bool
    spatial_tap: bool
    pool: bool
    sees: bool  # the tower of pictures learns
    hears: bool  # the tower of sound learns
    batch: int
    T: int
    L: int  # video tokens of a frame
    N: int  # sound tokens of a clip
    K: int  # text tokens of a clip

    @property
    def N_v(self) -> int:  # video tokens in the call
        return self.batch * self.T * self.L

    @property
    def N_a(self) -> int:  # sound tokens in the call
        return self.batch * self.N

    @property
    def N_k(self) -> int:  # text tokens in the call
        return self.batch * self.K

    @property
    def shown(self) -> int:  # tokens in the call that an adaptor makes of the picture
        return self.batch * self.T * (1 if self.pool else self.L) * self.adaptor

    @property
    def beside(self) -> int:  # tokens in the call that the sound hears else: the time, and the text
        return self.batch * (1 + self.K * self.audio_text)


@dataclass(frozen=True)
class SyncFlowCosts(ClipCosts):
    """Costs of SyncFlow(**config) on clips of a size, in a stage of training, "joint" if none is given.

    Where the CPU keeps more than CUDA would be expected to (outputs of fp32 norms of queries and keys, a copy of what
    an attention with positions gives), that is counted. Not counted is what a frozen tower holds while it runs, taps
    that wait for their adaptors without grad_ckpt among it.

    Raises (its methods):
        ValueError: SyncFlow would not take the configuration, batch or clip, or has no such stage.
    """

    kind, whole = SyncFlow, "joint"
    clip: ClipSize = PAPERS_CLIP

    def sampling_flops(self, batch: int = 1, steps: int = SyncFlow.num_timesteps, guided: bool = True) -> int:
        """Operations of whole clips in Euler steps; with guidance each step is two passes (SyncFlow, Eq. 1 and 3)."""
        return steps * self.forward_flops(batch * (1 + guided))

    def outer(self, batch: int, precision: str) -> list[Piece]:
        s, (stream, narrow) = self._sizes(batch), widths(precision)
        return [_around_video(s, stream, narrow, self.grad_ckpt), _around_sound(s, stream, narrow, self.grad_ckpt)]

    def layers(self, batch: int, precision: str) -> list[tuple[int, Piece]]:
        s, (stream, narrow) = self._sizes(batch), widths(precision)
        return [(self.depth, layer(s, stream, narrow)) for layer in (_video_layer, _sound_layer)]

    def _sizes(self, batch: int) -> _Sizes:
        self.check(batch)
        c, clip, stage = self.arguments, self.clip, self.current
        p, q = c["patch_size"], c["audio_patch"]
        return _Sizes(
            D=c["hidden_size"],
            heads=c["num_heads"],
            patch=p**2 * c["in_channels"],
            samples=q * c["audio_channels"],
            text_width=c["text_width"],
            adaptor=c["adaptor"],
            audio_text=c["audio_text"],
            spatial_tap=c["tap"] == "spatial",
            pool=c["pool_frames"],
            sees="video" in STAGES[stage],
            hears="sound" in STAGES[stage],
            batch=batch,
            T=clip.T,
            L=clip.height * clip.width // p**2,
            N=clip.sound // q,
            K=clip.text,
        )


def _around_video(s: _Sizes, stream: int, narrow: int, grad_ckpt: bool) -> Piece:
    B, D = s.batch, s.D
    first = [(s.N_v, s.patch, D), (B, TIME_FEATURES, D)]
    text = [(s.N_k, s.text_width, D), (s.N_k, D, D)]  # of which one token may be the learned null text
    time = [(B, D, D), (B, D, 6 * D)]
    inputs = narrow * (s.N_v * s.patch + B * TIME_FEATURES + s.N_k * s.text_width) + s.N_k  # and where the null text is
    between = narrow * D * (4 * B + 3 * s.N_k)
    head = s.N_v * ((2 * stream + narrow) * D + 8) + stream * B * D
    shared = narrow * B * 6 * D - (stream - narrow) * s.N_v * D  # the modulation once; the first layer's x is narrow
    return Piece(
        [*text, *time, (s.N_v, D, s.patch)],
        first,
        more=s.text_width + 2 * D,
        kept=inputs + between + head + shared * grad_ckpt,
        learns=s.sees,
    )


def _around_sound(s: _Sizes, stream: int, narrow: int, grad_ckpt: bool) -> Piece:
    B, D = s.batch, s.D
    first = [(s.N_a, s.samples, D), (B, TIME_FEATURES, D)]
    text = [(s.N_k, s.text_width, D)] if s.audio_text else []
    kept = narrow * (s.N_a * (s.samples + D) + B * (TIME_FEATURES + 2 * D))
    kept -= (stream - narrow) * s.N_a * D  # the first layer's x is narrow, and is not copied
    if grad_ckpt or not s.adaptor:
        kept += narrow * D * s.beside  # else each layer keeps its own, joined with what its adaptor gives
    if s.audio_text and (narrow < stream or not s.sees):
        kept += narrow * s.N_k * s.text_width  # else it is the very tensor that the pictures' tower keeps
    return Piece(
        [(B, D, D), (s.N_a, D, s.samples), *(text if s.sees else [])],
        [*first, *([] if s.sees else text)],
        kept=kept,
        learns=s.hears,
    )


def _video_layer(s: _Sizes, stream: int, narrow: int) -> Piece:
    """A spatial part and a temporal one."""
    D, conditions = s.D, s.batch * s.D * stream * 8  # table plus time, and both scales plus one
    linears = [*attention_linears(s.N_v, s.N_v, D), *attention_linears(s.N_v, s.N_k, D), *mlp_linears(s.N_v, D)]
    texts = s.T * s.L * s.N_k
    kept = 0
    for placed in (False, True):
        own = attention_bytes(s.D, s.heads, s.N_v, s.N_v, narrow, stream, places=2 * s.T * placed)
        text = attention_bytes(s.D, s.heads, s.N_v, s.N_k, narrow, stream) + narrow * s.N_k  # and a mask
        norms = 2 * s.N_v * (2 * stream * D + 8)  # input, statistics, output for the gradient of the scale
        inputs = copies(2, stream, narrow) + 2 * narrow  # of the three products
        outputs = 10 * narrow  # of the attention, inside the feed-forward twice, and of it
        kept += own + text + norms + s.N_v * D * (inputs + outputs) + conditions
    between = stream * s.N_v * D
    return Piece(
        2 * linears,
        pairs=D * (s.N_v * s.L + s.N_v * s.T + 2 * texts),
        more=2 * (6 * D + 2 * _scales(s)),
        kept=kept,
        between=between,
        again=kept - between,
        learns=s.sees,
    )


def _sound_layer(s: _Sizes, stream: int, narrow: int) -> Piece:
    """A layer with its adaptor."""
    D, heard = s.D, s.shown + s.beside
    adaptor = _adaptor(s, stream, narrow)
    linears = [*attention_linears(s.N_a, s.N_a, D), *attention_linears(s.N_a, heard, D), *mlp_linears(s.N_a, D)]
    own = attention_bytes(s.D, s.heads, s.N_a, s.N_a, narrow, stream, places=2 * s.N)
    other = attention_bytes(s.D, s.heads, s.N_a, heard, narrow, stream, places=s.N + heard // s.batch)
    hearing = heard * narrow * (D * s.adaptor + 1)  # and a mask
    inputs = copies(2, stream, narrow) + 2 * narrow  # of the three products
    norms = 3 * (stream * D + 8)
    kept = own + other + hearing + s.N_a * (D * (inputs + 8 * narrow) + norms) + adaptor.kept
    x = stream * s.N_a * D
    tap = narrow * s.N_v * D * s.adaptor
    shared = (x if narrow == stream else 0) + (tap if s.spatial_tap and not s.pool and not s.sees else 0)
    return Piece(
        [*linears, *adaptor.linears],
        adaptor.first,
        pairs=D * (s.N_a * s.N + s.N_a * heard // s.batch) + adaptor.pairs,
        more=6 * D + 2 * _scales(s) + adaptor.more,
        kept=kept,
        between=x + tap,
        again=kept - shared,
        learns=s.hears,
    )


def _adaptor(s: _Sizes, stream: int, narrow: int) -> Piece:
    """Of a frozen tower's layer it gets data."""
    if not s.adaptor:
        return Piece([])
    D, n = s.D, s.shown
    query, key_value, proj = attention_linears(n, n, D)
    data = [] if s.sees else [query, key_value]
    later = [query, key_value] if s.sees else []
    is_view = s.spatial_tap and not s.pool and s.sees  # of what the layer of pictures keeps
    tokens = narrow * D * (2 - is_view) + stream * D + 8
    kept = attention_bytes(s.D, s.heads, n, n, narrow, stream, places=2 * n // s.batch) + n * tokens
    return Piece([*later, proj, (n, D, D)], data, pairs=D * n * n // s.batch, more=2 * D + _scales(s), kept=kept)


def _scales(s: _Sizes) -> int:
    """Scales of the norms of queries and keys."""
    return 2 * (s.D // s.heads)
