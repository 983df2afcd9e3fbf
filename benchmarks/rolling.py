"""Seconds of a frame while rolling: the n calls of the whole window, against the plain reference, nothing decoded.

python benchmarks/rolling.py --model FLAV-B/1 --also compiled graphs compiled+graphs --warmup 3 --device cuda
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

METHOD = (
    "A film of random weights that goes on from frame to frame, pre-rolled before the warm-up; a frame is its n steps "
    "and the noise of the one that enters, drawn on the CPU by both sides."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    timing.add_model_arguments(p, "FLAV-tiny")
    p.add_argument("--num-timesteps", type=cli.positive, default=2, help="steps n per frame")
    timing.add_ways(p, *timing.WAYS)
    timing.add_arguments(p, repeats=50)
    args = p.parse_args(argv)
    device, dtype, ceiling = timing.begin(args)
    rows, facts = measure(args, device, dtype, ceiling)
    timing.report(__file__, args, METHOD, device, rows, matmul_ceiling_flops=ceiling, **facts)


def measure(args, device, dtype, ceiling: float) -> tuple[list[dict], dict]:
    """The row of ours and one for each of --also, and facts about them."""
    from benchmarks import subjects
    from models import FLAV
    from models.flav_costs import FLAVCosts
    from pipeline import AVPipeline

    config, n = subjects.config(args), args.num_timesteps
    model = subjects.random(FLAV(**config), args.seed).to(device, dtype).eval()
    plain = subjects.reference_of(model, config)
    pipe = AVPipeline(model, subjects.codec(config, kind=subjects.Undecoded), device, dtype)
    pipes = subjects.pipelines(pipe, args.also)
    if args.compile:
        model.compile_blocks()
    sides = {way: next_frame(frames(one, n, args.seed)) for way, one in pipes.items()}
    sides["reference"] = next_frame(subjects.reference_frames(plain, model, [0], n, args.seed))
    for run in sides.values():
        run()  # pre-rolls
    seconds, peaks = timing.alternate(sides, args, device), timing.gpu_peaks(sides, device)
    flops = n * FLAVCosts(config).forward_flops()
    rows = [timing.compared(f"rolling frame, {args.model}, n = {n}", seconds, way, "reference") for way in pipes]
    rows = [row | timing.share(flops, row["ours_s"], ceiling) for row in rows]
    return rows, {"config": config, **peaks}


def frames(pipe, n: int, seed: int):
    """Frames of a film without end."""
    from diffusion.rolling import roll

    return roll(pipe.windows([0], seed=seed), pipe.velocity(1.0, n), n, skip=pipe.skip, memory=pipe.memory())


def next_frame(frames):
    """A call that makes the next of them."""
    import torch

    @torch.no_grad()
    def run() -> None:
        next(frames)

    return run


if __name__ == "__main__":
    cli.run(main)
