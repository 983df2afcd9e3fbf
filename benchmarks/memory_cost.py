"""What a memory costs a stream: seconds of a frame with it and without, memory of a long film, bytes of a state.

    python benchmarks/memory_cost.py --out benchmarks/results/memory_cost_flav_s2_cpu.json
    python benchmarks/memory_cost.py --model FLAV-tiny --repeats 200

Frames are denoised and not decoded, which would take as long on both sides. Weights are random.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

AGES = (1, 8, 9, 16, 17, 28)
SETTLED = 240  # frame from which the memory of a process must not grow any more
METHOD = (
    "Two streams of models alike but for the memory roll in one process, a frame of each in turn, once the oldest age "
    "is there: n calls of a window of T frames, and with a memory what its frames show, once. The long film is "
    "denoised by itself. A state is the file that sample_long.py writes."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    timing.add_model_arguments(p, "FLAV-S/2")
    p.add_argument("--memory", type=cli.positive, nargs="+", default=list(AGES), metavar="AGE", help="its ages")
    p.add_argument("--num-timesteps", type=cli.positive, default=2, help="steps n per frame")
    p.add_argument("--frames", type=cli.whole, default=2000, help="of the long film; 0 for none")
    p.add_argument("--long-model", default="FLAV-tiny", help="preset of the long film")
    timing.add_arguments(p, repeats=20)
    args = p.parse_args(argv)
    device, dtype, _ = timing.begin(args)
    pipes = {name: pipeline(args, args.model, ages, device, dtype) for name, ages in sides(args.memory).items()}
    rows = [a_frame(args, pipes), *(state_row(name, pipe) for name, pipe in pipes.items())]
    if args.frames:
        rows.append(long_film(args, pipeline(args, args.long_model, args.memory, device, dtype)))
    config = dict(pipes["with memory"].model._hub_mixin_config)
    timing.report(__file__, args, METHOD, device, rows, config=config)


def sides(ages: Sequence[int]) -> dict[str, Sequence[int] | None]:
    return {"with memory": ages, "without": None}


def pipeline(args, preset: str, ages: Sequence[int] | None, device, dtype):
    """A preset with random weights and a memory of these ages, whose latents are left as they are."""
    from argparse import Namespace

    from benchmarks import subjects
    from models import FLAV
    from pipeline import AVPipeline

    own = args if preset == args.model else Namespace(fusion=args.fusion, latent_size=None, predict_frames=None)
    config = subjects.config(Namespace(**vars(own) | {"model": preset}), memory_ages=ages and sorted(ages))
    model = subjects.random(FLAV(**config), args.seed).to(device, dtype)
    if args.compile:
        model.compile_blocks()
    return AVPipeline(model, subjects.codec(config, kind=subjects.Undecoded), device, dtype)


def a_frame(args, pipes: dict) -> dict:
    """The row of a frame of either side."""
    frames = {name: rolling(pipe, args.num_timesteps) for name, pipe in pipes.items()}
    runs = {name: lambda frame=frame: next(frame) for name, frame in frames.items()}
    seconds = timing.alternate(runs, args, next(iter(pipes.values())).device)
    what = f"a frame of a stream, {args.model}, n = {args.num_timesteps}"
    row = timing.compared(what, seconds, "without", "with memory", **timing.gpu_peaks(runs, pipes["without"].device))
    return {**row, "ages": args.memory}


def rolling(pipe, n: int):
    """Frames of a stream that has been rolling for long: its past is noise, which takes as long."""
    import torch

    streams = begun(pipe, n)
    window = streams.window
    oldest = max(pipe.model.memory_ages, default=0)
    past = {name: torch.randn_like(x) for name in ("past_v", "past_a") if (x := getattr(window, name)) is not None}
    at = {"first": window.first + oldest, "step": window.step + n * (window.T - 1)}
    streams.window = replace(window, **past, **at)
    while True:
        for _ in range(n):
            made = streams.denoise()
        yield made


def begun(pipe, n: int):
    """Streams with one that has no end, whose frames are not decoded."""
    from pipeline import Streams

    streams = Streams(pipe, n, cfg_scale=1.0, picture=False, sound=False)
    streams.join("", pipe.new_stream(y=0 if pipe.model.conditional else None))
    return streams


def state_row(name: str, pipe) -> dict:
    """Bytes of a state, and of the window in it."""
    state = begun(pipe, 2).state("")
    tensors = [x for x in vars(state.window).values() if x is not None]
    with TemporaryDirectory() as folder:
        state.save(Path(folder) / "state")
        size = (Path(folder) / "state").stat().st_size
    window = sum(x.numel() * x.element_size() for x in tensors)
    return {"what": f"state of a stream, {name}", "bytes": size, "window_bytes": window, "note": f"{size:,} bytes"}


def long_film(args, pipe) -> dict:
    """The row of a film long enough to show whether memory grows."""
    settled, resident = min(SETTLED, args.frames // 2), []
    frames = rolling(pipe, args.num_timesteps)
    for made in range(1, args.frames + 1):
        next(frames)
        if made in (settled, args.frames):
            resident.append(timing.resident_gib())
    early, late = resident
    what = f"{args.frames} frames with memory, {args.long_model}, n = {args.num_timesteps}"
    note = f"{early:.3f} GiB at frame {settled}, {late:.3f} at the end"
    return {"what": what, "frame_of_memory": settled, "resident_gib": resident,
            "peak_gib": timing.peak_gib(pipe.device), "note": note}  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
