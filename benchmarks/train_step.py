"""Seconds and peak memory of one training step of a preset, ours against the plain reference, and its MFU.

    python benchmarks/train_step.py --model FLAV-S/2 --no-grad-ckpt
    python benchmarks/train_step.py --model FLAV-B/1 --no-reference --out benchmarks/results/train_step_flav_b1_cpu.json

Two FLAV-B/1 with their optimisers need over 20 GiB; --no-reference measures ours alone.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

METHOD = (
    "A step is the forward pass, flow loss, backward pass, clipping of the gradient and fused AdamW, on one batch that "
    "stays the same; with bfloat16 under autocast, weights in float32. Peak memory is that of the process (CPU) or of "
    "the allocator (GPU) after the first of our steps, before the reference is built. MFU counts 3 forward passes a "
    "step, the share of the ceiling also what --grad-ckpt computes again."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    timing.add_model_arguments(p, "FLAV-B/1")
    p.add_argument("--batch-size", type=cli.positive, default=1, help="clips")
    p.add_argument("--grad-ckpt", action=argparse.BooleanOptionalAction, default=True, help="recompute blocks")
    p.add_argument("--reference", action=argparse.BooleanOptionalAction, default=True, help="time the plain side too")
    timing.add_ways(p, "compiled")
    timing.add_arguments(p, repeats=5)
    args = p.parse_args(argv)
    device, dtype, ceiling = timing.begin(args)
    rows, facts = measure(args, device, dtype, ceiling)
    timing.report(__file__, args, METHOD, device, rows, matmul_ceiling_flops=ceiling, **facts)


def measure(args, device, dtype, ceiling: float) -> tuple[list[dict], dict]:
    """Rows of the forward pass and of the step, and facts about the model."""
    import torch

    from benchmarks import subjects
    from models import FLAV
    from models.flav_costs import FLAVCosts

    config = subjects.config(args, grad_ckpt=args.grad_ckpt)
    weights = torch.float64 if dtype == torch.float64 else torch.float32  # bfloat16 is autocast
    model = subjects.random(FLAV(**config), args.seed).to(device, weights)
    if args.compile:
        model.compile_blocks()
    batch, autocast = subjects.training_batch(model, args.batch_size), dtype == torch.bfloat16
    models, steps = {"ours": model}, {"ours": subjects.training_step(model, batch, autocast)}
    steps["ours"]()
    peak = timing.peak_gib(device)
    for way in args.also:
        models[way] = subjects.compiled(model)
        steps[way] = subjects.training_step(models[way], batch, autocast)
    if args.reference:
        models["reference"] = subjects.reference_of(model, config, share=False)
        steps["reference"] = subjects.training_step(models["reference"], batch, autocast)
    forwards = {name: subjects.forward_pass(net, batch[:3], autocast) for name, net in models.items()}
    rows = rows_of(args, config, forwards, steps, device, ceiling, peak)
    facts = {"config": config, "parameters": FLAVCosts(config).parameters}
    return rows, {**facts, **timing.gpu_peaks(steps, device)}


def rows_of(args, config: dict, forwards: dict, steps: dict, device, ceiling: float, peak: float) -> list[dict]:
    """The two rows, and two for each of --also; peak in GiB, of ours."""
    from models.flav_costs import FLAVCosts

    what = f"{args.model}, fusion {args.fusion}, batch {args.batch_size}, {args.dtype}"
    other = "reference" if args.reference else None
    costs, rows = FLAVCosts(config), []
    of_forwards, of_steps = timing.alternate(forwards, args, device), timing.alternate(steps, args, device)
    for way in ("ours", *args.also):
        forward = timing.compared(f"forward, {what}", of_forwards, way, other)
        rows.append(forward | timing.share(costs.forward_flops(args.batch_size), forward["ours_s"], ceiling))
        step = timing.compared(f"training step, {what}", of_steps, way, other)
        step |= timing.share(costs.training_flops(args.batch_size), step["ours_s"], ceiling)
        mfu = costs.training_flops(args.batch_size, recomputed=False) / step["ours_s"] / ceiling
        step |= {"mfu": mfu, "note": f"MFU {mfu:.2f}{of_sheet(args, device, mfu * ceiling)}"}
        if way == "ours":
            step |= {"peak_gib": peak, "note": f"{step['note']}, {peak:.2f} GiB"}
        rows.append(step)
    return rows


def of_sheet(args, device, flops: float) -> str:
    """FLOP/s as a share of the maker's figure, in words, where there is one."""
    import torch

    from training.ceiling import data_sheet_flops, device_name

    sheet = data_sheet_flops(device_name(device), getattr(torch, args.dtype))
    return f" ({flops / sheet:.2f} of the data sheet)" if sheet else ""


if __name__ == "__main__":
    cli.run(main)
