"""Scripts that are killed at a chosen moment.

Run as a script this file is the nursery: it imports what the scripts need, once, and forks a process for each run.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENV = os.environ | {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}
SLOW = ("torch", "diffusers.training_utils", "accelerate", "matplotlib.figure", "torch.utils.tensorboard",
        "torch._dynamo", "pipeline.prepare", "pipeline.training", "pipeline.storage")  # fmt: skip


def spawn(script: str, argv: list[str], log: Path) -> subprocess.Popen:
    """Start a script as a user does; what it says goes to `log`."""
    with log.open("w") as file:
        command = [sys.executable, f"{script}.py", *argv]
        return subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=file)


def killed(child: subprocess.Popen, ready: Callable[[], bool]) -> bool:
    """Kill a process as soon as it is `ready`; whether it had not ended before."""
    while child.poll() is None and not ready():
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


@dataclass(frozen=True)
class Kill:
    """When to kill: so many seconds after the start or, if a file is to be watched, after it has so many lines."""

    seconds: float
    watched: Path | None = None
    lines: int = 0


@dataclass(frozen=True)
class End:
    """How a run in the nursery came to its end."""

    code: int  # -9 if it was killed
    seconds: float


class Nursery:
    """Runs scripts in processes that start in no time, since they need not import torch."""

    def __enter__(self) -> "Nursery":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=ENV, text=True, **pipes)
        assert self.process.stdout.readline() == "ready\n"
        return self

    def run(self, script: str, argv: list[str], log: Path, kill: Kill | None = None) -> End:
        """Run a script, to its end or to a kill; what it says is added to `log`."""
        began = time.monotonic()
        self.process.stdin.write(json.dumps([script, argv, str(log), kill and asdict(kill)], default=str) + "\n")
        self.process.stdin.flush()
        return End(int(self.process.stdout.readline()), time.monotonic() - began)

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    """Fork a process for each line of stdin, kill it when its time has come, and say how it ended."""
    for name in SLOW:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        script, argv, log, kill = json.loads(line)
        if not (child := os.fork()):
            live(script, argv, log)
        print(code_of(child, Kill(**kill) if kill else Kill(600)), flush=True)


def code_of(child: int, kill: Kill) -> int:
    """Exit code of a child, which is killed when its time has come."""
    begun = None if kill.watched else time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if begun is None and lines(kill.watched) >= kill.lines:
            begun = time.monotonic()
        if begun is not None and time.monotonic() > begun + kill.seconds:
            os.kill(child, signal.SIGKILL)  # it has not been waited for, so the number is still its own
        time.sleep(0.001)


def lines(path: str | Path) -> int:
    """Lines of a file, 0 if it is not there."""
    return Path(path).read_bytes().count(b"\n") if Path(path).exists() else 0


def live(script: str, argv: list[str], log: str) -> None:
    """Be a process that runs a script."""
    import cli

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv, code = [f"{script}.py", *argv], 1
    with suppress(SystemExit):
        cli.run(importlib.import_module(script).main)
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
