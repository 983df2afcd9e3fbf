"""Do extended clips go on as physics would? Bounces after the seam, and the click at it, on held-out bouncing balls.

    python benchmarks/extend.py --model-ckpt runs/demo/export --out benchmarks/results/extend_demo.json

Each clip is rendered longer than it is given: its beginning goes into an mp4 and is extended, and how it goes on is the
truth. F1 counts bounces seen in the first --judged new frames, and pings heard in them, within one frame.
"""

import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli

MARGIN = 4  # frames made beyond those judged: for the partner of a late event, and for a peak to be one
ROTATIONS = (3, 6, 9)  # places to another clip of the same class, whose truth is as good as chance


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    cli.add_checkpoint_arguments(p)
    p.add_argument("--clips", type=cli.positive, default=96, help="held-out clips")
    p.add_argument("--past", type=cli.positive, default=24, help="frames given of each clip")
    p.add_argument("--judged", type=cli.positive, default=8, help="new frames in which events are counted")
    p.add_argument("--cfg-scales", type=float, nargs="+", default=[1.0, 2.0], help="of classifier-free guidance")
    p.add_argument("--num-timesteps", type=cli.positive, default=2, help="steps n per frame")
    p.add_argument("--seed", type=cli.whole, default=0, help="seed of the noise; the clips are always the same")
    p.add_argument("--threads", type=cli.positive, default=1, help="of the CPU")
    p.add_argument("--out", type=Path, help="JSON file for the figures")
    args = p.parse_args(argv)
    import torch

    torch.set_num_threads(args.threads)
    result = measure(args, cli.load_pipeline(args))
    print(json.dumps(result, indent=2))
    if args.out:
        cli.write_json(args.out, result)


@dataclass(frozen=True)
class Scene:
    """Events of a film, in frames, and its sound."""

    bounces: np.ndarray
    pings: np.ndarray
    wave: np.ndarray


def measure(args, pipe) -> dict:
    """All figures, by scale of guidance, beside those of the real clips."""
    import torch

    from data.synthetic import FPS, TEST_START, calibrate, draw_clip, render, sound

    length = args.past + args.judged + MARGIN
    clips = [draw_clip(0, TEST_START + i) for i in range(args.clips)]
    truth = [clip.bounce_times(length) for clip in clips]
    real = [(render(clip, length), sound(clip, length)) for clip in clips]
    threshold = calibrate([wave.numpy() for _, wave in real])
    judged = (args.past, args.past + args.judged)
    figures = {"real": scores([scene(*pair, threshold) for pair in real], truth, judged)}
    for scale in args.cfg_scales:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            films = extend(args, pipe, clips, real, scale, Path(folder))
            seconds = time.perf_counter() - began
        scenes = [scene(*film, threshold) for film in films]
        figures[f"cfg_scale_{scale:g}"] = {
            **scores(scenes, truth, judged),
            **seams([s.wave for s in scenes], args.past * pipe.spec.samples_per_frame, pipe.spec.sample_rate),
            "seconds": seconds,
        }
    facts = {key: getattr(args, key) for key in ("clips", "past", "judged", "num_timesteps", "seed", "threads")}
    return {**facts, "fps": FPS, **figures, "machine": cli.machine(), "torch": torch.__version__}


def scene(frames, wave, threshold: float) -> Scene:
    """A film, frames uint8 (T,H,W,3) and wave (N,), as the detectors see it."""
    from data.synthetic import FPS, detect_bounces, detect_pings

    wave = wave.numpy()
    return Scene(detect_bounces(frames), detect_pings(wave, 16000, FPS, threshold), wave)


def extend(args, pipe, clips, real, scale: float, folder: Path) -> list[tuple]:
    """Each clip's first frames through an mp4, then all extended together: what their files show and sound like."""
    from data.av import Writer, read_audio, read_frames, write_clip
    from pipeline import Streams
    from pipeline.film import Film, RealClip

    spec, length = pipe.spec, args.past + args.judged + MARGIN
    streams, films = Streams(pipe, args.num_timesteps, scale), {}
    with ExitStack() as files:
        for i, (clip, (frames, wave)) in enumerate(zip(clips, real)):
            given = folder / f"given_{i:05d}.mp4"
            write_clip(given, frames[: args.past], wave, spec.fps, spec.sample_rate)
            past = RealClip.open(given, pipe.codec)
            state = past.begun(pipe, sample=i, y=clip.label, seed=args.seed)
            path, size = folder / f"extended_{i:05d}.mp4", (spec.image_size, spec.image_size)
            writer = files.enter_context(Writer(path, *size, spec.fps, spec.sample_rate))
            films[path] = Film(writer, state, past)
            streams.join(path, state, length)
        for path, chunk in streams:
            films[path].write(chunk)
    return [(read_frames(path, 0, length, spec.fps), read_audio(path.with_suffix(".wav"))) for path in films]


def scores(scenes: list[Scene], truth: list[np.ndarray], judged: tuple[int, int]) -> dict:
    """F1 of bounces and of pings against the truth, with a bootstrap interval, and against that of other clips."""
    from metrics.sync import bootstrap_f1, f1

    result = {}
    for kind in ("bounces", "pings"):
        found = [getattr(s, kind) for s in scenes]
        counts = [counted(events, times, judged) for events, times in zip(found, truth)]
        chance = [
            counted(found[i], truth[(i + places) % len(truth)], judged)
            for places in ROTATIONS
            for i in range(len(found))
        ]
        result[kind] = {
            "f1": f1(counts),
            "interval": bootstrap_f1(counts),
            "chance": f1(chance),
            "events": sum(c.a for c in counts),
        }
    return result


def counted(events: np.ndarray, truth: np.ndarray, judged: tuple[int, int]):
    """Events and true times inside the judged frames, and how many have a partner within one frame, even outside."""
    from metrics.sync import EventCounts, match_events

    inside_v, inside_a = ((times >= judged[0]) & (times < judged[1]) for times in (events, truth))
    pairs = match_events(events, truth, tolerance=1.0)
    return EventCounts(
        v=int(inside_v.sum()),
        v_matched=sum(int(inside_v[i]) for i, _ in pairs),
        a=int(inside_a.sum()),
        a_matched=sum(int(inside_a[j]) for _, j in pairs),
    )


def seams(waves: list[np.ndarray], seam: int, sample_rate: int) -> dict:
    """Largest step between neighbouring samples in the fade and at the seam, over the largest elsewhere in the clip."""
    from pipeline.film import FADE

    ratios = []
    for wave in waves:
        steps = np.abs(np.diff(wave))
        near = np.zeros(len(steps), bool)
        near[seam - round(FADE * sample_rate) - 1 : seam] = True  # step i leads from sample i to i + 1
        ratios.append(float(steps[near].max() / steps[~near].max()))
    return {
        "seam_over_elsewhere": {"median": float(np.median(ratios)), "max": max(ratios)},
        "clips_without_click": sum(ratio <= 1 for ratio in ratios),
    }


if __name__ == "__main__":
    cli.run(main)
