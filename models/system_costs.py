"""What the costs of all systems have in common: pieces of a model -> parameters, operations, memory, time.

A system says what its pieces are, and the formulas here add them up.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from models.checkpoint import Pretrained

TIME_FEATURES = 256
PRECISIONS = {"fp32": (4, 4), "bf16": (4, 2)}  # bytes of residual stream and norms, bytes around matrix products
STRATEGIES = ("ddp", "fsdp")
H100_BF16 = 989e12  # FLOP/s of an H100 SXM by its data sheet, dense

Linear = tuple[int, int, int]  # rows, inputs, outputs of a linear map


class ClipSize(NamedTuple):
    """A clip as the model gets it: T (latent) frames of height x width, tokens of its sound and of its text."""

    T: int
    height: int
    width: int
    sound: int
    text: int


@dataclass(frozen=True)
class Piece:
    """A part of a model in a call: one of its layers, or what is around them.

    Args:
        linears: maps whose input gets a gradient. first: maps of data, whose input gets none.
        pairs: of a query and a key in its attentions, times their width.
        known: of these pairs, those whose keys and values get no gradient where it passes.
        more: parameters that are of no linear map.
        kept: bytes that autograd keeps of it, each storage once, without weights and their copies.
        between, again: where layers are recomputed, bytes kept of it until then, and those on top while it is.
        passed, still: maps that are frozen, whose input gets a gradient on its way to what learns, or none.
        more_frozen: parameters that are frozen and of no linear map.
        ends: operations of the map at its end, which recomputing leaves out since nothing needs what it gives.
        learns: whether gradients reach it, of its own weights or on their way; else it has no graph.
    """

    linears: Sequence[Linear]
    first: Sequence[Linear] = ()
    pairs: int = 0
    known: int = 0
    more: int = 0
    kept: int = 0
    between: int = 0
    again: int = 0
    ends: int = 0
    learns: bool = True
    passed: Sequence[Linear] = ()
    still: Sequence[Linear] = ()
    more_frozen: int = 0

    @property
    def parameters(self) -> int:
        return _with_biases((*self.linears, *self.first, *self.passed, *self.still)) + self.more + self.more_frozen

    @property
    def trained(self) -> int:
        return (_with_biases((*self.linears, *self.first)) + self.more) * self.learns

    @property
    def forward_flops(self) -> int:
        return _flops((*self.linears, *self.first, *self.passed, *self.still)) + 4 * self.pairs

    @property
    def backward_flops(self) -> int:
        """Twice the forward pass, since every product has two gradients of its own cost; maps of data have one.

        Of what gradients pass through, maps have the gradient of their input alone, those of data none.
        """
        one = _flops((*self.first, *self.passed))
        return (2 * (_flops(self.linears) + 4 * self.pairs) - 4 * self.known + one) * self.learns


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU; the total is as if all were held at once, though gradients grow as activations are freed."""

    weights: int
    gradients: int
    optimiser: int  # two moments of AdamW
    ema: int
    working: int  # weights as products see them: bf16 copies, and gathered layers under FSDP
    activations: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Costs(ABC):
    """What a configuration of one system costs for clips of one size, from formulas alone. No model is built.

    Args:
        config: arguments of the model, such as a preset; what it leaves out has the defaults of its class.
    Attributes:
        kind: that class.
    """

    kind: ClassVar[type[Pretrained]]
    config: Mapping

    @classmethod
    @abstractmethod
    def of_training(
        cls, config: Mapping, shapes: tuple[Sequence[int], Sequence[int]], text: int, stage: str | None
    ) -> Self:
        """Costs of training on what a codec makes of a data set.

        Args:
            shapes: of picture and sound, a frame of them or a clip, as `codec.unit_shapes` has them.
            text: tokens of a caption, 0 for none. stage: of training, None for the system's own.
        """

    @abstractmethod
    def outer(self, batch: int, precision: str) -> list[Piece]:
        """What is around the layers."""

    @abstractmethod
    def layers(self, batch: int, precision: str) -> list[tuple[int, Piece]]:
        """A layer of each kind, and how many there are of it."""

    @property
    def arguments(self) -> dict:
        """All arguments of the model.

        Raises:
            ValueError: the configuration has others.
        """
        known = {name: p.default for name, p in inspect.signature(self.kind).parameters.items()}
        if strange := sorted(self.config.keys() - known.keys()):
            raise ValueError(f"the configuration has {strange}, which {self.kind.__name__} does not take; leave it out")
        return {**known, **self.config}

    @property
    def depth(self) -> int:
        """Layers of each kind."""
        return self.arguments["depth"]

    @property
    def grad_ckpt(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return self.arguments["grad_ckpt"]

    @property
    def parameters(self) -> int:
        """Exact number of parameters."""
        return self._sum(lambda piece: piece.parameters)

    @property
    def trained(self) -> int:
        """Those of them that are trained."""
        return self._sum(lambda piece: piece.trained)

    def forward_flops(self, batch: int = 1) -> int:
        """Floating-point operations of one forward pass, 2 per multiply-add of a matrix product.

        Counted are linear maps, the patch convolution and both products of every attention; not the rest (norms,
        modulation, softmax, time features). Masks do not lower the count, as in torch.utils.flop_counter.
        """
        return self._sum(lambda piece: piece.forward_flops, batch)

    def training_flops(self, batch: int = 1, recomputed: bool = True) -> int:
        """Operations of forward and backward: 3 x forward of what learns, 4 x where its layers are recomputed.

        Of what gradients pass through on their way it is about 2 x and 3 x.

        What fused attention kernels recompute of their scores is not counted.

        Args:
            recomputed: count what grad_ckpt recomputes.
        """
        flops = self.forward_flops(batch) + self._sum(lambda piece: piece.backward_flops, batch)
        if self.grad_ckpt and recomputed:
            flops += sum(n * (x.forward_flops - x.ends) for n, x in self.layers(batch, "fp32") if x.learns)
        return flops

    def activation_bytes(self, batch: int = 1, precision: str = "fp32") -> int:
        """Bytes that autograd keeps for the backward pass, each storage once, without weights and their bf16 copies.

        Holds for fused attention, which keeps q, k, v, its output and the logsumexp of each row: measured with the
        CPU's flash kernel, expected of CUDA's flash and efficient kernels (not verified there). The math kernel keeps
        the scores as well. Labels, the loss and what predicting data adds (bytes per frame) are not counted.

        With grad_ckpt: what the forward pass keeps, and the largest layer as the backward pass recomputes it.

        Args:
            precision: "fp32", or "bf16" for autocast, where the residual stream and norms stay float32.
        Raises:
            ValueError: the precision is unknown, or the model would not take the batch.
        """
        outer, layers = self._learning(batch, precision)
        around = sum(piece.kept for piece in outer)
        if self.grad_ckpt:
            return around + sum(n * x.between for n, x in layers) + max(x.again for _, x in layers)
        return around + sum(n * x.kept for n, x in layers)

    def memory_plan(self, batch_per_gpu: int, gpus: int, strategy: str = "ddp", precision: str = "bf16") -> MemoryPlan:
        """Memory of one GPU in training. Not counted: CUDA's context, workspaces, gradients of activations, the codec.

        Weights, gradients, moments and EMA are float32 in either precision; what is frozen has weights alone. DDP holds
        them all and, from two GPUs on, the gradients a second time in its buckets. FSDP holds 1/gpus of each, and
        gathers what is around the layers and the largest layer twice (one at work, one fetched), with the gradients of
        the largest that learns; on a single GPU it is DDP.

        Raises:
            ValueError: the strategy or precision is unknown, there are no GPUs, or the model would not take the batch.
        """
        if strategy not in STRATEGIES or gpus < 1:
            raise ValueError(
                f"strategy {strategy!r} on {gpus} GPUs is no plan; give one of {', '.join(STRATEGIES)} and at least "
                "1 GPU"
            )
        sharded = strategy == "fsdp" and gpus > 1
        weights, learning = (4 * (-(-n // gpus) if sharded else n) for n in (self.parameters, self.trained))
        return MemoryPlan(
            weights=weights,
            gradients=learning * (2 if strategy == "ddp" and gpus > 1 else 1),
            optimiser=2 * learning,
            ema=learning,
            working=self._gathered(precision) if sharded else self._copied(precision),
            activations=self.activation_bytes(batch_per_gpu, precision),
        )

    def seconds(self, batch: int, peak_flops: float = H100_BF16, mfu: float = 0.4) -> float:
        """Seconds of one training step of one GPU: its operations over the rate at which it works.

        Args:
            batch: clips per GPU.
            peak_flops: FLOP/s of the GPU by its data sheet.
            mfu: share of the peak that is reached, in (0, 1]. Recomputed layers count as work, so the MFU that leaves
                them out is lower; communication and data loading cost nothing.
        Raises:
            ValueError: peak_flops or mfu is no rate, or the model would not take the batch.
        """
        if not (peak_flops > 0 and 0 < mfu <= 1):
            raise ValueError(
                f"peak {peak_flops:g} FLOP/s with MFU {mfu:g} is no rate; give a peak above 0, MFU in (0, 1]"
            )
        return self.training_flops(batch) / (peak_flops * mfu)

    def _sum(self, of: Callable[[Piece], int], batch: int = 1) -> int:
        """Of all pieces."""
        layers = sum(n * of(x) for n, x in self.layers(batch, "fp32"))
        return sum(map(of, self.outer(batch, "fp32"))) + layers

    def _learning(self, batch: int, precision: str) -> tuple[list[Piece], list[tuple[int, Piece]]]:
        """What has a graph of what is around the layers, and of the layers."""
        outer, layers = self.outer(batch, precision), self.layers(batch, precision)
        return [x for x in outer if x.learns], [(n, x) for n, x in layers if x.learns]

    def _copied(self, precision: str) -> int:
        """Bytes of the copies that autocast makes of weights for products, as long as the backward pass needs them.

        Of layers that are recomputed those of one at a time live.
        """
        stream, narrow = widths(precision)
        outer, layers = self._learning(1, precision)
        around = sum(_weights((*x.linears, *x.passed)) for x in outer)
        counted = [(1 if self.grad_ckpt else n) * _weights((*x.linears, *x.passed)) for n, x in layers]
        weights = around + (max if self.grad_ckpt else sum)(counted)
        return narrow * weights if narrow < stream else 0

    def _gathered(self, precision: str) -> int:
        """Bytes that FSDP gathers."""
        around = sum(x.parameters for x in self.outer(1, precision))
        layers = [x for _, x in self.layers(1, precision)]
        largest, learning = max(x.parameters for x in layers), max(x.trained for x in layers)
        return widths(precision)[1] * (around + 2 * largest + learning)


@dataclass(frozen=True)
class ClipCosts(Costs):
    """Costs of a system of whole clips, on clips of a size, in a stage of training; None is the one that is all of it.

    Attributes:
        whole: that stage.
    """

    whole: ClassVar[str]
    clip: ClipSize
    stage: str | None = None

    @classmethod
    def of_training(
        cls, config: Mapping, shapes: tuple[Sequence[int], Sequence[int]], text: int = 0, stage: str | None = None
    ) -> Self:
        """A clip without text has one token, the null text's."""
        (T, _, height, width), (sound, _) = shapes
        return cls(config, ClipSize(T, height, width, sound, max(1, text)), stage)

    @property
    def current(self) -> str:
        """The stage."""
        return self.stage or self.whole

    def check(self, batch: int) -> None:
        """Raise a ValueError if there is no such stage, or the model would not take so many clips of this size."""
        c, clip = self.arguments, self.clip
        p, q = c["patch_size"], c["audio_patch"]
        self.kind.check_stage(self.current, **c)
        if batch < 1 or min(clip) < 1 or clip.height % p or clip.width % p or clip.sound % q:
            raise ValueError(f"batch {batch} of {clip} does not fit; give at least 1 clip of 1 frame and 1 text token, "
                             f"sides that {p} divides and sound that {q} divides")  # fmt: skip


def widths(precision: str) -> tuple[int, int]:
    """Bytes per value of the residual stream, and of what matrix products read and write.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def attention_linears(queries: int, keys: int, D: int) -> list[Linear]:
    """Maps of an attention: of queries, of keys with values, and of what comes out."""
    return [(queries, D, D), (keys, D, 2 * D), (queries, D, D)]


def mlp_linears(tokens: int, D: int) -> list[Linear]:
    """Maps of a feed-forward."""
    return [(tokens, D, 4 * D), (tokens, 4 * D, D)]


def copies(products: int, stream: int, narrow: int) -> int:
    """Bytes of a value of the stream as the input of products, for each of which autocast copies it."""
    return products * narrow if narrow < stream else stream


def attention_bytes(
    D: int, heads: int, queries: int, keys: int, narrow: int, stream: int, places: int = 0, learns: bool = True
) -> int:
    """What an attention keeps between its inputs and its output.

    Of queries and keys: the norm's input and output in float32, its statistic, and what the attention reads; keys' and
    values' product as one; the attention's output and logsumexp; sines of `places` positions. Of one through which
    gradients pass, the norms' outputs are not kept.
    """
    normed = 4 * heads
    query = 4 * (1 + learns) * D + narrow * D + normed
    key = (4 * (learns + (narrow < stream)) + narrow) * D + normed
    copied = places > 0 and learns  # by the CPU, where queries were turned by their places
    out = narrow * D * (1 + copied) + 4 * heads
    return queries * (query + out) + keys * (key + 2 * narrow * D) + narrow * places * (D // heads)


def _with_biases(linears: Sequence[Linear]) -> int:
    return _weights(linears) + sum(outputs for *_, outputs in linears)


def _flops(linears: Sequence[Linear]) -> int:
    return sum(2 * rows * inputs * outputs for rows, inputs, outputs in linears)


def _weights(linears: Sequence[Linear]) -> int:
    return sum(inputs * outputs for _, inputs, outputs in linears)
