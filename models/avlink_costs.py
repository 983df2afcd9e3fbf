"""What an AV-Link configuration costs in each stage of training: its pieces for `models.system_costs`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from models.avlink import TOLD, TOWERS, AVLink, placed
from models.link import FEATURES, LINKS, SIDES, DirectAlignment
from models.picture_source import SOURCES, WIDTH
from models.system_costs import (
    TIME_FEATURES,
    ClipCosts,
    ClipSize,
    Linear,
    Piece,
    attention_bytes,
    attention_linears,
    copies,
    mlp_linears,
    widths,
)

PAPERS_CLIP = ClipSize(T=31, height=36, width=64, sound=129, text=300)  # 5.16 s at 6 fps, sound at 25 tokens a second
IDLE = dict(first=(), pairs=0, known=0, kept=0, between=0, again=0, ends=0, learns=False)


class _Sizes(NamedTuple):
    """What costs depend on: a configuration, and `batch` clips as tokens of width D in a side's tower."""

    D: int
    heads: int
    batch: int
    values: dict[str, int]  # of a token
    tokens: dict[str, int]  # of a clip
    frames: dict[str, int]  # of a clip
    text_width: int
    K: int  # text tokens of a clip


class _Part(NamedTuple):
    """How a side runs in a stage: so many of its layers without graph, with one, and not at all."""

    free: int
    graph: int
    idle: int
    learns: bool


@dataclass(frozen=True)
class AVLinkCosts(ClipCosts):
    """Costs of AVLink(**config) on clips of a size, in a stage of training, "link" if none is given.

    In the stages of a tower the other one and the link do not run. In those of the link the towers keep no graph before
    its first block; behind it gradients pass through what they do not train. Not counted is what a part without graph
    holds while it runs.

    Raises (its methods):
        ValueError: AVLink would not take the configuration, batch or clip, or has no such stage.
    """

    kind, whole = AVLink, "link"
    clip: ClipSize = PAPERS_CLIP

    def sampling_flops(self, batch: int = 1, steps: int = AVLink.num_timesteps, guided: bool = True) -> int:
        """Operations of whole clips in Euler steps; guidance adds the made side's tower alone to each."""
        flops = self.forward_flops(batch)
        for side in self._made if guided else ():
            tower = next(stage for stage, other in TOWERS.items() if other == side)
            flops += replace(self, stage=tower).forward_flops(batch)
        return steps * flops

    def outer(self, batch: int, precision: str) -> list[Piece]:
        s, bytes_ = self._sizes(batch), widths(precision)
        around = [_around(s, side, self._part(side), side in self._made, *bytes_) for side in SIDES]
        network = [_network(s, self.current in TOLD)] if SOURCES[self.arguments["source"]] else []
        return [*around, self._times(s, *bytes_), *network]

    def layers(self, batch: int, precision: str) -> list[tuple[int, Piece]]:
        s, bytes_ = self._sizes(batch), widths(precision)
        layers = [counted for side in SIDES for counted in _layers(s, side, self._part(side), *bytes_)]
        return [(n, piece) for n, piece in layers if n] + [(1, block) for block in self._blocks(s, *bytes_)]

    @property
    def _made(self) -> tuple[str, ...]:
        """The sides that are made in the stage."""
        return (TOWERS[self.current],) if self.current in TOWERS else TOLD[self.current]

    @property
    def _placement(self) -> list[int]:
        return placed(self.arguments["placement"], self.depth)

    def _part(self, side: str) -> _Part:
        made, stage, placement = side in self._made, self.current, self._placement
        if stage in TOWERS:
            return _Part(0, self.depth * made, self.depth * (not made), made)
        first, last = (min(placement), max(placement)) if placement else (self.depth, 0)
        last = 0 if SOURCES[self.arguments["source"]] else last  # the given side's tower does not run
        runs = self.depth if made else last
        free = first if made or self.arguments["reinject"] else runs
        return _Part(min(free, runs), runs - min(free, runs), self.depth - runs, False)

    def _sizes(self, batch: int) -> _Sizes:
        c, clip = self.arguments, self.clip
        self.check(batch)
        p, q = c["patch_size"], c["audio_patch"]
        values = p**2 * c["in_channels"], q * c["audio_channels"]
        tokens = clip.T * clip.height * clip.width // p**2, clip.sound // q
        return _Sizes(
            D=c["hidden_size"],
            heads=c["num_heads"],
            batch=batch,
            values=dict(zip(SIDES, values)),
            tokens=dict(zip(SIDES, tokens)),
            frames=dict(zip(SIDES, (clip.T, tokens[1]))),
            text_width=c["text_width"] or 0,
            K=clip.text if c["text_width"] else 1,
        )

    def _times(self, s: _Sizes, stream: int, narrow: int) -> Piece:
        """The embedding of both flow times; it runs in every stage of the link."""
        D, runs = self.arguments["link_size"], self.current in TOLD
        learns = runs and bool(self._placement) and LINKS[self.arguments["link"]].timed
        rows = s.batch * runs
        kept = narrow * rows * (2 * FEATURES + 3 * D)
        return Piece([(rows, D, D)], [(rows, 2 * FEATURES, D)], kept=kept, learns=learns)

    def _blocks(self, s: _Sizes, stream: int, narrow: int) -> Iterator[Piece]:
        """The blocks of the link, and apart from each what of it does not serve the stage."""
        runs, made, placement = self.current in TOLD, self._made, self._placement
        kind, c = LINKS[self.arguments["link"]], self.arguments
        for i in placement:
            told = made if i == max(placement) or not c["reinject"] else SIDES
            moved = () if i == min(placement) else SIDES if c["reinject"] else made  # sides whose tokens have a graph
            if kind is DirectAlignment:
                pieces = _direct(s, told if runs else (), moved, stream, narrow)
            else:
                heard = {side: kind.heard(None, side) for side in SIDES}
                pieces = _block(s, c["link_size"], c["link_heads"], heard, told if runs else (), moved, stream, narrow)
            yield from pieces


def _around(s: _Sizes, side: str, part: _Part, ends: bool, stream: int, narrow: int) -> Piece:
    """What enters a tower, and leaves it where that ends."""
    B, D, runs = s.batch, s.D, part.free + part.graph > 0
    N, N_k = s.batch * s.tokens[side] * runs, s.batch * s.K * runs
    B = B * runs
    first = [(N, s.values[side], D), (B, TIME_FEATURES, D)]
    text = [(N_k, s.text_width, D)] if s.text_width else []
    later = [(N_k, D, D)] if s.text_width else []
    head = [(N * ends, D, s.values[side])]
    modulation = [(B * ends, D, 2 * D)]
    inputs = narrow * (N * s.values[side] + B * TIME_FEATURES + N_k * s.text_width)
    kept = inputs + narrow * D * (B * 4 + 2 * N_k * bool(s.text_width)) + N * ((stream + 2 * narrow) * D + 8)
    kept = kept + 3 * narrow * B * D + stream * N * D
    if part.learns:
        return Piece([*later, (B, D, D), *modulation, *head], [*first, *text], more=D, kept=kept)
    still = [*first, *text, *later, (B, D, D), *modulation]
    kept = N * ends * (stream * D + 8) + narrow * B * D
    return Piece((), passed=head, still=still, more_frozen=D, kept=kept, learns=part.graph > 0 and ends)


def _network(s: _Sizes, runs: bool) -> Piece:
    """What shows a picture in the place of its tower, without graph: convolutions are maps of what they look at."""
    N = s.batch * s.tokens["picture"] * runs
    return Piece([(N, s.values["picture"], WIDTH), (N, 9 * WIDTH, WIDTH), (N, 9 * WIDTH, s.D)], learns=False)


def _layers(s: _Sizes, side: str, part: _Part, stream: int, narrow: int) -> list[tuple[int, Piece]]:
    """A layer of a tower as it is without graph, with one, and where it does not run."""
    B, D, N, N_k = s.batch, s.D, s.batch * s.tokens[side], s.batch * s.K
    query, key_value, proj = attention_linears(N, N_k, D)
    told, adaln = key_value, (B, D, 6 * D)
    maps = [*attention_linears(N, N, D), query, proj, *mlp_linears(N, D)]
    pairs = D * (N * s.tokens[side] + N * s.K)
    scales = 4 * (D // s.heads)
    own = attention_bytes(D, s.heads, N, N, narrow, stream, places=2 * s.tokens[side])
    text = attention_bytes(D, s.heads, N, N_k, narrow, stream) + narrow * N_k
    norms = 2 * N * (2 * stream * D + 8)
    kept = own + text + norms + N * D * (copies(2, stream, narrow) + 12 * narrow) + B * D * narrow * 9
    between = stream * N * D
    common = dict(pairs=pairs, between=between)
    whole = Piece([*maps, told, adaln], more=scales, kept=kept, again=kept - between, **common)
    passed = _passing_bytes(s, side, narrow, stream)
    frozen = Piece((), passed=maps, still=[told, adaln], more_frozen=scales, known=D * N * s.K, kept=passed,
                   again=passed - between, **common)  # fmt: skip
    free = Piece([*maps, told, adaln], pairs=pairs, more=scales, learns=False)
    return [(part.free, free), (part.graph, whole if part.learns else frozen), (part.idle, _idle(whole))]


def _passing_bytes(s: _Sizes, side: str, narrow: int, stream: int) -> int:
    """What a frozen layer keeps for the gradients that pass through it: no input of a map, and no key of the text."""
    B, D, N, N_k = s.batch, s.D, s.batch * s.tokens[side], s.batch * s.K
    own = attention_bytes(D, s.heads, N, N, narrow, stream, places=2 * s.tokens[side], learns=False)
    text = attention_bytes(D, s.heads, N, 0, narrow, stream, learns=False) + N_k * narrow * (3 * D + 1)
    return own + text + 2 * N * (stream * D + 8) + 4 * narrow * N * D + 8 * narrow * B * D


def _block(
    s: _Sizes,
    D: int,
    heads: int,
    heard: dict[str, tuple[str, ...]],
    told: Sequence[str],
    moved: Sequence[str],
    stream: int,
    narrow: int,
) -> list[Piece]:
    """What of a block with attention serves to tell these sides, and the rest.

    heard: the sides that each hears. moved: sides whose tokens have a graph.
    """
    B, W, scale = s.batch, s.D, D // heads
    keys = {other for side in told for other in heard[side]}
    linears, first, pairs, more, kept, rest = [], [], 0, 0, 0, []
    for side in SIDES:
        N, used = B * s.tokens[side], side in keys | {*told}
        query, key_value, proj = attention_linears(N, N, D)
        enter, modulation = (N, W, D), (B, D, 6 * D)
        own = [query, proj, *mlp_linears(N, D), (N, D, W)]
        (linears if side in moved else first).extend([enter] * used)
        linears += [modulation] * used + [key_value] * (side in keys) + own * (side in told)
        rest += [enter, modulation] * (not used) + [key_value] * (side not in keys) + own * (side not in told)
        more += scale * ((side in keys) + (side in told))
        pairs += (side in told) * D * N * sum(s.tokens[other] for other in heard[side])
        kept += _block_bytes(s, D, heads, side, used, side in keys, side in told, len(heard[side]) > 1, stream, narrow)
    ends = 2 * B * s.tokens[told[-1]] * D * W if told else 0
    block = Piece(linears, first, pairs=pairs, more=more, kept=kept, ends=ends, learns=bool(told))
    tokens = stream * W * B * sum(s.tokens[side] for side in moved)
    block = replace(block, between=tokens, again=kept - tokens * (narrow == stream))
    return [block, _idle(Piece(rest, more=4 * scale - more))]


def _block_bytes(
    s: _Sizes, D: int, heads: int, side: str, used: bool, shown: bool, told: bool, joint: bool, stream: int, narrow: int
) -> int:
    """What a block keeps of a side: as it enters, what it shows, what it is told.

    joint: keys of both sides are put in a row, which copies values, but lets go of what autocast made them from.
    """
    if not used:
        return 0
    B, N = s.batch, s.batch * s.tokens[side]
    entered = N * (narrow * s.D + 2 * stream * D + 8 + narrow * D) + 2 * narrow * B * D
    asked = attention_bytes(D, heads, N * told, N * shown, narrow, stream, places=s.tokens[side] * (shown + told))
    asked += narrow * N * D * shown * joint * (1 if narrow == stream else -1)
    after = N * (12 * narrow * D + 2 * stream * D + 8) + 7 * narrow * B * D
    return entered + asked + told * after


def _direct(s: _Sizes, told: Sequence[str], moved: Sequence[str], stream: int, narrow: int) -> list[Piece]:
    """What of a direct alignment serves to tell these sides, and the rest."""
    others = dict(zip(SIDES, reversed(SIDES)))
    rows = {side: s.batch * s.frames[side] for side in SIDES}
    linears = {side: (rows[side], s.D, s.D) for side in SIDES}
    later = [linears[side] for side in told if others[side] in moved]
    data = [linears[side] for side in told if others[side] not in moved]
    kept = sum(rows[side] * (s.D * (stream * (others[side] in moved) + narrow) + 8) for side in told)
    ends = 2 * rows[told[-1]] * s.D**2 if told else 0
    block = Piece(later, data, kept=kept, ends=ends, learns=bool(told))
    return [block, _idle(Piece([linears[side] for side in SIDES if side not in told]))]


def _idle(piece: Piece) -> Piece:
    """The parameters of a piece, where it does not run."""
    maps: list[Linear] = [(0, inputs, outputs) for _, inputs, outputs in (*piece.linears, *piece.first)]
    return replace(piece, linears=maps, **IDLE)
