"""Seconds and peak memory of pictures for a given sound by gradient guidance, against the plain reference.

python benchmarks/a2v.py --model FLAV-B/1 --also compiled --warmup 2 --device cuda --dtype bfloat16

Peak memory is that of the allocator, so only a GPU has one for each side.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

SCALE = 25.0  # of the gradient
METHOD = (
    "A clip of random weights to a random sound of its length; nothing is decoded. Guidance takes a gradient through "
    "all frames whose sound is given; the side named replace only places the sound on its lines."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    timing.add_model_arguments(p, "FLAV-tiny")
    p.add_argument("--frames", type=cli.positive, default=16, help="of a clip")
    p.add_argument("--num-timesteps", type=cli.positive, default=2, help="steps n per frame")
    timing.add_ways(p, "compiled")
    timing.add_arguments(p)
    args = p.parse_args(argv)
    device, dtype, ceiling = timing.begin(args)
    rows, facts = measure(args, device, dtype)
    timing.report(__file__, args, METHOD, device, rows, matmul_ceiling_flops=ceiling, **facts)


def measure(args, device, dtype) -> tuple[list[dict], dict]:
    """Rows of guidance by each of our ways, and what it costs beyond the same clip without, and facts about them."""
    from benchmarks import subjects
    from models import FLAV
    from pipeline import AVPipeline

    config = subjects.config(args)
    model = subjects.random(FLAV(**config), args.seed).to(device, dtype).eval()
    pipe = AVPipeline(model, subjects.codec(config, kind=subjects.Undecoded), device, dtype)
    pipes = subjects.pipelines(pipe, args.also)
    plain, sound = subjects.reference_of(model, config), subjects.sound(model, args.frames)
    if args.compile:
        model.compile_blocks()
    sides = {way: clip_of(args, one, sound, SCALE) for way, one in pipes.items()}
    sides |= {"replace": clip_of(args, pipe, sound), "reference": plain_clip_of(args, plain, model, sound, SCALE)}
    seconds, peaks = timing.alternate(sides, args, device), timing.gpu_peaks(sides, device)
    clip = f"A2V with guidance, {args.frames} frames, {args.model}, n = {args.num_timesteps}"
    rows = [timing.compared(clip, seconds, way, "reference") for way in pipes]
    rows.append(timing.compared(clip.replace("with", "without"), seconds, "replace", "ours"))
    for row in rows:
        row["note"] = ", ".join(f"{name} {gib:.2f} GiB" for name, gib in peaks.get("gpu_peak_gib", {}).items()
                                if name in (row["ours"], row["other"]))  # fmt: skip
    return rows, {"config": config, **peaks}


def clip_of(args, pipe, sound, scale: float | None = None):
    """A call that makes the clip of a sound (1,frames,S,M); scale: of guidance, None for none."""
    from diffusion.guidance import Guidance
    from diffusion.known import known_clip
    from diffusion.noise import Modality

    known, guidance = known_clip(sound, Modality.AUDIO), None if scale is None else Guidance(scale)
    how = dict(seed=args.seed, num_timesteps=args.num_timesteps, cfg_scale=1.0, guidance=guidance)
    return lambda: pipe.sample([0], args.frames, known=lambda window: (None, known(window)), **how).v


def plain_clip_of(args, plain, model, sound, scale: float):
    """The same by the plain sampler."""
    from itertools import islice

    from benchmarks import subjects

    how = (args.num_timesteps, args.seed, scale)
    return lambda: list(islice(subjects.reference_pictures(plain, model, sound, *how), args.frames))


if __name__ == "__main__":
    cli.run(main)
