"""A decoded picture as a screen shows it."""

import av
import numpy as np


def pixels(frame: av.VideoFrame) -> np.ndarray:
    """Upright RGB pixels, uint8 (H,W,3), in memory of their own."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).copy()
