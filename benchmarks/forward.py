"""Seconds of one forward pass of a window, ours against the plain reference, and its share of the matmul ceiling.

python benchmarks/forward.py --model FLAV-S/2 --out benchmarks/results/forward_flav_s2_cpu.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    timing.add_model_arguments(p, "FLAV-S/2")
    p.add_argument("--batch-size", type=cli.positive, default=1, help="clips")
    timing.add_ways(p, "compiled")
    timing.add_arguments(p)
    args = p.parse_args(argv)
    device, dtype, ceiling = timing.begin(args)
    rows, facts = measure(args, device, dtype, ceiling)
    method = "One forward pass of a rolling window with random weights and inputs, without gradients."
    timing.report(__file__, args, method, device, rows, matmul_ceiling_flops=ceiling, **facts)


def measure(args, device, dtype, ceiling: float) -> tuple[list[dict], dict]:
    """The row of both sides, one for each of --also, and facts about them."""
    from benchmarks import subjects
    from models import FLAV
    from models.flav_costs import FLAVCosts

    config = subjects.config(args)
    costs = FLAVCosts(config)
    model = subjects.random(FLAV(**config), args.seed).to(device, dtype).eval()
    plain, inputs = subjects.reference_of(model, config), subjects.inputs(model, args.batch_size, device, dtype)
    ways = {"ours": model, **{way: subjects.compiled(model) for way in args.also}}
    if args.compile:
        model.compile_blocks()
    sides = {name: subjects.forward_pass(net, inputs) for name, net in {**ways, "reference": plain}.items()}
    seconds, peaks = timing.alternate(sides, args, device), timing.gpu_peaks(sides, device)
    what = f"forward, {args.model}, fusion {args.fusion}, batch {args.batch_size}, {args.dtype}"
    rows = [timing.compared(what, seconds, way, "reference") for way in ways]
    rows = [row | timing.share(costs.forward_flops(args.batch_size), row["ours_s"], ceiling) for row in rows]
    return rows, {"config": config, "parameters": costs.parameters, **peaks}


if __name__ == "__main__":
    cli.run(main)
