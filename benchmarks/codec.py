"""Seconds a frame to encode and decode pictures, frames in one batch against one by one.

    python benchmarks/codec.py --out benchmarks/results/codec_cpu.json

The autoencoder of Stable Diffusion has its real shape (84 M weights) and random weights.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

METHOD = (
    "Frames of noise; patch-pca has 12 channels for patches of 8 px; the memory of weights and codec is not counted."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument(
        "--codecs", nargs="+", choices=["patch-pca", "sd-vae"], default=["patch-pca", "sd-vae"], help="which"
    )
    p.add_argument("--image-size", type=cli.positive, default=128, help="px; the paper's is 256")
    p.add_argument("--frames", type=cli.positive, default=4, help="in a batch")
    timing.add_arguments(p, repeats=5)
    args = p.parse_args(argv)
    device, dtype, ceiling = timing.begin(args)
    rows = [row for name in args.codecs for row in measure(args, name, device, dtype, ceiling)]
    timing.report(__file__, args, METHOD, device, rows, matmul_ceiling_flops=ceiling)


def measure(args, name: str, device, dtype, ceiling: float) -> list[dict]:
    """Rows of encoding and of decoding."""
    import torch

    from benchmarks import subjects

    codec = subjects.sd_vae() if name == "sd-vae" else subjects.patch_pca(channels=12)
    codec = codec.to(device, dtype)
    frames = torch.rand(1, args.frames, 3, args.image_size, args.image_size, device=device, dtype=dtype) * 2 - 1
    latents = codec.encode(frames)[0]
    rows = []
    for what, run, x in (("encode", codec.encode, frames), ("decode", codec.decode, latents)):
        sides = {"batched": lambda run=run, x=x: run(x, args.frames), "one by one": lambda run=run, x=x: run(x, 1)}
        row = timing.compared(f"{what}, {name}, {args.frames} frames of {args.image_size} px",
                              timing.alternate(sides, args, device), "batched", "one by one")  # fmt: skip
        row |= timing.share(timing.counted_flops(sides["batched"]), row["ours_s"], ceiling)
        frame = row["ours_s"] / args.frames
        rows.append(row | {"seconds_per_frame": frame, "note": f"{timing.seconds_text(frame)} a frame"})
    return rows


if __name__ == "__main__":
    cli.run(main)
