"""Files from a page: bounded in size, seconds and pixels, in a folder of their own under names of ours."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from data.av import MediaError, check_bounds

SHOWN = 60  # characters of a file's own name, which is only shown


@dataclass(frozen=True)
class Bounds:
    """What an upload may be at most: bytes, seconds, pixels of a picture."""

    size: int = 64 * 2**20
    seconds: float = 600.0
    pixels: int = 4096 * 2304


class Uploads:
    """The folder of uploads; `close` removes it with all that is in it."""

    def __init__(self, bounds: Bounds = Bounds()):
        self.bounds, self._numbers = bounds, count(1)
        self._folder = TemporaryDirectory(prefix="live_")
        self.folder = Path(self._folder.name)

    def path(self, suffix: str = "") -> Path:
        """A new name in the folder."""
        return self.folder / f"file_{next(self._numbers):06d}{suffix}"

    def check_size(self, size: int) -> None:
        """Refuse bytes that are too many with a ValueError."""
        if size > self.bounds.size:
            raise ValueError(f"a file has {self.bounds.size // 2**20} MiB at most; drop a smaller one")

    async def keep(self, parts: AsyncIterator[bytes], path: Path) -> None:
        """Write what comes to a file; who asks for it removes it, whole or not.

        Raises:
            ValueError: it is empty or too large.
        """
        size = 0
        with path.open("wb") as file:
            async for part in parts:
                self.check_size(size := size + len(part))
                file.write(part)
        if not size:
            raise ValueError("the file is empty; drop another one")

    def examine(self, path: Path, kind: str) -> None:
        """Look at a media file before it is decoded, for its "sound", its "picture", or both as a "clip".

        Raises:
            MediaError: it cannot be read, is too long, or its pictures are too large.
        """
        check_bounds(path, "audio" if kind == "sound" else "video", self.bounds.seconds, self.bounds.pixels)

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


def shown_name(name: str) -> str:
    """A file's own name as it may be shown: printable, short, never a path."""
    name = "".join(c for c in name.replace("\\", "/").rsplit("/", 1)[-1] if c.isprintable()).strip()
    return name[:SHOWN] or "the file"


def refusal(error: Exception, path: Path, name: str) -> str:
    """What is said of a file that cannot be used: one sentence with its own name, without ours."""
    text = " ".join(str(error).split()) if isinstance(error, ValueError | OSError | MediaError) else ""
    return text.replace(str(path), name)[:400] or f"{name} cannot be used; drop another file"
