"""A stream as sample_long.py makes it, into a file: time to first frame, real-time factor, seconds a frame, memory.

    python benchmarks/stream.py --model-ckpt runs/demo/export --out benchmarks/results/stream_demo_cpu.json
    python benchmarks/stream.py --model FLAV-S/2 --vocoder hifigan --frames 0 --compare-frames 20

Without --model-ckpt a preset with random weights takes part, with random codecs: those that --codec and --vocoder name.
"""

import statistics
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

ENDS = 200  # frames at either end of a long stream whose speed is compared
SETTLED = 240  # frame from which memory must not grow any more
METHOD = (
    "Every side denoises, decodes picture and sound and writes an endless mp4 and its wav, as sample_long.py does. The "
    "first frame counts when it is there with its sound; seconds a frame lie between two frames that come out. The "
    "reference is the plain sampler, then the same codec and vocoder, one frame after the other. The share of the "
    "ceiling counts the model alone. Long streams run by themselves; memory is what is resident in the process."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--model-ckpt", type=Path, help="checkpoint folder, instead of --model")
    timing.add_model_arguments(p, "FLAV-tiny")
    p.add_argument("--vocoder", choices=["griffin-lim", "hifigan"], default="griffin-lim", help="beside --model")
    p.add_argument("--codec", choices=["patch-pca", "sd-vae"], default="patch-pca", help="beside --model")
    p.add_argument("--num-timesteps", type=cli.positive, default=2, help="steps n per frame")
    p.add_argument("--compare-frames", type=cli.positive, default=60, help="of a stream of each side")
    p.add_argument("--frames", type=cli.whole, default=2000, help="of the long streams; 0 for none")
    timing.add_ways(p, *timing.WAYS)
    timing.add_arguments(p)
    args = p.parse_args(argv)
    if args.model_ckpt and not (args.model_ckpt / "config.json").is_file():
        p.error(f"{args.model_ckpt} has no config.json; give a checkpoint folder written by train.py")
    device, dtype, ceiling = timing.begin(args)
    pipe, plain, name = subjects_of(args, device, dtype)
    rows = compare(args, pipe, plain, name, ceiling)
    rows += [long_stream(args, pipe, name, overlap) for overlap in (True, False) if args.frames]
    facts = {"config": dict(pipe.model._hub_mixin_config), "vocoder": pipe.spec.vocoder}
    timing.report(__file__, args, METHOD, device, rows, matmul_ceiling_flops=ceiling, **facts)


def subjects_of(args, device, dtype) -> tuple:
    """The pipeline, the plain model, and what to call them."""
    from benchmarks import subjects
    from models import FLAV
    from pipeline import AVPipeline

    if args.model_ckpt:
        pipe = AVPipeline.from_pretrained(args.model_ckpt, device, dtype)
        name = "checkpoint"
    else:
        vae = subjects.sd_vae() if args.codec == "sd-vae" else None
        config = subjects.config(args, **({"in_channels": vae.channels} if vae else {}))
        model = subjects.random(FLAV(**config), args.seed).to(device, dtype)
        codec = subjects.codec(config, args.vocoder, frames=vae)
        pipe, name = AVPipeline(model, codec, device, dtype), args.model
    plain = subjects.reference_of(pipe.model, pipe.model._hub_mixin_config)
    if args.compile:
        pipe.model.compile_blocks()
    return pipe, plain, name


def compare(args, pipe, plain, name: str, ceiling: float) -> list[dict]:
    """Rows of short streams: ours, --also, ours with overlap where it is off and the reverse, the reference."""
    from benchmarks import subjects
    from models.flav_costs import FLAVCosts
    from pipeline import Streams

    frames, firsts = args.compare_frames, {}
    other, overlap = ("no overlap", False) if pipe.device.type == "cuda" else ("overlap", True)

    def side(name, chunks):
        def run() -> None:
            first, _ = written(chunks(), pipe.spec)
            firsts.setdefault(name, []).append(first)

        return run

    pipes = subjects.pipelines(pipe, args.also)
    sides = {
        **{way: side(way, partial(ours, args, one, frames)) for way, one in pipes.items()},
        other: side(other, lambda: ours(args, pipe, frames, overlap)),
        "reference": side("reference", lambda: reference_chunks(args, pipe, plain, frames)),
    }
    seconds = timing.alternate(sides, args, pipe.device)
    of_first = {name: of[args.warmup :] for name, of in firsts.items()}
    peaks = timing.gpu_peaks(sides, pipe.device)
    whole, first = f"stream of {frames} frames, {name}, n = {args.num_timesteps}", f"first frame, {name}"
    T, n = pipe.model.predict_frames, args.num_timesteps
    more = frames + Streams(pipe).run_on - 1
    calls = [s // n + 1 for s in range(n * T)] + [T] * n * more  # frames in each; those that wait are left out
    flops = sum(FLAVCosts(pipe.model._hub_mixin_config, call).forward_flops() for call in calls)
    rows = [timing.compared(whole, seconds, way, "reference", **peaks) for way in pipes]
    for row in rows:
        factor = frames / pipe.spec.fps / row["ours_s"]
        row |= timing.share(flops, row["ours_s"], ceiling)
        row |= {"real_time_factor": factor, "note": f"{factor:.2f} x real time"}
    rows.insert(1, timing.compared(whole, seconds, "ours", other))
    return [*rows, *(timing.compared(first, of_first, way, "reference") for way in pipes)]


def long_stream(args, pipe, name: str, overlap: bool) -> dict:
    """The row of a stream long enough to show whether time or memory grow."""
    settled, resident = min(SETTLED, args.frames // 2), []

    def watched(chunks):
        for made, chunk in enumerate(chunks, 1):
            if made == settled:
                resident.append(timing.resident_gib())
            yield chunk

    first, laps = written(watched(ours(args, pipe, args.frames, overlap)), pipe.spec)
    resident.append(timing.resident_gib())
    figures = {"first_frame_s": first, **ends(laps), "frame_of_memory": settled, "resident_gib": resident}
    figures["real_time_factor"] = args.frames / pipe.spec.fps / (first + sum(laps))
    what = f"{args.frames} frames, {name}, {'overlap' if overlap else 'no overlap'}"
    return {"what": what, **figures, "note": told(figures)}


def ends(laps: list[float]) -> dict:
    """Median and 99th percentile of seconds a frame, and the medians of the first and last of them."""
    count = min(ENDS, len(laps) // 2)
    first, last = statistics.median(laps[:count]), statistics.median(laps[-count:])
    p50, p99 = statistics.median(laps), statistics.quantiles(laps, n=100)[98]
    return {"p50_s": p50, "p99_s": p99, "frames_of_ends": count, "median_first_s": first, "median_last_s": last}


def told(figures: dict) -> str:
    """A long stream in words."""
    p50, p99, first, last = (
        timing.seconds_text(figures[k]) for k in ("p50_s", "p99_s", "median_first_s", "median_last_s")
    )
    early, late = figures["resident_gib"]
    return (
        f"a frame p50 {p50}, p99 {p99}; first {figures['frames_of_ends']} {first}, last {last}; {early:.3f} GiB at "
        f"frame {figures['frame_of_memory']}, {late:.3f} at the end; {figures['real_time_factor']:.2f} x real time"
    )


def ours(args, pipe, frames: int, overlap: bool | None = None):
    """Frames and wave of each chunk of our stream."""
    how = dict(seed=args.seed, num_timesteps=args.num_timesteps, cfg_scale=1.0, overlap=overlap)
    for chunk in pipe.stream(frames=frames, **how):
        yield chunk.frames, chunk.wave


def reference_chunks(args, pipe, plain, frames: int):
    """The same film by the plain sampler, decoded frame by frame; frames leave as soon as their sound is whole."""
    import torch

    from benchmarks import subjects
    from pipeline import Streams
    from vocoder import VocoderStream

    codec, voice, size = pipe.codec, VocoderStream(pipe.codec.vocoder), pipe.spec.samples_per_frame
    pictures, sound = [], torch.zeros(0, device=pipe.device)
    made = subjects.reference_frames(plain, pipe.model, [0], args.num_timesteps, args.seed)
    for _, (v, a) in zip(range(frames + Streams(pipe).run_on), made):
        pictures.append(codec.decode_frames(v[:, None])[0])
        sound = torch.cat([sound, voice.push(codec.mel(a[:, None]))[0]])
        if ready := min(len(sound) // size, frames):
            yield torch.cat(pictures[:ready]), sound[: ready * size]
            pictures, sound, frames = pictures[ready:], sound[ready * size :], frames - ready


def written(chunks, spec) -> tuple[float, list[float]]:
    """Write a film; seconds until its first frame, and from one chunk, which is a frame, to the next after that."""
    from data.av import Writer

    times, began = [], time.perf_counter()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        with Writer(path, spec.image_size, spec.image_size, spec.fps, spec.sample_rate, preset="endless") as writer:
            for frames, wave in chunks:
                frames, wave = frames.cpu(), wave.cpu()
                times.append(time.perf_counter() - began)
                writer.write(frames, wave)
    return times[0], [b - a for a, b in pairwise(times)]


if __name__ == "__main__":
    cli.run(main)
