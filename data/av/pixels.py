"""A decoded picture as a screen shows it: upright, in square pixels, as 8-bit RGB."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorTrc, VideoReformatter

from data.av.media import MediaError

HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
ANAMORPHIC = 8  # a pixel is at most this much wider than high, or the reverse; beyond, its shape is damage


class Screen:
    """Shows the pictures of one video stream; it keeps what scales them, which costs more to make than to use."""

    def __init__(self, video: av.VideoStream):
        self._video, self._scaler = video, VideoReformatter()

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """Pixels of a picture of the stream, uint8 (H,W,3), in memory of their own.

        Raises:
            MediaError: the picture is HDR.
        """
        if frame.color_trc in HDR:
            raise MediaError(
                f"{self._video.container.name} is an HDR video ({HDR[frame.color_trc]}), whose colours would come out "
                f"wrong; convert it to SDR first with the command in docs/media.md"
            )
        width = _square(frame.width, self._video.sample_aspect_ratio)
        stored = self._scaler.reformat(frame, format="rgb24", width=width).to_ndarray()
        return _upright(stored, frame.side_data.get("DISPLAYMATRIX")).copy()


def _square(width: int, aspect: Fraction | None) -> int:
    """Width in square pixels, as players widen a picture of pixels `aspect` times as wide as high."""
    if not aspect or not Fraction(1, ANAMORPHIC) <= aspect <= ANAMORPHIC:
        return width
    return max(1, round(width * aspect))


def _upright(stored: np.ndarray, matrix: bytes | None) -> np.ndarray:
    """A picture turned and mirrored by its display matrix: (x,y) is shown at (a x + c y, b x + d y), y downwards.

    Args:
        stored: (H,W,3).
        matrix: nine int32, a b _ c d _ _ _ _; None for a picture that is upright.
    """
    if matrix is None:
        return stored
    a, b, _, c, d = (int(entry) for entry in np.frombuffer(matrix, np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        stored, a, d = stored.swapaxes(0, 1), c, b
    return stored[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
