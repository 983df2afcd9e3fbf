"""Scripts that are killed at a chosen moment."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.processes import Script

Ready = Callable[[], bool]


def kill_when(child: Script, ready: Ready) -> bool:
    """Kill a process as soon as it is `ready`; whether it had not ended before."""
    while child.poll() is None and not ready():
        time.sleep(0.001)
    child.kill()
    return child.wait() == -9


@dataclass(frozen=True)
class End:
    """How a run came to its end."""

    code: int  # -9 if it was killed
    seconds: float
    said: str


def run_until(ready: Ready | None, script: str, argv: list[str]) -> End:
    """Run a script, to a kill or (None) to its end."""
    began, child = time.monotonic(), Script(script, *argv)
    if ready:
        kill_when(child, ready)
    return End(child.wait(), time.monotonic() - began, child.said)


def after(seconds: float) -> Ready:
    """So many seconds from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def after_lines(path: Path, count: int, seconds: float) -> Ready:
    """So many seconds after a file has so many lines."""
    later = None

    def ready() -> bool:
        nonlocal later
        if not later and lines(path) >= count:
            later = after(seconds)
        return bool(later and later())

    return ready


def lines(path: Path) -> int:
    """Lines of a file, 0 if it is not there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
