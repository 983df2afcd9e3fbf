"""Seconds and peak memory of one forward pass and one training step of a preset, on this machine.

    python benchmarks/train_step.py --model FLAV-B/1 --grad-ckpt --out benchmarks/results/train_step_flav_b1_cpu.json

Times are the median over --repeats after --warmup; peak memory is that of the process since it began (CPU), or of
the allocator (GPU).
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--model", default="FLAV-B/1", help="preset")
    p.add_argument("--fusion", default="c", help="none, a, b, c, c_norm")
    p.add_argument("--latent-size", type=cli.positive, default=32, help="side of a latent, 4 channels")
    p.add_argument("--predict-frames", type=cli.positive, default=10, help="frames in the window")
    p.add_argument("--batch-size", type=cli.positive, default=1, help="clips")
    p.add_argument("--grad-ckpt", action=argparse.BooleanOptionalAction, default=True, help="recompute blocks")
    p.add_argument("--warmup", type=cli.whole, default=1, help="runs of each before the timed ones")
    p.add_argument("--repeats", type=cli.positive, default=1, help="timed runs of each")
    p.add_argument("--threads", type=cli.positive, help="of the CPU; torch's own choice if not given")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--out", type=Path, help="JSON file for the figures")
    args = p.parse_args(argv)
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args, torch.device(args.device))
    print(json.dumps(result, indent=2))
    if args.out:
        cli.write_json(args.out, result)


def measure(args, device) -> dict:
    """The figures of both passes, with the machine and the method beside them."""
    import torch

    from diffusion.flow import flow_loss
    from diffusion.times import draw_times
    from models import FLAV, FLAV_presets

    torch.manual_seed(0)
    model = FLAV(**FLAV_presets[args.model], latent_size=args.latent_size, predict_frames=args.predict_frames,
                 fusion=args.fusion, grad_ckpt=args.grad_ckpt).to(device)  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.02, fused=True)
    v, a = (torch.randn(args.batch_size, args.predict_frames, *shape, device=device) for shape in model.frame_shapes)
    noise = torch.randn_like(v), torch.randn_like(a)
    w = torch.rand(args.batch_size, dtype=torch.float64, device=device)
    t = draw_times(w, w < 0.2, args.predict_frames)

    @torch.no_grad()
    def forward():
        model(v, a, t)

    def step():
        flow_loss(model, v, a, None, t, noise).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    seconds = {f"{run.__name__}_s": timed(run, args.warmup, args.repeats, device) for run in (forward, step)}
    if device.type == "cuda":
        peak, machine = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.get_device_name()
    else:
        peak, machine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, cli.machine()
    shape = {key: getattr(args, key) for key in ("model", "fusion", "latent_size", "predict_frames", "batch_size")}
    return {
        **shape,
        **{key: getattr(args, key) for key in ("grad_ckpt", "warmup", "repeats")},
        "parameters": sum(p.numel() for p in model.parameters()),
        **seconds,
        "peak_gib": peak,
        "device": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def timed(run, warmup: int, repeats: int, device) -> float:
    """Median seconds of a run after some warm-up."""
    import torch

    seconds = []
    for _ in range(warmup + repeats):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[warmup:])


if __name__ == "__main__":
    cli.run(main)
