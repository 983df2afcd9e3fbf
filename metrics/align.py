"""Synchrony of any video, without a detector made for the scene: onsets of the sound against optical flow.

Generic detectors err often, so a score says little alone: compare it with what chance gives (`against_chance`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import librosa
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter1d
from scipy.signal import find_peaks

from metrics.sync import check_rotations, match_events

FLOW_SIZE = 128  # px, long side of a frame when its flow is computed
FARNEBACK = dict(pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0)


class OnsetScores(NamedTuple):
    """How well the onsets of a generated sound agree with those of the sound it should have been."""

    accuracy: float  # fraction of target onsets that have a predicted one
    ap: float  # average precision of predicted onsets, ranked by loudness
    count_match: bool  # equally many onsets before suppression


class Lag(NamedTuple):
    """Where motion and loudness agree best."""

    frames: float  # positive: the sound is late; nan: nothing moves or nothing sounds
    peak: float  # correlation at that lag, in [-1, 1]


class Chance(NamedTuple):
    """A score over clips, and the same score with the sounds of other clips."""

    mean: float
    shuffled: float
    difference: float  # mean - shuffled
    standard_error: float  # of the difference
    low: float  # interval of the difference
    high: float

    @property
    def z(self) -> float:
        """Difference in standard errors; infinite when every clip differs by the same amount, nan when by nothing."""
        return self.difference / self.standard_error if self.standard_error else math.inf * self.difference


def audio_onsets(wave: NDArray, sample_rate: int) -> NDArray:
    """Times (n,) in s, whole hundredths, at which the spectral flux of a mono wave (N,) peaks; none in silence.

    Raises:
        ValueError: the wave is not mono.
    """
    hop = sample_rate // 100  # librosa's 512 samples are so long at 16 kHz that it counts each click twice
    return librosa.onset.onset_detect(y=_mono(wave), sr=sample_rate, hop_length=hop, units="time")


def motion(frames: Iterable[NDArray]) -> NDArray:
    """Mean magnitude of the optical flow (Farneback, 2003) from each frame to the next.

    Args:
        frames: uint8 (T, H, W, 3), or an iterator of such frames: two are held at a time.
    Returns:
        (T-1,) in pixels per frame, of a picture scaled down to at most 128 px on its long side.
    Raises:
        ValueError: a frame is not uint8 (H, W, 3), or there are fewer than two.
    """
    magnitudes = np.array([_flow(a, b) for a, b in pairwise(map(_grey, frames))])
    if not len(magnitudes):
        raise ValueError("motion needs at least 2 frames; give a longer video")
    return magnitudes


def motion_peaks(magnitudes: ArrayLike, fps: float) -> NDArray:
    """Times (n,) in s of the local maxima of motion (T-1,) that lie above its mean.

    Frame k shows the time (k + 0.5) / fps, so the motion between frames i and i+1 is timed at (i+1) / fps, when frame
    i+1 appears. The first and the last value have one neighbour only and are never peaks. That maxima of the flow are
    the events of a picture is AV-Align's idea (Yariv et al., 2023); the threshold at the mean is ours.
    """
    magnitudes = np.asarray(magnitudes, dtype=float)
    return (find_peaks(magnitudes, height=magnitudes.mean())[0] + 1) / fps


def av_align(audio_peaks: ArrayLike, video_peaks: ArrayLike, fps: float) -> float:
    """AV-Align as published (Yariv et al., 2023): audio peaks near a video peak, over the union of both.

    Kept for comparison with published tables. One video peak may serve many audio peaks while the union counts each
    of them away, so the score can exceed 1, and busy sound raises it; `matched_iou` does neither.

    Args:
        audio_peaks, video_peaks: times in s; near is less than one frame apart.
    Returns:
        a score >= 0; 0 where there are no peaks at all.
    """
    a, v = np.asarray(audio_peaks, dtype=float)[:, None], np.asarray(video_peaks, dtype=float)
    count = int(((v - 1 / fps < a) & (a < v + 1 / fps)).any(1).sum())
    return _iou(count, len(a), len(v))


def matched_iou(audio_peaks: ArrayLike, video_peaks: ArrayLike, fps: float, tolerance: float = 1.0) -> float:
    """Pairs of peaks over the union of both, each peak in one pair at most: in [0, 1], 0 where there are no peaks.

    Args:
        audio_peaks, video_peaks: times in s.
        tolerance: largest distance of a pair, in frames.
    """
    # Rounded, as both are often multiples of a frame: a distance of one must not hang on the last bit.
    a, v = (np.round(np.asarray(peaks, dtype=float) * fps, 6) for peaks in (audio_peaks, video_peaks))
    return _iou(len(match_events(a, v, tolerance)), len(a), len(v))


def onset_scores(
    targets: ArrayLike, predictions: ArrayLike, wave: NDArray, sample_rate: int, delta: float = 0.1
) -> OnsetScores:
    """Onset accuracy and average precision as published for Foley models, with the slips of the published rule.

    Predicted onsets closer than 0.05 s to a louder one are suppressed first. Then every target in turn takes the
    prediction within `delta` whose sample is largest; targets left over when predictions run out count for the
    accuracy but not for the AP.

    Args:
        targets: onsets of the true sound, in samples, in order.
        predictions: onsets of the generated sound, in samples.
        wave: (N,) the generated sound.
        delta: distance in s that a pair must stay below.
    Returns:
        accuracy and AP in [0, 1], 0 where there are no targets.
    Raises:
        ValueError: the wave is not mono, or a prediction lies outside it.
    """
    targets, predictions = np.asarray(targets, dtype=int), np.sort(np.asarray(predictions, dtype=int))
    loudness = np.abs(_mono(wave))
    if outside := [int(o) for o in predictions if not 0 <= o < len(loudness)]:
        raise ValueError(f"onset {outside[0]} lies outside a wave of {len(loudness)} samples; give onsets in samples")
    loudness = (loudness - loudness.min()) / max(np.ptp(loudness), np.finfo(float).tiny)
    confidence = maximum_filter1d(loudness, 2 * int(0.05 * sample_rate), mode="constant")
    kept = _suppressed(predictions, confidence, 0.05 * sample_rate)
    taken, unused = _take(targets, kept, loudness, delta * sample_rate)
    truth = np.repeat([1, 0], [len(taken), len(unused)])
    ranks = [0.0 if o is None else confidence[o] for o in taken] + [confidence[o] for o in unused]
    matched = sum(o is not None for o in taken)
    ap = _average_precision(truth, np.array(ranks, dtype=float))
    return OnsetScores(matched / max(len(targets), 1), ap, len(targets) == len(predictions))


def lag(motion: NDArray, wave: NDArray, sample_rate: int, fps: float, most: int = 10) -> Lag:
    """Lag of the sound behind the picture: where motion and loudness correlate best.

    Loudness is the root mean square of the sound between the middles of the two frames of each motion. Each lag is
    correlated (Pearson) over what overlaps; lags that leave less than half of the series are not tried, and of equals
    the smallest wins. The peak is the best of many, so it is positive by chance: judge it by `against_chance`. Of
    events that repeat, such as a bouncing ball, the lag is known only up to their period.

    Args:
        motion: (T-1,) as from `motion`.
        wave: (N,) mono, from the start of the first frame.
        most: largest lag tried, in frames either way.
    Raises:
        ValueError: the wave is not mono, or ends before the picture does.
    """
    motion = np.asarray(motion, dtype=float)
    loudness, n = _loudness(wave, sample_rate, fps, len(motion)), len(motion)
    lags = sorted(range(-min(most, n // 2), min(most, n // 2) + 1), key=abs)
    fits = [_correlation(motion[max(-k, 0) : n - max(k, 0)], loudness[max(k, 0) : n + min(k, 0)]) for k in lags]
    best = int(np.argmax(fits))
    return Lag(float(lags[best]) if any(fits) else math.nan, fits[best])


def against_chance(
    score: Callable[[Any, Any], float],
    pictures: Sequence,
    sounds: Sequence,
    rotations: Sequence[int] = (1, 3, 5),
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Chance:
    """Score of each picture with its own sound, against the sounds of the clips 1, 3 and 5 places further.

    Args:
        score: of one picture with one sound, such as `matched_iou` of their peaks.
        pictures, sounds: one per clip, in the same order, in whatever form `score` takes.
        rotations: places by which the sounds move.
        resamples, seed, level: as in `chance_corrected`.
    Raises:
        ValueError: there are not as many sounds as pictures, or too few clips to rotate that far.
    """
    n = len(pictures)
    if len(sounds) != n:
        raise ValueError(f"{n} pictures but {len(sounds)} sounds; give one sound per picture, in the same order")
    check_rotations(n, rotations)
    scores = [[score(pictures[i], sounds[(i + places) % n]) for i in range(n)] for places in (0, *rotations)]
    return chance_corrected(scores[0], np.mean(scores[1:], axis=0), resamples, seed, level)


def chance_corrected(
    scores: ArrayLike, shuffled: ArrayLike, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Chance:
    """Mean score minus mean shuffled score, with an interval from drawing whole clips with replacement.

    Args:
        scores, shuffled: (n,) per clip, with its own sound and with those of others.
        resamples, seed, level: of the bootstrap; the interval holds a fraction `level` of the means drawn.
    Raises:
        ValueError: there are not as many shuffled scores as scores, or none.
    """
    scores, shuffled = np.asarray(scores, dtype=float), np.asarray(shuffled, dtype=float)
    if scores.shape != shuffled.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores {scores.shape} and shuffled {shuffled.shape} must both be (n,): one number per clip")
    drawn = np.random.default_rng(seed).integers(len(scores), size=(resamples, len(scores)))
    differences = scores - shuffled
    means = differences[drawn].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    error = means.std() if np.ptp(differences) else 0.0  # rounding would leave a trace of equal differences
    return Chance(*map(float, (scores.mean(), shuffled.mean(), differences.mean(), error, low, high)))


def _mono(wave: NDArray) -> NDArray:
    wave = np.asarray(wave)
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        raise ValueError(f"wave is {wave.dtype} {wave.shape}, expected float (N,); mix to mono and scale to [-1, 1]")
    return wave.astype(float)


def _grey(frame: NDArray) -> NDArray:
    """uint8 (H, W, 3) -> uint8 (h, w), at most 128 px on the long side."""
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"a frame is {frame.dtype} {frame.shape}, expected uint8 (H, W, 3); give RGB in 0..255")
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = FLOW_SIZE / max(grey.shape)
    size = [max(round(side * scale), 1) for side in grey.shape[::-1]]  # w, h
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if scale < 1 else grey


def _flow(a: NDArray, b: NDArray) -> float:
    if a.shape != b.shape:
        raise ValueError(f"frames of {a.shape} and {b.shape} (h, w) follow each other; give frames of one size")
    return float(np.linalg.norm(cv2.calcOpticalFlowFarneback(a, b, None, **FARNEBACK), axis=-1).mean())


def _iou(pairs: int, n: int, m: int) -> float:
    return pairs / max(n + m - pairs, 1)


def _suppressed(onsets: NDArray, confidence: NDArray, width: float) -> list[int]:
    """Onsets in order without those closer than `width` samples to a more confident one, as published.

    The published loop deletes from the list that it walks, and so overlooks the onset after each one it deletes.
    """
    waiting, kept = list(map(int, onsets)), []
    for onset in sorted(waiting, key=lambda o: -confidence[o]):
        if onset in waiting:
            waiting.remove(onset)
            kept.append(onset)
            for other in waiting:
                if abs(other - onset) < width:
                    waiting.remove(other)  # while iterating: the slip, kept
    return sorted(kept)


def _take(targets: NDArray, onsets: list[int], loudness: NDArray, width: float) -> tuple[list[int | None], list[int]]:
    """The onset that each target takes, None for a miss, until none are left; and the onsets that nobody took."""
    taken, unused = [], list(onsets)
    for target in targets:
        if not unused:
            break
        near = [o for o in unused if abs(o - target) < width]
        taken.append(max(near, key=lambda o: loudness[o], default=None))
        if near:
            unused.remove(taken[-1])
    return taken, unused


def _average_precision(truth: NDArray, ranks: NDArray) -> float:
    """Precision at each threshold, weighted by the recall gained there; equal ranks share a threshold."""
    thresholds = np.unique(ranks)[::-1]
    above = ranks >= thresholds[:, None]
    hits = (above * truth).sum(1)
    return float((hits / np.maximum(above.sum(1), 1) * np.diff(hits, prepend=0)).sum() / max(truth.sum(), 1))


def _loudness(wave: NDArray, sample_rate: int, fps: float, n: int) -> NDArray:
    """Root mean square (n,) of the sound within half a frame of 1 / fps, 2 / fps, ... n / fps."""
    wave = _mono(wave)
    edges = np.round((np.arange(n + 1) + 0.5) * sample_rate / fps).astype(int)
    if len(wave) < edges[-1]:
        raise ValueError(
            f"wave lasts {len(wave) / sample_rate:g} s, {n + 1} frames at {fps:g} fps last {(n + 1) / fps:g} s; "
            f"pad the sound with silence or cut the video"
        )
    return np.sqrt(np.add.reduceat(wave[: edges[-1]] ** 2, edges[:-1]) / np.diff(edges))


def _correlation(x: NDArray, y: NDArray) -> float:
    """Pearson's r, 0 where one of both is constant up to rounding."""
    if any(z.std() <= 1e-9 * abs(z.mean()) for z in (x, y)):
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
