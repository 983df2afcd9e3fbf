"""Which picture a grid of frames shows, by times alone."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

SLACK = 0.002  # s; Matroska rounds every time to 1 ms, so the length of its picture may be 1 ms short


def grid_length(seconds: float, rate: float, fps: float) -> int:
    """Number of frames that a picture of `seconds` at source rate `rate` has on a grid of `fps`.

    floor(seconds * fps): the last frame is shown for its whole time. Where `rate` is a whole multiple of `fps`, the
    grid picks every n-th source frame and an incomplete last group counts too, as in the released loader.
    """
    stride = rate / fps
    if abs(stride - round(stride)) < 1e-6:
        return math.ceil((seconds - SLACK) * fps)
    return math.floor((seconds + SLACK) * fps)


def select_frames(timed: Iterable[tuple[Fraction, Any]], fps: float, start: int = 0) -> Iterator[Any]:
    """What is shown at start/fps, (start+1)/fps, ...: the last item at or before each of these times.

    Args:
        timed: (seconds, item) in rising order; the last pair is (end, None), from when on nothing is shown. A first
            item that comes late is shown from the start.
    """
    shown, j = None, start
    for begin, item in timed:
        while shown is not None and j < begin * Fraction(fps):
            yield shown
            j += 1
        shown = item
