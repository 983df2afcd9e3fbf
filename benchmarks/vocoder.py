"""What speaking in chunks costs: a mel in pieces of one video frame, as a stream gets it, against the whole mel.

python benchmarks/vocoder.py --out benchmarks/results/vocoder_cpu.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

EXACT_FRAMES = 60  # mel frames whose chunks are compared with the whole in float64
METHOD = (
    "HiFi-GAN has the released size (V1 for 256 mel bins and a hop of 160) and random weights. Its chunks compute "
    "their context of mel frames on both sides again; their samples are compared with those of the whole mel in "
    "float64: largest difference over largest sample. Griffin-Lim in pieces is an algorithm of its own "
    "(vocoder/rtisi.py), with other phases than that of the whole mel."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--vocoders", nargs="+", choices=["hifigan", "griffin-lim"], default=["hifigan", "griffin-lim"],
                   help="which")  # fmt: skip
    p.add_argument("--n-mels", type=cli.positive, default=256, help="mel bins")
    p.add_argument("--frames", type=cli.positive, default=160, help="mel frames of 10 ms")
    p.add_argument("--chunks", type=cli.positive, nargs="+", default=[10, 40], help="mel frames in a piece")
    timing.add_arguments(p)
    args = p.parse_args(argv)
    device, dtype, ceiling = timing.begin(args)
    rows = [row for name in args.vocoders for row in measure(args, name, device, dtype, ceiling)]
    timing.report(__file__, args, METHOD, device, rows, matmul_ceiling_flops=ceiling)


def measure(args, name: str, device, dtype, ceiling: float) -> list[dict]:
    """A row of the whole mel, and one of each size of pieces."""
    import torch

    from benchmarks import subjects
    from vocoder import GriffinLim

    vocoder = subjects.hifigan(args.n_mels) if name == "hifigan" else GriffinLim(args.n_mels)
    vocoder = vocoder.to(device, dtype)
    mel = torch.randn(1, args.n_mels, args.frames, device=device, dtype=dtype)
    sides = {"whole": lambda: vocoder(mel)} | {f"chunks of {size}": spoken(vocoder, mel, size) for size in args.chunks}
    with torch.no_grad():
        flops = timing.counted_flops(sides["whole"])
        seconds = timing.alternate(sides, args, device)
        differences = {size: difference(vocoder, size) for size in args.chunks if name == "hifigan"}
    rows = []
    for side in sides:
        row = timing.compared(f"{name}, {args.frames} mel frames", seconds, side, None if side == "whole" else "whole")
        factor = args.frames * vocoder.hop / 16000 / row["ours_s"]
        rows.append(row | {"real_time_factor": factor, "note": f"{factor:.1f} x real time"})
    if name == "hifigan":
        rows[0] |= timing.share(flops, rows[0]["ours_s"], ceiling)
        for row, most in zip(rows[1:], differences.values()):
            row |= {"max_difference_float64": most, "note": f"{row['note']}, {most:.0e} from the whole in float64"}
    return rows


def spoken(vocoder, mel, size: int):
    """A call that speaks the mel in pieces."""
    from vocoder import stream

    return lambda: list(stream(vocoder, mel.split(size, dim=-1)))


def difference(vocoder, size: int) -> float:
    """Largest difference between a sample from pieces and from the whole mel, over the largest sample, in float64."""
    from copy import deepcopy

    import torch

    exact = deepcopy(vocoder).to("cpu", torch.float64)
    mel = torch.randn(1, vocoder.n_mels, EXACT_FRAMES, dtype=torch.float64)
    whole = exact(mel)
    return ((torch.cat(spoken(exact, mel, size)(), -1) - whole).abs().max() / whole.abs().max()).item()


if __name__ == "__main__":
    cli.run(main)
