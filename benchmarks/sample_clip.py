"""Seconds of sampling clips, ours against the plain reference and against ourselves with each switch off.

    python benchmarks/sample_clip.py --model FLAV-tiny --out benchmarks/results/sample_clip_flav_tiny_cpu.json

Frame evaluations are counted at the model's door: calls times frames of the window that a call gets, for each clip.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

SWITCHES = {"ours": {}, "no skip": {"skip": False}, "no tables": {"tables": False},
            "all off": {"skip": False, "tables": False}}  # fmt: skip


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    timing.add_model_arguments(p, "FLAV-tiny")
    p.add_argument("--batch-sizes", type=cli.positive, nargs="+", default=[1, 4], help="clips that share calls")
    p.add_argument("--frames", type=cli.positive, default=16, help="of a clip")
    p.add_argument("--num-timesteps", type=cli.positive, default=2, help="steps n per frame")
    p.add_argument("--switches", action=argparse.BooleanOptionalAction, default=True, help="time each switch off")
    timing.add_ways(p, *timing.WAYS)
    timing.add_arguments(p)
    args = p.parse_args(argv)
    device, dtype, ceiling = timing.begin(args)
    rows, facts = measure(args, device, dtype, ceiling)
    method = (
        f"Clips of {args.frames} frames, {args.num_timesteps} steps per frame, random weights, nothing decoded; both "
        "sides draw the same noise on the CPU, and our tables stay from clip to clip. Before the warm-up each model is "
        "called once. Frame evaluations are counted."
    )
    timing.report(__file__, args, method, device, rows, matmul_ceiling_flops=ceiling, **facts)


def measure(args, device, dtype, ceiling: float) -> tuple[list[dict], dict]:
    """Rows of every batch size, and facts about the models."""
    from benchmarks import subjects
    from models import FLAV
    from pipeline import AVPipeline

    config = subjects.config(args)
    model = subjects.random(FLAV(**config), args.seed).to(device, dtype).eval()
    plain = subjects.reference_of(model, config)
    if args.compile:
        model.compile_blocks()
    for net in (model, plain):
        subjects.forward_pass(net, subjects.inputs(model, 1, device, dtype))()
    pipe = AVPipeline(model, subjects.codec(config, kind=subjects.Undecoded), device, dtype)
    pipes = subjects.pipelines(pipe, args.also)
    rows, peaks = [], {}
    for batch in args.batch_sizes:
        more, peaks[f"batch {batch}"] = measure_batch(args, config, pipes, plain, batch, ceiling)
        rows += more
    return rows, {"config": config, "peaks": peaks}


def measure_batch(args, config: dict, pipes: dict, plain, batch: int, ceiling: float) -> tuple[list[dict], dict]:
    """Rows of one batch size: ours and each of --also beside the reference, then each switch off, then all off."""
    from models.flav_costs import FLAVCosts

    sides, count = sides_of(args, config, pipes["ours"].model, plain, list(range(batch)))
    sides |= {way: clip_of(args, pipes[way], list(range(batch))) for way in args.also}
    device = pipes["ours"].device
    seconds, clip = timing.alternate(sides, args, device), f"{args.frames} frames, {args.model}, batch {batch}"
    frames = {name: sum(T * calls for (_, T), calls in count[name].items()) for name in count}
    row = timing.compared(clip, seconds, "ours", "reference", frame_evaluations=frames)
    row["note"] = f"{frames['ours']} of {frames['reference']} frame evaluations"
    flops = sum(calls * FLAVCosts(config, T).forward_flops(rows) for (rows, T), calls in count["ours"].items())
    rows = [row, *(timing.compared(clip, seconds, way, "reference") for way in args.also)]
    rows = [row | timing.share(flops, row["ours_s"], ceiling) for row in rows]
    if args.switches:
        rows += [timing.compared(clip, seconds, "ours", name) for name in SWITCHES if name != "ours"]
        rows.append(timing.compared(clip, seconds, "all off", "reference"))
    return rows, timing.gpu_peaks(sides, device)


def sides_of(args, config: dict, model, plain, samples: list[int]) -> tuple[dict, dict]:
    """The sides as calls that make the same clips, and how often the last one of each called the model, by shape."""
    from itertools import islice

    from benchmarks import subjects
    from pipeline import AVPipeline

    count, weight = {}, next(model.parameters())
    codec = subjects.codec(config, kind=subjects.Undecoded)
    frames, n = args.frames, args.num_timesteps

    def ours(switches):
        return clip_of(args, AVPipeline(model, codec, weight.device, weight.dtype, **switches), samples)

    def reference():
        return list(islice(subjects.reference_frames(plain, model, samples, n, args.seed), frames))

    names = SWITCHES if args.switches else ["ours"]
    runs = {name: (model, ours(SWITCHES[name])) for name in names} | {"reference": (plain, reference)}
    return {name: counted(name, *run, count) for name, run in runs.items()}, count


def clip_of(args, pipe, samples: list[int]):
    """A call that makes a clip of each sample."""
    how = dict(seed=args.seed, num_timesteps=args.num_timesteps, cfg_scale=1.0)
    return lambda: pipe.sample(samples, args.frames, **how)


def counted(name: str, model, run, count: dict):
    """The run; each time count[name] becomes the number of calls of the model by their (rows, frames)."""

    def seen(module, inputs) -> None:
        count[name][tuple(inputs[0].shape[:2])] += 1

    def counting():
        count[name] = Counter()
        hook = model.register_forward_pre_hook(seen)
        try:
            return run()
        finally:
            hook.remove()

    return counting


if __name__ == "__main__":
    cli.run(main)
