"""Scripts in processes of their own that start in no time: they are forked from one that has imported what is slow.

That one is a copy of this process before its first test, so it imports little anew. A script's process is one as a user
starts it, with memory, signals, an exit code and an end of its own.
"""

import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
ENV = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
SLOW = ["torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure", "evaluation.measures", "training.prepare",
        "training.learner", "pipeline.conditional"]  # fmt: skip
LIMIT = 300  # s, after which a process hangs


class Script:
    """A script that runs, with the methods of subprocess.Popen; a pipe for its stdout only where it is `piped`."""

    def __init__(self, script: str | Path, *arguments, piped: bool = False, **environment):
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        out, self.stdout = self._out.fileno(), None
        if piped:
            read, out = os.pipe()
            self.stdout = os.fdopen(read, "rb")
        ends = [Connection(os.dup(fd), readable=False) for fd in (out, self._err.fileno())]  # which can be sent
        arguments = [str(argument) for argument in arguments]
        self.process = context().Process(target=_run, args=(str(ROOT / script), arguments, environment, *ends))
        self.process.start()
        for end in ends:
            end.close()
        if piped:
            os.close(out)
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float = LIMIT) -> int:
        self.process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.process.name, timeout, stderr=self.said)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until something is `ready`, before which the process must not end."""
        deadline = time.monotonic() + LIMIT
        while not ready():
            assert self.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.002)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def printed(self) -> str:
        """What it has written to stdout so far, unless that is piped."""
        return os.pread(self._out.fileno(), 2**24, 0).decode()

    @property
    def said(self) -> str:
        """What it has written to stderr so far."""
        return os.pread(self._err.fileno(), 2**24, 0).decode()


def run(script: str | Path, *arguments, **environment) -> Script:
    """Run a script to its end."""
    started = Script(script, *arguments, **environment)
    started.wait()
    return started


def run_ranks(count: int, script: str | Path, *arguments) -> list[Script]:
    """Run a script to its end in `count` processes that are one job, as torchrun starts it, for which it has to do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": count}
    ranks = [Script(script, *arguments, RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=count, **job)
             for rank in range(count)]  # fmt: skip
    try:
        for rank in ranks:
            assert rank.wait() == 0, rank.said
    finally:
        for rank in ranks:
            rank.kill()
    return ranks


@cache
def context():
    """The way to start processes, whose parent has imported all that is slow; call it before threads begin to run."""
    way = multiprocessing.get_context("forkserver")
    way.set_forkserver_preload(SLOW)
    with patch.dict(os.environ, ENV), patch.object(forkserver.util, "spawnv_passfds", _copy_of_this):
        forkserver.ensure_running()
    return way


def _copy_of_this(_, arguments: list[str], fds: list[int]) -> int:
    """In place of a new interpreter with these arguments, which keeps these files open: returns its process id."""
    if pid := os.fork():
        return pid
    try:
        kept = sorted({2, *fds})
        for after, before in pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(after + 1, before)
        exec(arguments[-1], {})
    finally:
        os._exit(1)


def _run(script: str, arguments: list[str], environment: dict, out: Connection, err: Connection) -> None:
    """Be a process that runs a script."""
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))  # those of before are of other files
    for logger in (logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)):
        logger.handlers.clear()  # those of pytest write to files by numbers that are of others now
    os.chdir(ROOT)
    os.environ.update({name: str(value) for name, value in environment.items()})
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


@atexit.register
def _leave_none() -> None:
    """A test that failed may have left a process that has no end."""
    for child in multiprocessing.active_children():
        child.kill()
