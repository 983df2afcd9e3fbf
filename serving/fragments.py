"""A growing mp4 cut into what a browser's Media Source Extensions take: a beginning, then fragments."""

import re
from collections.abc import Iterator

from torch import Tensor

from data.av import Writer

OPENING = (b"ftyp", b"moov")  # boxes of the beginning
HEADER = 8  # bytes of a box: its length and its name


class Fragments:
    """A film as H.264 and AAC for a browser; a viewer may join at any fragment that begins a tenth of a second.

    Args:
        side: of the square pictures, px. fps, sample_rate: as of `data.av.Writer`.
    Attributes:
        opening: the beginning, without which no fragment plays; empty until the first fragment is there.
    """

    def __init__(self, side: int, fps: float, sample_rate: int):
        self._left, self._boxes, self.opening = b"", b"", b""
        self._writer = Writer(self, side, side, fps, sample_rate, wav=False, preset="live")

    def add(self, frames: Tensor, wave: Tensor) -> list[bytes]:
        """Take in frames uint8 (t,H,W,3) with their sound; the fragments that are whole now."""
        self._writer.write(frames, wave)
        return list(self._whole())

    def close(self) -> list[bytes]:
        """End the film; its last fragments."""
        self._writer.close()
        return list(self._whole())

    def write(self, data: bytes) -> int:
        """What the writer calls."""
        self._left += bytes(data)
        return len(data)

    def flush(self) -> None:
        """What the writer calls."""

    def _whole(self) -> Iterator[bytes]:
        """The fragments, a moof with its mdat each, that are complete."""
        while len(self._left) >= HEADER:
            length, name = int.from_bytes(self._left[:4], "big"), self._left[4:HEADER]
            if len(self._left) < length:
                return
            box, self._left = self._left[:length], self._left[length:]
            if name in OPENING:
                self.opening += box
            else:
                self._boxes += box
            if name == b"mdat":
                fragment, self._boxes = self._boxes, b""
                yield fragment


def codecs(opening: bytes) -> str:
    """What a browser is asked whether it plays a film with this beginning: profile and level of H.264, and AAC LC."""
    profile = re.search(rb"avcC\x01(...)", opening, re.S)
    return f'video/mp4; codecs="avc1.{profile[1].hex()}, mp4a.40.2"'
