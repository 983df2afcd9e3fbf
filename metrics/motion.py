"""Does what falls fall? Heights of a body against free flight under constant gravity, between its bounces."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import find_peaks

from metrics.intervals import bootstrap

FAR = 1e9  # px, above any body: as if it came from there


class MotionError(NamedTuple):
    """Px per frame^2 by which the acceleration of free flight is missed, over clips."""

    mean: float  # of the clips' own means
    low: float  # interval of the mean; nan of one clip
    high: float
    median: float  # of all frames
    counted: float  # share of frames that were in flight, of those with two neighbours
    clips: int  # with at least one


def motion_error(heights: Sequence[ArrayLike], gravity: float) -> MotionError:
    """Mean |second difference of the height + gravity| over clips, with a bootstrap interval over clips.

    Clips without a body (heights nan) and those that are never in flight say nothing and are left out; where there is
    no other, all figures are nan.

    Args:
        heights: a (T,) for each clip, px, upwards. gravity: px per frame^2, above 0.
    """
    clips = [errors for height in heights if len(errors := flight_errors(height, gravity))]
    places = sum(max(len(np.asarray(height)) - 2, 0) for height in heights)
    if not clips:
        return MotionError(*[float("nan")] * 4, 0.0, 0)
    means, frames = [errors.mean() for errors in clips], np.concatenate(clips)
    low, high = bootstrap(means) if len(means) > 1 else (float("nan"),) * 2
    return MotionError(float(np.mean(means)), low, high, float(np.median(frames)), len(frames) / places, len(clips))


def flight_errors(height: ArrayLike, gravity: float, prominence: float = 5.0) -> NDArray:
    """|h(k+1) - 2 h(k) + h(k-1) + gravity| of the frames k in flight; none of a clip whose height is nan.

    Left out are the frames that a bounce may touch, which are the lowest one of each bounce and its neighbours; a clip
    may begin or end with a bounce, so its ends count as if the body had come from far above.

    Args:
        height: (T,) px, upwards. gravity: px per frame^2, above 0.
        prominence: px that a body falls and rises at least at a bounce.
    """
    height = np.asarray(height, dtype=float)
    if len(height) < 3 or not np.isfinite(height).all():
        return np.empty(0)
    # What lies on the floor for three frames is not bouncing.
    lowest = find_peaks(-np.concatenate([[FAR], height, [FAR]]), prominence=prominence, plateau_size=(1, 2))[0] - 1
    touched = np.zeros(len(height), dtype=bool)
    for k in lowest:
        touched[max(k - 1, 0) : k + 2] = True
    return np.abs(np.diff(height, 2) + gravity)[~touched[1:-1]]
