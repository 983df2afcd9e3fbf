"""Long videos: drift of sliding windows, the step from pre-rolling to rolling, loops (paper, Sec. 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.av import iter_frames
from data.frames import fit, to_uint8
from evaluation import plots
from evaluation.features import Motion, Sound
from evaluation.setting import FAD_SCALE, LEVEL, Figure, Result, Setting
from evaluation.videos import FPS, FRAMES, Clip, Video
from metrics.distances import frechet, kernel_distance
from metrics.intervals import bootstrap, bootstrap_curve
from metrics.long import (
    FrameDistances,
    diagonals,
    drift,
    find_loop,
    jump,
    jump_windows,
    low_pass,
    lpips_signature,
    summarise,
    trend,
    window_starts,
)

MOST, STRIDE = 240, 8  # frames of a video that are looked at, and from window to window
FEWEST = 64  # frames of a long video
SIDE = 64  # px, to which frames are brought for LPIPS
SHOWN = 3  # videos whose distances are plotted
VERSION = "loops-1"  # of what is kept in the cache
ALEXNET = "alexnet-owt-7be5be79.pth"  # weights of LPIPS, where torchvision keeps them


def long(setting: Setting) -> Result:
    """Drift of picture and sound as the networks see them, and all of `loops`."""
    videos, frames = long_videos(setting)
    starts = window_starts(frames, FRAMES, STRIDE)
    picture, sound = (_drift(setting, videos, starts, *which) for which in ((Motion, "picture"), (Sound, "sound")))
    return picture + sound + loops(setting)


def loops(setting: Setting) -> Result:
    """The jump where pre-rolling ends, drift of the mean picture, and loops: all without a network."""
    videos, frames = long_videos(setting)
    sign, named = signature()
    seen = _distances(setting, videos, frames, sign, named)
    what = f"the first {frames} frames at {FPS} fps; {named}"
    return _jump(seen, setting.prerolled, what) + _moved(seen, frames, what) + _repeats(videos, seen, frames, what)


def long_videos(setting: Setting) -> tuple[list[Video], int]:
    """The long videos among the generated ones, and how many frames of each are looked at.

    Raises:
        ValueError: there are fewer than two, or they end where pre-rolling does.
    """
    videos = setting.fake.choose(setting.num, FEWEST)
    if len(videos) < 2:
        raise ValueError(
            f"{setting.fake.path} has {len(videos)} videos of {FEWEST} frames or more at {FPS} fps, and long videos "
            "are judged from 2; make some with sample.py --video-length 240"
        )
    frames = min(MOST, *(video.frames for video in videos))
    if not 1 < setting.prerolled < frames - 1:
        raise ValueError(
            f"--predict-frames {setting.prerolled} leaves nothing to compare in {frames} frames; give the model's"
        )
    return videos, frames


def _drift(setting: Setting, videos: list[Video], starts: list[int], kind, name: str) -> Result:
    """Distance of each window to real clips and to the first window."""
    clips = [Clip(video, start) for video in videos for start in starts]
    features = setting.features("fake windows", clips, kind).features.unflatten(0, (len(videos), len(starts)))
    reference = setting.features("real", setting.real.clips(setting.num), kind).features
    label, scale = ("FVD", 1.0) if kind is Motion else ("FAD sound", FAD_SCALE)

    def distance(a, b):
        return scale * frechet(a, b).distance

    moved = drift(features, distance, reference)
    low, high = bootstrap_curve(moved.moved)
    slope, times = trend(moved.moved), [start / FPS for start in starts]
    data = {"seconds": times, f"{label} to real": moved.to_reference.tolist(), "moved": moved.moved_mean.tolist(),
            f"{label} to the first window": moved.to_first.tolist(), "moved_low": low.tolist(),
            "moved_high": high.tolist()}  # fmt: skip
    if kind is Motion:
        data["KVD to real"] = [kernel_distance(features[:, w], reference) for w in range(len(starts))]
    what = f"{setting.extractors[kind].protocol}; windows of {FRAMES} frames every {STRIDE}"
    counts, note = {"fake": len(videos), "real": len(reference)}, setting.note(kind)
    figures = [
        Figure(f"{label} of the last window", float(moved.to_reference[-1]), f"{what}; against real clips; biased by "
               f"n = {len(videos)}, so compare it with the first window only", **counts,
               reference=float(moved.to_reference[0]), reference_is="first window", note=note),
        Figure(f"{name} drift", slope.slope, f"{what}; slope per window of the features' distance from the first "
               "window, past those that overlap with it", **counts, **_normal(slope.slope, slope.standard_error),
               reference=0.0, reference_is="no drift", note=", ".join(filter(None, (f"z {slope.z:.1f}", note)))),
    ]  # fmt: skip
    curves = {"distance from the first window": (times, data["moved"], low, high)}
    return Result(figures, {f"drift_{name}": plots.curves(curves, f"drift of the {name}", "seconds", "features"),
                            f"distance_{name}": plots.curves({f"{label} to real clips": (times, moved.to_reference)},
                                                             f"{label} by window", "seconds", label)},
                  {f"drift_{name}": data})  # fmt: skip


def _jump(seen: list[dict], prerolled: int, what: str) -> Result:
    """Change from frame to frame, before and after pre-rolling ends."""
    change = np.stack([video["change"] for video in seen])  # (videos, frames - 1)
    step = jump(change, *jump_windows(range(change.shape[1]), 2, prerolled))
    figure = Figure(
        name="jump after pre-rolling",
        value=step.difference,
        protocol=f"{what}; change from frame to frame, of the {prerolled} pre-rolled frames and of as many after them",
        fake=len(seen),
        **_normal(step.difference, step.standard_error),
        reference=0.0,
        reference_is="no jump",
        note=f"before {step.before:.3g}, after {step.after:.3g}, z {step.z:.1f}",
    )
    return Result([figure])


def _moved(seen: list[dict], frames: int, what: str) -> Result:
    """Drift of the mean picture of a window."""
    times = [start / FPS for start in window_starts(frames, FRAMES, STRIDE)]
    means = np.stack([video["means"] for video in seen])  # (videos, windows, k)
    moved = np.linalg.norm(means - means[:, :1], axis=-1)
    slope = trend(moved)
    figure = Figure(
        name="drift of the mean picture",
        value=slope.slope,
        protocol=f"{what}; mean over {FRAMES} frames every {STRIDE}, slope per window of its distance from the "
        "first, past those that overlap with it",
        fake=len(seen),
        **_normal(slope.slope, slope.standard_error),
        reference=0.0,
        reference_is="no drift",
        note=f"z {slope.z:.1f}",
    )
    lines = {"distance from the first window": (times, moved.mean(0), *bootstrap_curve(moved))}
    plot = plots.curves(lines, "drift of the mean picture", "seconds", "distance")
    return Result([figure], {"drift_mean": plot}, {"drift_mean": {"seconds": times, "moved": moved.mean(0).tolist()}})


def _repeats(videos: list[Video], seen: list[dict], frames: int, what: str) -> Result:
    """Loops, from distances of frames k apart."""
    each = [find_loop(video["r"]) for video in seen]
    found, n = summarise(each), len(seen)
    replay, amplitude = ([getattr(loop, name) for loop in each] for name in ("replay", "amplitude"))
    note = f"{found['loops']}/{found['total']}, periods {found['periods'] or 'none'}"
    figures = [
        Figure("loops", found["loops"] / n, f"{what}; videos whose r(k) repeats, of all", n, note=note),
        Figure("replay ratio", float(np.mean(replay)), f"{what}; min r(k) past its rise over r(1)", n, **_ends(replay),
               reference=1.0, reference_is="frames come again; larger: they do not"),
        Figure("loop amplitude", float(np.mean(amplitude)), f"{what}; half the range of r less its drift", n,
               **_ends(amplitude)),
    ]  # fmt: skip
    lines = {video.path.name: (np.arange(frames) / FPS, one["r"]) for video, one in zip(videos[:SHOWN], seen)}
    plot = plots.curves(lines, "distance of frames k apart", "seconds apart", "r(k)")
    of = {"videos": [str(video.path) for video in videos]}
    data = {"loops": found | of | {"shares": [loop.peak for loop in each], "replay": replay, "amplitude": amplitude}}
    return Result(figures, {"loops": plot}, data)


def _normal(mean: float, error: float) -> dict:
    return {"low": mean - 1.96 * error, "high": mean + 1.96 * error, "interval": f"{LEVEL}, normal over videos"}


def _ends(values: list[float]) -> dict:
    low, high = bootstrap(values)
    return {"low": low, "high": high, "interval": f"{LEVEL} bootstrap over videos"}


@cache
def signature() -> tuple[Callable[[Tensor], Tensor], str]:
    """What frames are compared by, and its name: LPIPS where its weights are on disk, else averages of 16x16 cells."""
    if not (Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET).is_file():
        return low_pass, "RMS distance of 16x16 cells in grey levels (the weights of LPIPS are not here)"
    import lpips

    of = lpips_signature(lpips.LPIPS(net="alex", verbose=False).eval())
    return lambda frames: of(to_uint8(fit(frames, SIDE, "pad")).movedim(1, -1)), f"root of LPIPS (AlexNet) at {SIDE} px"


def _distances(setting: Setting, videos: list[Video], frames: int, sign: Callable, named: str) -> list[dict]:
    """r(k), the change from frame to frame and the means of windows of each video, once per content and shared."""
    starts = window_starts(frames, FRAMES, STRIDE)

    def look(missing: list[Video]) -> Iterator[tuple[Video, dict[str, np.ndarray]]]:
        for video in missing:
            distances = FrameDistances(sign)
            for frame in iter_frames(video.path, FPS, 0, frames):
                distances.push(frame[None])
            signatures = torch.cat(distances.pieces).double()
            yield (
                video,
                {
                    "r": diagonals(signatures).numpy(),
                    "change": signatures.diff(dim=0).norm(dim=1).numpy(),
                    "means": torch.stack([signatures[k : k + FRAMES].mean(0) for k in starts]).float().numpy(),
                },
            )

    keys = [f"{video.sha256}:{frames}:{named}" for video in videos]
    return setting.shared("loops", VERSION, videos, keys, look)
