"""Synchrony of sound and picture: do events seen and events heard happen together?

Events are times in frames, found by whatever detector fits the scene; a clip of T frames spans the times [0, T).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class EventCounts(NamedTuple):
    """The events of one clip, or of several clips together."""

    v: int  # seen
    v_matched: int  # of them with a sound
    a: int  # heard
    a_matched: int  # of them with a picture


def match_events(a: ArrayLike, b: ArrayLike, tolerance: float = 1.0) -> list[tuple[int, int]]:
    """Pair the events of two lists one to one, nearest first, as long as they are at most `tolerance` apart.

    Returns:
        (i, j) for each matched pair a[i], b[j], nearest first; ties go to the earlier in the lists.
    """
    distance = np.abs(np.subtract.outer(np.asarray(a, dtype=float), np.asarray(b, dtype=float)))
    free_a, free_b, pairs = set(range(distance.shape[0])), set(range(distance.shape[1])), []
    for i, j in zip(*np.unravel_index(np.argsort(distance, axis=None, kind="stable"), distance.shape)):
        if distance[i, j] <= tolerance and i in free_a and j in free_b:
            pairs.append((int(i), int(j)))
            free_a.remove(i)
            free_b.remove(j)
    return pairs


def most_pairs(a: ArrayLike, b: ArrayLike, tolerance: float) -> int:
    """The largest number of pairs, one to one, of times a (n,) and b (m,) in s at most `tolerance` s apart."""
    a, b, near = (
        np.sort(np.round(np.asarray(x, dtype=float) * 1e6)) for x in (a, b, [tolerance])
    )  # whole microseconds
    i = j = pairs = 0
    while i < len(a) and j < len(b):
        if abs(a[i] - b[j]) <= near[0]:
            i, j, pairs = i + 1, j + 1, pairs + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return pairs


def event_counts(
    events_v: ArrayLike, events_a: ArrayLike, frames: int, tolerance: float = 1.0, margin: float = 2
) -> EventCounts:
    """Count the events of one clip and those matched with the other modality.

    Args:
        events_v, events_a: times of the events seen and heard, in frames.
        frames: length of the clip.
        tolerance: largest distance of a pair, in frames.
        margin: events in the outer `margin` frames at either end are not counted, but may be another's match: the
            partner of an event near the end may lie beyond it.
    """
    events_v, events_a = np.asarray(events_v, dtype=float), np.asarray(events_a, dtype=float)
    pairs = match_events(events_v, events_a, tolerance)
    inside_v, inside_a = ((times >= margin) & (times < frames - margin) for times in (events_v, events_a))
    return EventCounts(
        v=int(inside_v.sum()),
        v_matched=sum(int(inside_v[i]) for i, _ in pairs),
        a=int(inside_a.sum()),
        a_matched=sum(int(inside_a[j]) for _, j in pairs),
    )


def f1(counts: EventCounts | Sequence[EventCounts]) -> float:
    """F1 of one clip, or of many with their events pooled: precision over events seen, recall over events heard.

    0 where nothing matches, be it because there are no events at all: silence before a still picture is not synchrony.
    """
    return float(_f1(np.reshape(counts, (-1, 4)).sum(0)))


def bootstrap_f1(
    counts: Sequence[EventCounts], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval (low, high) that holds the pooled F1 in a fraction `level` of the samples drawn from these clips.

    Whole clips are drawn with replacement, since events of one clip rise and fall together.
    """
    counts = np.reshape(counts, (-1, 4))
    drawn = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    low, high = np.quantile(_f1(counts[drawn].sum(1)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def shuffled_f1(
    events_v: Sequence[ArrayLike],
    events_a: Sequence[ArrayLike],
    frames: int,
    tolerance: float = 1.0,
    margin: float = 2,
    rotations: Sequence[int] = (1, 3, 5),
) -> float:
    """F1 that chance gives: each clip's picture with the sound of the clip 1, 3 and 5 places further, averaged.

    Args:
        events_v, events_a: one list of event times per clip, in the same order.
        frames, tolerance, margin: as in `event_counts`.
        rotations: places by which the sounds move.
    Raises:
        ValueError: there are too few clips to rotate that far.
    """
    n = len(events_v)
    check_rotations(n, rotations)
    return float(
        np.mean(
            [
                f1([event_counts(events_v[i], events_a[(i + places) % n], frames, tolerance, margin) for i in range(n)])
                for places in rotations
            ]
        )
    )


def check_rotations(n: int, rotations: Sequence[int]) -> None:
    """Raise a ValueError unless rotating n clips by any of these places gives each picture the sound of another."""
    if n <= max(rotations):
        raise ValueError(f"{n} clips cannot be rotated by {max(rotations)}; give at least {max(rotations) + 1} clips")


def _f1(totals: NDArray) -> NDArray:
    """Summed counts (..., 4) -> F1 (...)."""
    v, v_matched, a, a_matched = np.moveaxis(totals, -1, 0)
    precision, recall = v_matched / np.maximum(v, 1), a_matched / np.maximum(a, 1)
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
