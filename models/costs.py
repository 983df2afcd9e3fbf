"""What a FLAV configuration costs, from formulas alone: parameters, operations, memory, time. No model is built.

A configuration is the dictionary of FLAV's own arguments, such as `FLAV_presets["FLAV-B/1"]`; what it leaves out has
FLAV's defaults. `python -m models.costs` prints the tables of docs/scale.md.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from models.flav import FLAV, FLAV_presets, _check_architecture

TIME_FEATURES = 256
PRECISIONS = {"fp32": (4, 4), "bf16": (4, 2)}  # bytes of residual stream and norms, bytes around matrix products
STRATEGIES = ("ddp", "fsdp")
H100_BF16 = 989e12  # FLOP/s of an H100 SXM by its data sheet, dense

_Linear = tuple[int, int, int]  # rows, inputs, outputs of a linear map


class _Sizes(NamedTuple):
    """What costs depend on: a configuration, `batch` clips and a window of T frames of L video and S audio tokens."""

    depth: int
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
    grad_ckpt: bool
    batch: int
    T: int

    @property
    def frames(self) -> int:
        return self.batch * self.T

    @property
    def N_v(self) -> int:  # video tokens in the call
        return self.frames * self.L

    @property
    def N_a(self) -> int:  # audio tokens in the call
        return self.frames * self.S


def parameters(config: Mapping) -> int:
    """Exact number of parameters."""
    s = _sizes(config)
    tables = s.L + s.S + 2 * s.window + 2 * s.label_rows  # rows of width D
    return _outer_parameters(s) + s.depth * _block_parameters(s) + tables * s.D + s.text  # the null text


def forward_flops(config: Mapping, batch: int = 1, T: int | None = None) -> int:
    """Floating-point operations of one forward pass, 2 per multiply-add of a matrix product.

    Counted are linear maps, the patch convolution and both products of every attention; not the rest (norms,
    modulation, softmax, time features). A causal mask does not lower the count, as in torch.utils.flop_counter, but
    fusion a reads prefixes of whole frames instead of a mask, and only those are counted.
    """
    s = _sizes(config, batch, T)
    return _flops(_first_linears(s)) + _flops(_later_linears(s)) + s.depth * _block_flops(s)


def training_flops(config: Mapping, batch: int = 1, T: int | None = None) -> int:
    """Operations of forward and backward: 3 x forward, since every product has two gradients of its own cost.

    The input layers have one, since data needs no gradient. With grad_ckpt the blocks run forward once more: 4 x.
    What fused attention kernels recompute of their scores is not counted.
    """
    s = _sizes(config, batch, T)
    recomputed = s.depth * _block_flops(s) if s.grad_ckpt else 0
    return 3 * forward_flops(config, batch, T) - _flops(_first_linears(s)) + recomputed


def activation_bytes(config: Mapping, batch: int = 1, T: int | None = None, precision: str = "fp32") -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, weights and their bf16 copies not counted.

    Holds for fused attention, which keeps q, k, v, its output and the logsumexp of each row: measured with the CPU's
    flash kernel, expected of CUDA's flash and efficient kernels (not verified there). The math kernel keeps the
    scores as well. Labels, the floor of prediction "data" (bytes per frame) and the loss are not counted.

    With grad_ckpt: what the forward pass keeps, and one block as the backward pass recomputes it.

    Args:
        precision: "fp32", or "bf16" for autocast, where the residual stream and norms stay float32.
    Raises:
        ValueError: the precision is unknown, or FLAV would not take the configuration, batch or T.
    """
    s = _sizes(config, batch, T)
    stream, narrow = _widths(precision)
    block, between = _block_bytes(s, stream, narrow), stream * s.D * (s.N_v + s.N_a)
    blocks = s.depth * between + (block - between) if s.grad_ckpt else s.depth * block
    return blocks + _outer_bytes(s, stream, narrow)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU; the total is as if all were held at once, though gradients grow as activations are freed."""

    weights: int
    gradients: int
    optimiser: int  # two moments of AdamW
    ema: int
    working: int  # weights as products see them: bf16 copies, and gathered blocks under FSDP
    activations: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def memory_plan(
    config: Mapping, batch_per_gpu: int, gpus: int, strategy: str = "ddp", precision: str = "bf16"
) -> MemoryPlan:
    """Memory of one GPU in training. Not counted: CUDA's context, workspaces, gradients of activations, the codec.

    Weights, gradients, moments and EMA are float32 in either precision. DDP holds them all and, from two GPUs on, the
    gradients a second time in its buckets. FSDP holds 1/gpus of each, and gathers the outer layers and two blocks at a
    time (one at work, one fetched), with the gradients of one; on a single GPU it is DDP.

    Raises:
        ValueError: the strategy or precision is unknown, there are no GPUs, or FLAV would not take the configuration.
    """
    if strategy not in STRATEGIES or gpus < 1:
        raise ValueError(
            f"strategy {strategy!r} on {gpus} GPUs is no plan; give one of {', '.join(STRATEGIES)} and at least 1 GPU"
        )
    s, (stream, narrow) = _sizes(config), _widths(precision)
    sharded = strategy == "fsdp" and gpus > 1
    own = 4 * (-(-parameters(config) // gpus) if sharded else parameters(config))
    if sharded:
        working = narrow * (_outer_parameters(s) + 3 * _block_parameters(s))
    else:
        working = narrow * _copied_weights(s) if narrow < stream else 0
    return MemoryPlan(
        weights=own,
        gradients=own * (2 if strategy == "ddp" and gpus > 1 else 1),
        optimiser=2 * own,
        ema=own,
        working=working,
        activations=activation_bytes(config, batch_per_gpu, precision=precision),
    )


def throughput(config: Mapping, batch: int, peak_flops: float = H100_BF16, mfu: float = 0.4) -> float:
    """Seconds of one training step of one GPU: its operations over the rate at which it works.

    Args:
        batch: clips per GPU.
        peak_flops: FLOP/s of the GPU by its data sheet.
        mfu: share of the peak that is reached, in (0, 1]. Recomputed blocks count as work, so the MFU that leaves them
            out is lower; communication and data loading cost nothing.
    Raises:
        ValueError: peak_flops or mfu is no rate, or FLAV would not take the configuration or batch.
    """
    if not (peak_flops > 0 and 0 < mfu <= 1):
        raise ValueError(f"peak {peak_flops:g} FLOP/s with MFU {mfu:g} is no rate; give a peak above 0, MFU in (0, 1]")
    return training_flops(config, batch) / (peak_flops * mfu)


def _sizes(config: Mapping, batch: int = 1, T: int | None = None) -> _Sizes:
    """Sizes of FLAV(**config) called on `batch` windows of T frames; None is the longest window."""
    c = {**{name: p.default for name, p in inspect.signature(FLAV).parameters.items()}, **config}
    if strange := sorted(c.keys() - inspect.signature(FLAV).parameters.keys()):
        raise ValueError(f"the configuration has {strange}, which FLAV does not take; leave it out")
    _check_architecture(c["latent_size"], c["patch_size"], c["fusion"], c["prediction"])
    window, classes = c["predict_frames"], c["num_classes"] or 0
    T = window if T is None else T
    if batch < 1 or not 1 <= T <= window:
        raise ValueError(f"batch {batch} of {T} frames does not fit; give at least 1 clip and 1 to {window} frames")
    return _Sizes(
        depth=c["depth"],
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
        grad_ckpt=c["grad_ckpt"],
        batch=batch,
        T=T,
    )


def _widths(precision: str) -> tuple[int, int]:
    """Bytes per value of the residual stream, and of what matrix products read and write."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _first_linears(s: _Sizes) -> list[_Linear]:
    """Maps of data, which get no gradient for their input."""
    return [(s.N_v, s.patch, s.D), (s.N_a, s.mels, s.D), *2 * [(s.frames, TIME_FEATURES, s.D)]]


def _later_linears(s: _Sizes) -> list[_Linear]:
    """Second layer of the time embedders, the maps of text, whose input may be the learned null text, and the heads."""
    heads = [(s.N_v, s.D, s.patch), (s.N_a, s.D, s.mels), *2 * [(s.frames, s.D, 2 * s.D)]]
    texts = 2 * [(s.batch, s.text, s.D)] if s.text else []
    return [*2 * [(s.frames, s.D, s.D)], *texts, *heads]


def _block_linears(s: _Sizes) -> list[_Linear]:
    D, r = s.D, s.hidden
    attentions = [linear for tokens in (s.N_v, s.N_v, s.N_a) for linear in _attention_linears(tokens, D)]
    adaln = [(s.frames, D, 6 * D), *3 * [(s.frames, D, 3 * D)]]
    mlps = [linear for tokens in (s.N_v, s.N_a) for linear in [(tokens, D, r), (tokens, r, D)]]
    return attentions + adaln + mlps + _fusion_linears(s)


def _attention_linears(tokens: int, D: int) -> list[_Linear]:
    return [(tokens, D, 3 * D), (tokens, D, D)]


def _fusion_linears(s: _Sizes) -> list[_Linear]:
    match s.fusion:
        case "none" | "b":
            return []
        case "a":
            return _attention_linears(s.N_v + s.N_a, s.D)
        case "c" | "c_norm":
            return 2 * [(s.frames, s.D, s.D)]
    raise ValueError(f"fusion {s.fusion!r} has no cost formula; add it to models/costs.py")


def _pairs(s: _Sizes) -> int:
    """Pairs of a query and a key in the attentions of one block."""
    N = s.L + s.S
    joint = N**2 * (s.T * (s.T + 1) // 2 if s.causal else s.T**2) if s.fusion == "a" else 0
    return s.batch * (s.T * s.L**2 + s.L * s.T**2 + (s.T * s.S) ** 2 + joint)


def _flops(linears: list[_Linear]) -> int:
    return sum(2 * rows * inputs * outputs for rows, inputs, outputs in linears)


def _weights(linears: list[_Linear]) -> int:
    return sum(inputs * outputs for _, inputs, outputs in linears)


def _block_flops(s: _Sizes) -> int:
    return _flops(_block_linears(s)) + 4 * s.D * _pairs(s)


def _block_parameters(s: _Sizes) -> int:
    return _weights(_block_linears(s)) + sum(outputs for *_, outputs in _block_linears(s))


def _outer_parameters(s: _Sizes) -> int:
    linears = _first_linears(s) + _later_linears(s)
    return _weights(linears) + sum(outputs for *_, outputs in linears)


def _copied_weights(s: _Sizes) -> int:
    """Weights of which autocast's copies live on for the backward pass; of checkpointed blocks one at a time does."""
    blocks = 1 if s.grad_ckpt else s.depth
    return _weights(_later_linears(s)) + blocks * _weights(_block_linears(s))


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
        case "b":
            return 2 * s.frames * stream * D
        case "c" | "c_norm":
            normed = stream * D + 8 if s.fusion == "c_norm" else 0
            return 2 * s.frames * (narrow * D + _condition(s, stream, narrow) + normed)
    raise ValueError(f"fusion {s.fusion!r} has no memory formula; add it to models/costs.py")


def _condition(s: _Sizes, stream: int, narrow: int) -> int:
    """Bytes of one condition vector: a float32 class embedding widens it."""
    return s.D * (stream if s.label_rows else narrow)


def _outer_bytes(s: _Sizes, stream: int, narrow: int) -> int:
    inputs = narrow * (s.N_v * s.patch + s.N_a * s.mels)
    conditions = 2 * (narrow * (TIME_FEATURES + 2 * s.D) + _condition(s, stream, narrow))
    adaln = 4 * narrow * s.D
    heads = (s.N_v + s.N_a) * (_normed(s.D, stream) + narrow * s.D)
    texts = 2 * narrow * s.batch * s.text
    return inputs + s.frames * (conditions + adaln) + heads + texts


def tables() -> str:
    """The tables of docs/scale.md, in Markdown."""
    presets = {name: {**FLAV_presets[name], "grad_ckpt": True} for name in ("FLAV-B/1", "FLAV-L/1", "FLAV-XL/2")}
    head = "| model | parameters | forward, one clip | step, 16 clips | activations | no grad-ckpt | seconds per step |"
    models = [head, _rule(head), *(_model_row(name, config) for name, config in presets.items())]
    head = "| model | GPUs | clips per step | step | DDP | FSDP | clips per second |"
    plans = [_plan_row(name, config, gpus) for name, config in presets.items() for gpus in (1, 8, 64)]
    return "\n".join([*models, "", head, _rule(head), *plans])


def _rule(head: str) -> str:
    return "| --- |" + " ---: |" * (head.count("|") - 2)


def _model_row(name: str, config: Mapping, batch: int = 16) -> str:
    kept, all_kept = (
        activation_bytes({**config, "grad_ckpt": ckpt}, batch, precision="bf16") / 1e9 for ckpt in (True, False)
    )
    flops = f"{forward_flops(config) / 1e12:.2f} TFLOP | {training_flops(config, batch) / 1e12:.0f} TFLOP"
    memory = f"{kept:.1f} GB | {all_kept:.1f} GB"
    return f"| {name} | {parameters(config):,} | {flops} | {memory} | {throughput(config, batch):.2f} |"


def _plan_row(name: str, config: Mapping, gpus: int, batch: int = 16) -> str:
    ddp, fsdp = (memory_plan(config, batch, gpus, strategy).total / 1e9 for strategy in STRATEGIES)
    step = training_flops(config, batch) * gpus / 1e15
    rate = batch * gpus / throughput(config, batch)
    return f"| {name} | {gpus} | {batch * gpus} | {step:.2f} PFLOP | {ddp:.1f} GB | {fsdp:.1f} GB | {rate:.1f} |"


if __name__ == "__main__":
    print(tables())
