"""What a FLAV configuration costs: its pieces for `models.system_costs`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from models.flav import FLAV, _check_architecture
from models.fusion import placed
from models.system_costs import TIME_FEATURES, Costs, Linear, Piece, widths


class _Sizes(NamedTuple):
    """What costs depend on: a configuration, `batch` clips and T frames of L video and S audio tokens, of which the
    first are those of a memory."""

    D: int
    hidden: int  # width inside a feed-forward
    heads: int
    L: int
    S: int
    patch: int  # values of a video token
    mels: int
    window: int
    label_rows: int
    text: int  # width of its tokens, 0 for none
    fusion: str
    causal: bool
    batch: int
    T: int
    memory: int

    @property
    def of_window(self) -> "_Sizes":
        """Of the frames that have a velocity."""
        return self._replace(T=self.T - self.memory)

    @property
    def frames(self) -> int:
        return self.batch * self.T

    @property
    def N_v(self) -> int:  # video tokens in the call
        return self.frames * self.L

    @property
    def N_a(self) -> int:  # audio tokens in the call
        return self.frames * self.S


@dataclass(frozen=True)
class FLAVCosts(Costs):
    """Costs of FLAV(**config) on windows of T frames, of the longest if none is given, after the frames of a memory.

    A causal mask does not lower the operations, but fusions that attend over frames read prefixes of whole frames
    instead of a mask, and only those are counted.

    In stage "link" operations and bytes are at most these: what leads from the first link to the losses is counted as
    if the gradient ran through all of it, and bytes as if it learnt.

    Raises (its methods):
        ValueError: FLAV would not take the configuration, batch or T.
    """

    kind = FLAV
    T: int | None = None
    stage: str | None = None

    @classmethod
    def of_training(
        cls, config: Mapping, shapes: tuple[Sequence[int], Sequence[int]], text: int = 0, stage: str | None = None
    ) -> Self:
        """The configuration says all of the sizes: windows are the longest, texts are means."""
        return cls(config, stage=stage)

    def outer(self, batch: int, precision: str) -> list[Piece]:
        s = _sizes(self.arguments, batch, self.T)
        tables = s.L + s.S + 2 * (s.window + s.memory) + 2 * s.label_rows  # rows of width D
        kept = _outer_bytes(s, *widths(precision))
        more = tables * s.D + s.text  # the null text
        if self.stage is None:
            return [Piece([*_later_linears(s), *_heads(s)], _first_linears(s), more=more, kept=kept)]
        still = [*_later_linears(s), *_first_linears(s)]
        return [Piece((), passed=_heads(s), still=still, more_frozen=more, kept=kept)]

    def layers(self, batch: int, precision: str) -> list[tuple[int, Piece]]:
        s, (stream, narrow) = _sizes(self.arguments, batch, self.T), widths(precision)
        blocks = placed(self.arguments["fusion_blocks"], self.depth)
        before = min(blocks) if self.stage else 0  # which have no graph in a stage that trains links alone
        plain, frozen = s._replace(fusion="none"), self.stage is not None
        kinds = ((s, len(blocks), True), (plain, self.depth - len(blocks) - before, True), (plain, before, False))
        return [(n, _block(kind, stream, narrow, frozen, graph)) for kind, n, graph in kinds if n]


def _block(s: _Sizes, stream: int, narrow: int, frozen: bool, graph: bool) -> Piece:
    """A block; frozen but for the fusion, with a graph or without."""
    kept, between = _block_bytes(s, stream, narrow), stream * s.D * (s.N_v + s.N_a)
    scales = {"adaptor": 2 * s.D, "link": 4 * s.D // s.heads}.get(s.fusion, 0)  # of its norms
    own = dict(pairs=s.D * _pairs(s), more=scales, kept=kept, between=between,
               again=kept - between, learns=graph)  # fmt: skip
    if frozen:
        return Piece(_fusion_linears(s), passed=_token_linears(s), still=_adaln_linears(s), **own)
    return Piece([*_token_linears(s), *_adaln_linears(s), *_fusion_linears(s)], **own)


def _sizes(c: dict, batch: int, T: int | None) -> _Sizes:
    """Sizes of FLAV(**c) called on `batch` windows of T frames; None is the longest window."""
    _check_architecture(c["latent_size"], c["patch_size"], c["fusion"], c["prediction"])
    window, classes = c["predict_frames"], c["num_classes"] or 0
    T, memory = window if T is None else T, len(c["memory_ages"] or ())
    if batch < 1 or not 1 <= T <= window:
        raise ValueError(f"batch {batch} of {T} frames does not fit; give at least 1 clip and 1 to {window} frames")
    return _Sizes(
        D=c["hidden_size"],
        hidden=int(c["mlp_ratio"] * c["hidden_size"]),
        heads=c["num_heads"],
        L=(c["latent_size"] // c["patch_size"]) ** 2,
        S=c["audio_fr"],
        patch=c["patch_size"] ** 2 * c["in_channels"],
        mels=c["n_mels"],
        window=window,
        label_rows=classes + (classes > 0 and c["class_dropout_prob"] > 0),
        text=c["text_width"] or 0,
        fusion=c["fusion"],
        causal=c["causal_attn"],
        batch=batch,
        T=memory + T,
        memory=memory,
    )


def _first_linears(s: _Sizes) -> list[Linear]:
    """Maps of data, which get no gradient for their input."""
    return [(s.N_v, s.patch, s.D), (s.N_a, s.mels, s.D), *2 * [(s.frames, TIME_FEATURES, s.D)]]


def _later_linears(s: _Sizes) -> list[Linear]:
    """Maps of conditions: of time embedders, of text, whose input may be the learned null text, and of the heads."""
    texts = 2 * [(s.batch, s.text, s.D)] if s.text else []
    return [*2 * [(s.frames, s.D, s.D)], *texts, *2 * [(s.of_window.frames, s.D, 2 * s.D)]]


def _heads(s: _Sizes) -> list[Linear]:
    return [(s.of_window.N_v, s.D, s.patch), (s.of_window.N_a, s.D, s.mels)]


def _token_linears(s: _Sizes) -> list[Linear]:
    """Maps of tokens in a block, without those of the fusion."""
    D, r = s.D, s.hidden
    attentions = [linear for tokens in (s.N_v, s.N_v, s.N_a) for linear in _attention_linears(tokens, D)]
    return attentions + [linear for tokens in (s.N_v, s.N_a) for linear in [(tokens, D, r), (tokens, r, D)]]


def _adaln_linears(s: _Sizes) -> list[Linear]:
    return [(s.frames, s.D, 6 * s.D), *3 * [(s.frames, s.D, 3 * s.D)]]


def _attention_linears(tokens: int, D: int) -> list[Linear]:
    return [(tokens, D, 3 * D), (tokens, D, D)]


def _fusion_linears(s: _Sizes) -> list[Linear]:
    match s.fusion:
        case "none" | "b":
            return []
        case "a":
            return _attention_linears(s.N_v + s.N_a, s.D)
        case "adaptor":
            heard = [(s.N_v, s.D, s.D), (s.N_v, s.D, 2 * s.D), *2 * [(s.N_a, s.D, s.D)]]
            return [*_attention_linears(s.N_v, s.D), *heard]
        case "link":
            sides = [linear for tokens in (s.N_v, s.N_a) for linear in _link_linears(tokens, s.D)]
            return [*sides, *2 * [(s.frames, 2 * s.D, 6 * s.D)]]
        case "c" | "c_norm":
            return 2 * [(s.frames, s.D, s.D)]
    raise ValueError(f"fusion {s.fusion!r} has no cost formula; add it to models/flav_costs.py")


def _link_linears(tokens: int, D: int) -> list[Linear]:
    return [*_attention_linears(tokens, D), *2 * [(tokens, D, D)], (tokens, D, 4 * D), (tokens, 4 * D, D)]


def _pairs(s: _Sizes) -> int:
    """Pairs of a query and a key in the attentions of one block."""
    joint = (s.L + s.S) ** 2
    of_frames = {"a": joint, "link": joint, "adaptor": s.L * (s.L + s.S)}.get(s.fusion, 0)
    seen = s.T * (s.T + 1) // 2 if s.causal else s.T**2
    return s.batch * (s.T * s.L**2 + s.L * s.T**2 + (s.T * s.S) ** 2 + of_frames * seen)


def _normed(D: int, stream: int) -> int:
    """Per token: the norm's input and its two float32 statistics, and its output for the gradient of the scale."""
    return 2 * stream * D + 8


def _block_bytes(s: _Sizes, stream: int, narrow: int) -> int:
    D = s.D
    attention = _normed(D, stream) + 6 * narrow * D + 4 * s.heads  # 6: input, q, k, v, output, projection; logsumexp
    mlp = _normed(D, stream) + narrow * (2 * D + 2 * s.hidden)
    adaln = 24 * narrow * D  # 4 activated conditions, 15 shifts, scales and gates, 5 scales plus one
    tokens = s.N_v * (2 * attention + mlp) + s.N_a * (attention + mlp)
    return tokens + s.frames * adaln + _fusion_bytes(s, stream, narrow)


def _fusion_bytes(s: _Sizes, stream: int, narrow: int) -> int:
    D = s.D
    match s.fusion:
        case "none":
            return 0
        case "a":
            prefixes = narrow * D if s.causal and s.T > 1 else 0  # outputs of the frames are copied into one
            return (s.N_v + s.N_a) * (stream * D + 8 + 5 * narrow * D + 4 * s.heads + prefixes)
        case "adaptor":
            return _adaptor_bytes(s, stream, narrow)
        case "link":
            return _link_bytes(s, stream, narrow)
        case "b":
            return 2 * s.frames * stream * D
        case "c" | "c_norm":
            normed = stream * D + 8 if s.fusion == "c_norm" else 0
            return 2 * s.frames * (narrow * D + _condition(s, stream, narrow) + normed)
    raise ValueError(f"fusion {s.fusion!r} has no memory formula; add it to models/flav_costs.py")


def _adaptor_bytes(s: _Sizes, stream: int, narrow: int) -> int:
    D, seen = s.D, 1 if s.T * s.L == 1 else 2  # copies of what was seen: with its tokens apart, and in line
    patch = 16 + stream * D + (11 + seen) * narrow * D + 4 * s.heads  # its first norm's input is the feed-forward's
    sound = stream * D + 8 + 4 * narrow * D + 4 * s.heads
    turned = narrow * s.T * (2 * s.L + s.S) * (D // s.heads)  # cosines and sines
    return s.N_v * patch + s.N_a * sound + turned


def _link_bytes(s: _Sizes, stream: int, narrow: int) -> int:
    D = s.D
    turned_tokens = (8 if narrow < stream else 3 * narrow) * D + 8 * D + 8 * s.heads  # norms of queries and keys
    token = 2 * _normed(D, stream) + 19 * narrow * D + 4 * s.heads + turned_tokens
    casts = 2 if s.label_rows and narrow < stream else 1  # of the activated conditions, for each side
    modulation = 2 * _condition(s, stream, narrow) + narrow * D * (2 * casts + 12 + 4)
    turned = narrow * s.T * (s.L + s.S) * (D // s.heads)
    return (s.N_v + s.N_a) * token + s.frames * modulation + turned


def _condition(s: _Sizes, stream: int, narrow: int) -> int:
    """Bytes of one condition vector: a float32 class embedding widens it."""
    return s.D * (stream if s.label_rows else narrow)


def _outer_bytes(s: _Sizes, stream: int, narrow: int) -> int:
    inputs = narrow * (s.N_v * s.patch + s.N_a * s.mels)
    conditions = 2 * (narrow * (TIME_FEATURES + 2 * s.D) + _condition(s, stream, narrow))
    adaln = 4 * narrow * s.D
    tokens, shown = s.N_v + s.N_a, s.of_window.N_v + s.of_window.N_a
    heads = shown * (_normed(s.D, stream) + narrow * s.D) + (tokens - shown) * stream * s.D  # of which they are a view
    texts = 2 * narrow * s.batch * s.text
    return inputs + s.frames * conditions + s.of_window.frames * adaln + heads + texts
