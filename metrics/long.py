"""Long videos: do they drift away, do they jump where pre-rolling ends, do they play in a loop (R-FLAV, Sec. 4.5)?

Drift and jump are read from features of windows that slide over each video, loops from distances of frames k apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from metrics.intervals import Distance, Features

SIDE = 16  # cells along each side of the picture that a frame is averaged to
ROWS = 128  # frames whose distances to as many others are held at a time
REPEATS = 0.97  # share of r's variance that must repeat with the period: see `find_loop`
ALIKE = 0.01  # periods whose shares differ by less explain r equally well; the shortest is the loop
FEWEST = 16  # frames: a loop of 4, played 4 times


@dataclass(frozen=True)
class Drift:
    """How far the windows of n videos are from where the videos began, and from real videos."""

    to_reference: NDArray | None  # (windows,) distance of window w of all videos to the reference set
    to_first: NDArray  # (windows,) distance of window w of all videos to window 0 of all videos; 0 at w = 0
    moved: NDArray  # (n, windows) |f_w - f_0| of each video; `intervals.bootstrap_curve` gives its band

    @property
    def moved_mean(self) -> NDArray:
        """Mean of `moved` over videos, (windows,)."""
        return self.moved.mean(0)


@dataclass(frozen=True)
class Trend:
    """Slope of a curve, averaged over videos."""

    slope: float  # per window
    standard_error: float  # over videos

    @property
    def z(self) -> float:
        """Slope in standard errors: above 3 the videos drift, within -3 and 3 they may as well stand."""
        return _in_errors(self.slope, self.standard_error)


@dataclass(frozen=True)
class Jump:
    """The step of a figure from pre-rolled to rolled frames, averaged over videos."""

    before: float
    after: float
    difference: float  # after - before
    standard_error: float  # of the difference, over videos

    @property
    def z(self) -> float:
        """Difference in standard errors."""
        return _in_errors(self.difference, self.standard_error)


@dataclass(frozen=True)
class Loop:
    """What the distances r(k) of frames k apart say about a loop."""

    period: int | None  # frames; None where no loop was found
    amplitude: float  # half the range of r less its trend, past the first rise; in the unit of r
    replay: float  # smallest r past the first rise, in units of r(1): about 1 or below where frames come again
    peak: float  # largest share of r's variance that repeats with one period, 1 for a perfect loop
    threshold: float  # the peak that makes a loop


def window_starts(frames: int, window: int = 16, stride: int = 8) -> list[int]:
    """First frames of the windows of a video that lie wholly in it.

    Raises:
        ValueError: not one window fits, or the stride is not positive.
    """
    if not 0 < window <= frames or stride < 1:
        raise ValueError(f"windows of {window} frames every {stride} do not fit in {frames} frames; "
                         f"give a stride of at least 1 and a window of 1 to {frames} frames")  # fmt: skip
    return list(range(0, frames - window + 1, stride))


def drift(features: Features, distance: Distance, reference: Features | None = None) -> Drift:
    """Follow the features of sliding windows away from the first window and from real videos.

    Args:
        features: (n, windows, d) features of each window of each video.
        distance: of two sets of features; a Fréchet distance is biased by n, equally for every window.
        reference: (m, d) features of real windows.
    Raises:
        ValueError: features are no such array.
    """
    if features.ndim != 3:
        raise ValueError(f"features have shape {tuple(features.shape)}, expected (videos, windows, d)")
    windows = range(features.shape[1])
    to_reference = None
    if reference is not None:
        to_reference = np.array([float(distance(features[:, w], reference)) for w in windows])
    to_first = np.array([float(distance(features[:, w], features[:, 0])) if w else 0.0 for w in windows])
    f = np.asarray(features, dtype=float)
    return Drift(to_reference, to_first, np.linalg.norm(f - f[:, :1], axis=-1))


def trend(values: ArrayLike, skip: int = 2) -> Trend:
    """Least-squares slope of each video's curve, averaged over videos.

    Args:
        values: (n, windows) a figure per window, such as `Drift.moved`.
        skip: windows left out at the start. Those that share frames with the first are near it whether a video drifts
            or not: with 16 frames every 8 these are two, the first and the second.
    Raises:
        ValueError: fewer than 2 videos, or fewer than 2 windows are left.
    """
    values = _per_video(values)
    if values.shape[1] - skip < 2:
        raise ValueError(f"{values.shape[1]} windows less {skip} have no slope; give at least {skip + 2} windows")
    values = values[:, skip:]
    w = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    slopes = values @ w / (w @ w)  # (n,)
    return Trend(float(slopes.mean()), _standard_error(slopes))


def jump_windows(starts: Sequence[int], window: int, predict_frames: int = 10) -> tuple[list[int], list[int]]:
    """Positions in `starts` of the windows wholly in the pre-rolled frames, and of as many right after these frames.

    Args:
        starts: as from `window_starts`, rising.
        predict_frames: the first frames, which pre-rolling made.
    Raises:
        ValueError: a side has no window.
    """
    before = [i for i, start in enumerate(starts) if start + window <= predict_frames]
    after = [i for i, start in enumerate(starts) if start >= predict_frames][: len(before)]
    if not before or not after:
        raise ValueError(f"windows of {window} frames do not lie on both sides of frame {predict_frames}; "
                         f"give windows of at most {predict_frames} frames and a longer video")  # fmt: skip
    return before, after


def jump(values: ArrayLike, before: Sequence[int], after: Sequence[int]) -> Jump:
    """Compare the windows before and after pre-rolling ends; differences are taken within each video.

    Args:
        values: (n, windows) a figure per window and video.
        before, after: windows of each side, as from `jump_windows`.
    Raises:
        ValueError: fewer than 2 videos.
    """
    values = _per_video(values)
    left, right = values[:, list(before)].mean(1), values[:, list(after)].mean(1)
    return Jump(float(left.mean()), float(right.mean()), float((right - left).mean()), _standard_error(right - left))


def low_pass(frames: Tensor) -> Tensor:
    """Frames averaged to 16x16 cells: uint8 (t,H,W,3) -> float32 (t,768).

    The Euclidean distance of two signatures is the root mean square difference of the cells, in grey levels of 255.
    """
    cells = F.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2).float(), SIDE)  # (t,3,16,16)
    return cells.flatten(1) / (3 * SIDE**2) ** 0.5


def lpips_signature(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Signature whose squared Euclidean distance is LPIPS (Zhang et al. 2018).

    LPIPS is the sum over layers of the mean over positions of w |f(x) - f(y)|^2, f of length 1 at each position. With
    f scaled by sqrt(w / positions) that is one squared distance. A signature is large, 32,000 numbers for AlexNet at
    64x64 pixels and 600,000 at 256x256: shrink the frames of a long video first.

    Args:
        net: lpips.LPIPS, on any device, in evaluation mode.
    Returns:
        Function of uint8 (t,H,W,3) -> float32 (t,k), on the CPU.
    Raises:
        ValueError: layer weights are negative, as untrained ones are, so that the distance is not Euclidean.
    """
    weights = [lin.model[-1].weight.detach() for lin in net.lins] if net.lpips else [torch.ones(())] * net.L
    if negative := sum(int((w < 0).sum()) for w in weights):
        raise ValueError(f"{negative} of the net's layer weights are negative, so LPIPS is no distance; "
                         f"load the trained ones with lpips.LPIPS(pretrained=True)")  # fmt: skip

    @torch.no_grad()
    def signature(frames: Tensor) -> Tensor:
        x = frames.permute(0, 3, 1, 2).to(net.scaling_layer.scale) / 127.5 - 1
        x = net.scaling_layer(x) if net.version == "0.1" else x
        layers = [_unit(f) * (w.to(f) / f[0, 0].numel()).sqrt() for w, f in zip(weights, net.net(x))]
        return torch.cat([f.flatten(1) for f in layers], 1).cpu()

    return signature


class FrameDistances:
    """Distances of the frames of one video, pushed in pieces of any length.

    Only a signature of each frame is held, 3 kB with `low_pass`; the frames themselves may go.

    Args:
        signature: uint8 (t,H,W,3) -> (t,k), whose Euclidean distance is the distance of two frames.
    """

    def __init__(self, signature: Callable[[Tensor], Tensor] = low_pass):
        self.signature = signature
        self.pieces: list[Tensor] = []

    def push(self, frames: Tensor) -> None:
        """Add the next frames, uint8 (t,H,W,3).

        Raises:
            ValueError: they are no such frames.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}, expected torch.uint8 (t, H, W, 3)")
        if len(frames):
            self.pieces.append(self.signature(frames))

    def r(self) -> Tensor:
        """Mean distance of frames k apart, (F,): see `diagonals`."""
        return diagonals(torch.cat(self.pieces) if self.pieces else torch.empty(0, 1))


def diagonals(signatures: Tensor) -> Tensor:
    """Mean distance of frames k apart, r[k] = mean_i |s_i - s_(i+k)|, r[0] = 0 (R-FLAV, Fig. 7).

    Distances are computed 128x128 at a time, in float64; the (F, F) matrix is never held.

    Args:
        signatures: (F, k), one row per frame.
    Returns:
        (F,) float64.
    Raises:
        ValueError: there are no frames, or signatures hold NaN or infinity.
    """
    n = len(signatures)
    if n == 0 or not signatures.isfinite().all():
        raise ValueError(f"signatures of {n} frames are none, NaN or infinite; give at least one, all finite")
    mean, sums = signatures.mean(0, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for i in range(0, n, ROWS):
        left = signatures[i : i + ROWS].double() - mean
        for j in range(i, n, ROWS):
            right = signatures[j : j + ROWS].double() - mean
            _add_diagonals(sums, torch.cdist(left, right, compute_mode="use_mm_for_euclid_dist"), j - i)
    sums[0] = 0  # what rounding leaves of a frame's distance to itself
    return sums / torch.arange(n, 0, -1)


def find_loop(r: ArrayLike, most: int | None = None) -> Loop:
    """Find the period at which a video plays again.

    Periods are whole frames at which r has a local minimum, played at least four times. For each, r^2 over
    k = 1..F/2 is fitted by a drift a k + b k^2 and a profile of k modulo the period: independent changes add in r^2,
    so the drift takes a slow change away. The share of the variance about the drift that the profile explains, with
    its degrees of freedom counted, is the peak. It is the power of the Fourier spectrum of r^2 in all harmonics of the
    period together: the minima of a loop are narrow, so a single harmonic may hold little. A loop has a share of at
    least 0.97, with the profile lowest at whole periods. Multiples of a period explain no more: the shortest wins.

    Measured: of random walks no share passes 0.55; bounces of unequal length reach 0.967 in 120 frames; motions of two
    unrelated periods reach 0.49 in 240 frames, and 0.972 in 500, where they meet again to within half a frame; loops
    under noise or slow drift have 0.99. A loop that begins after a tenth of the video is found, one that begins after
    a quarter often is not. A period of 10.4 frames is found as 52 if the video is long enough. The same motion over
    and over, as of a ball, is a loop too: whether it ought to be is not for r to say.

    Args:
        r: (F,) from `diagonals`.
        most: longest period to look for in frames; F/4 if not given.
    Raises:
        ValueError: r is no curve of at least 16 frames that starts at 0, or `most` is not within 2 and F/4.
    """
    r = np.asarray(r, dtype=float)
    if r.ndim != 1 or len(r) < FEWEST or r[0] != 0 or not np.isfinite(r).all():
        raise ValueError(f"r has shape {r.shape}, expected finite distances of frames 0, 1, 2, ... apart, "
                         f"the first of them 0, of at least {FEWEST} frames")  # fmt: skip
    most = len(r) // 4 if most is None else most
    if not 2 <= most <= len(r) // 4:
        raise ValueError(f"a period of {most} frames cannot be told in {len(r)}; give 2 to {len(r) // 4}")
    half = r[1 : len(r) // 2 + 1]  # k = 1..F/2
    shares = _shares(half, most)
    peak = max(shares.values(), default=0.0)
    period = min(p for p, share in shares.items() if share >= peak - ALIKE) if peak >= REPEATS else None
    rise = int((half >= half.mean()).argmax())  # until here r is small only because frames are close
    past, detrended = half[rise:], _without_drift(half)[rise:]
    replay = past.min() / half[0] if half[0] else 1.0
    return Loop(period, float(np.ptp(detrended) / 2), float(replay), peak, REPEATS)


def summarise(loops: Sequence[Loop]) -> dict:
    """Count the videos that loop: {"loops", "total", "periods"}, periods in frames in the order of the videos."""
    periods = [loop.period for loop in loops if loop.period is not None]
    return {"loops": len(periods), "total": len(loops), "periods": periods}


def _per_video(values: ArrayLike) -> NDArray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"values have shape {values.shape}, expected (videos, windows) of at least 2 videos")
    return values


def _standard_error(x: NDArray) -> float:
    return float(x.std(ddof=1) / len(x) ** 0.5)


def _in_errors(x: float, standard_error: float) -> float:
    """x / standard_error, 0 of 0 being 0."""
    return float(np.divide(x, standard_error)) if standard_error else float(np.copysign(np.inf, x) if x else 0)


def _unit(f: Tensor) -> Tensor:
    return f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)  # LPIPS adds 1e-10 to the length


def _add_diagonals(sums: Tensor, distances: Tensor, lag: int) -> None:
    """Add the distances (b, c) of one block to the sums (F,) of their lags; `lag` is that of its corner.

    With rows reversed, padded by b and cut one column narrower, each diagonal becomes a column.
    """
    b, c = distances.shape
    padded = F.pad(distances.flip(0), (0, b)).flatten()
    columns = padded[: b * (b + c - 1)].view(b, b + c - 1).sum(0)  # lags lag - b + 1 ... lag + c - 1
    known = max(b - 1 - lag, 0)  # a block on the main diagonal holds the pairs below it a second time
    sums[lag - b + 1 + known : lag + c] += columns[known:]


def _shares(half: NDArray, most: int) -> dict[int, float]:
    """Share of the variance of r^2 that repeats, by period: local minima whose profile is lowest at whole periods.

    Args:
        half: (L,) r at k = 1..L.
    """
    rest, shares = (_without_drift(half**2) ** 2).sum() / (len(half) - 3), {}
    if rest <= 1e-20 * (half**4).mean():  # nothing but drift and rounding
        return shares
    for period in 2 + np.flatnonzero((half[1:most] < half[: most - 1]) & (half[1:most] < half[2 : most + 1])):
        residual, lowest = _fold(half**2, int(period))
        if lowest == 0:
            shares[int(period)] = float(1 - (residual**2).sum() / (len(half) - period - 2) / rest)
    return shares


def _drifts(length: int) -> NDArray:
    """(length, 2) columns k and k^2, scaled to at most 1."""
    return (np.arange(1, length + 1) / length)[:, None] ** np.array([1, 2])


def _without_drift(x: NDArray) -> NDArray:
    """x (L,) at k = 1..L less the constant, k and k^2 that fit it best."""
    basis = np.column_stack([np.ones(len(x)), _drifts(len(x))])
    return x - basis @ np.linalg.lstsq(basis, x)[0]


def _fold(x: NDArray, period: int) -> tuple[NDArray, int]:
    """Fit x (L,) at k = 1..L by a drift and a profile of k modulo the period: residual (L,), phase of its minimum."""
    phase, drifts = np.arange(1, len(x) + 1) % period, _drifts(len(x))
    count = np.bincount(phase)

    def profile(y: NDArray) -> NDArray:
        return np.bincount(phase, y) / count

    apart = np.column_stack([d - profile(d)[phase] for d in drifts.T])
    x = x - drifts @ np.linalg.lstsq(apart, x - profile(x)[phase])[0]
    folded = profile(x)
    return x - folded[phase], int(folded.argmin())
