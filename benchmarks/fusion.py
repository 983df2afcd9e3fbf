"""What each fusion costs: seconds of a forward pass and of a training step, beside the model whose branches are apart.

python benchmarks/fusion.py --model FLAV-S/2 --out benchmarks/results/fusion_flav_s2_cpu.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

METHOD = (
    "Forward passes without gradients and training steps without --grad-ckpt, of our model with each fusion in turn. "
    "The other side is fusion none, so a ratio under 1 is what passing something costs."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    timing.add_model_arguments(p, "FLAV-S/2", whole=False)
    p.add_argument("--fusions", nargs="+", default=["a", "b", "c"], help="beside none")
    p.add_argument("--batch-size", type=cli.positive, default=1, help="clips")
    timing.add_arguments(p)
    args = p.parse_args(argv)
    device, dtype, ceiling = timing.begin(args)
    timing.report(__file__, args, METHOD, device, measure(args, device, dtype, ceiling), matmul_ceiling_flops=ceiling)


def measure(args, device, dtype, ceiling: float) -> list[dict]:
    """A row of each fusion for the forward pass, then for the training step."""
    import torch

    from benchmarks import subjects
    from models import FLAV
    from models.flav_costs import FLAVCosts

    weights, autocast = torch.float64 if dtype == torch.float64 else torch.float32, dtype == torch.bfloat16
    forwards, steps, configs = {}, {}, {}
    for fusion in ["none", *args.fusions]:
        configs[fusion] = subjects.config(args, fusion=fusion)
        model = subjects.random(FLAV(**configs[fusion]), args.seed).to(device, weights)
        batch = subjects.training_batch(model, args.batch_size)
        forwards[fusion] = subjects.forward_pass(model, batch[:3], autocast)
        steps[fusion] = subjects.training_step(model, batch, autocast)
    rows = []
    kinds = (("forward", forwards, FLAVCosts.forward_flops), ("training step", steps, FLAVCosts.training_flops))
    for what, sides, flops in kinds:
        seconds = timing.alternate(sides, args, device)
        for fusion in args.fusions:
            row = timing.compared(f"{what}, {args.model}, batch {args.batch_size}", seconds, fusion, "none")
            row["note"] = f"{row['ours_s'] / row['other_s']:.2f} x none"
            rows.append(row | timing.share(flops(FLAVCosts(configs[fusion]), args.batch_size), row["ours_s"], ceiling))
    return rows


if __name__ == "__main__":
    cli.run(main)
