"""The engine: a thread that makes films at the pace at which they are watched, and does what viewers ask for."""

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, Full, Queue

import torch

from serving.desk import Desk
from serving.film import Piece

TIMED = 300  # frames whose seconds are told
COMMANDS = 32  # that may wait
TOLD = 1.0  # s between two reports
ABLE = ("play", "pause", "release")  # what needs no model
FAILURES = 3  # of a step without a frame between them, after which the model pauses

log = logging.getLogger(__name__)


class Pace:
    """When frames are due: the film plays in real time, and each frame is sent `ahead` seconds before it is seen.

    Times are those of `clock`, in seconds. A film that is made too late waits; it does not hurry to catch up with more
    than it has ahead.
    """

    def __init__(self, fps: float, ahead: float):
        self.fps, self.ahead, self.sent = fps, ahead, 0
        self._begin, self._held = None, None  # when frame 0 is seen; since when the film stands still

    @property
    def due(self) -> float:
        """When the next frame is to be sent."""
        return 0.0 if self._begin is None else self._begin + self.sent / self.fps - self.ahead

    def send(self, now: float, frames: int = 1) -> None:
        """Frames are sent."""
        if self._begin is None:
            self._begin = now
        self.sent += frames
        self._begin = max(self._begin, now - self.sent / self.fps)  # nobody has seen what was not sent

    def hold(self, now: float) -> None:
        """The film stands still."""
        self._held = now if self._held is None else self._held

    def go(self, now: float) -> None:
        """The film goes on where it stood."""
        if self._held is not None and self._begin is not None:
            self._begin += now - self._held
        self._held = None

    def seen(self, now: float) -> float:
        """Frame that is seen now by one who follows closely."""
        now = now if self._held is None else self._held
        return 0.0 if self._begin is None else min(self.sent, max(0.0, (now - self._begin) * self.fps))


class Engine(threading.Thread):
    """Makes films in a thread of its own.

    Args:
        open_desk: makes the desk, in this thread.
        publish: called with the pieces of each frame. tell: called with what all viewers are told, a dict.
        lead: s that frames are made before they are seen. idle: s without a viewer after which the model pauses.
    """

    def __init__(
        self,
        open_desk: Callable[[], Desk],
        publish: Callable[[list[Piece]], None],
        tell: Callable[[dict], None],
        lead: float = 0.6,
        idle: float = 30.0,
    ):
        super().__init__(name="engine", daemon=True)
        self.publish, self.tell, self.lead, self.idle = publish, tell, lead, idle
        self.ready: Future[Desk] = Future()
        self._open_desk, self._commands, self._wake = open_desk, Queue(COMMANDS), threading.Event()
        self._over, self._paused, self._released = False, False, False
        self._seconds: deque[float] = deque(maxlen=TIMED)
        self._watching, self._playing, self._alone = 0, 0, None
        self._told, self._failures = 0.0, 0

    # ------------------------------------------------------------------------------------------------ for others

    def watched(self, watching: int, playing: int) -> None:
        """How many viewers there are, and how many of them play."""
        if not watching and self._watching:
            self._alone = time.monotonic()
        self._watching, self._playing = watching, playing
        self._wake.set()

    def ask(self, message: dict | Callable[[Desk], object], needs_model: bool = True) -> Future:
        """Have a checked message done between two frames, or a function of the desk; what comes of it.

        Args:
            needs_model: whether a function does without a model whose memory was released; if so it stays released.
        Raises:
            ValueError: too many wait.
        """
        answer = Future()
        try:
            self._commands.put_nowait((message, answer, needs_model))
        except Full:
            raise ValueError("too much was asked at once; wait a moment") from None
        self._wake.set()
        return answer

    def end(self) -> None:
        """Stop after the frame that is being made."""
        self._over = True
        self._wake.set()

    # ------------------------------------------------------------------------------------------------ the thread

    def run(self) -> None:
        """Until `end`."""
        torch.set_grad_enabled(False)  # of this thread
        try:
            self.desk = self._open_desk()
        except BaseException as error:
            self.ready.set_exception(error)
            return
        fps = self.desk.pipe.spec.fps
        self.unsent = 1  # frames kept back, which a command makes anew
        self.pace = Pace(fps, max(1, round(self.lead * fps) - self.unsent) / fps)
        self.report()
        self.ready.set_result(self.desk)
        while not self._over:
            self._obey()
            try:
                self._go_on()
            except Exception as error:
                log.warning("a film failed: %s", error, exc_info=True)
                self._failed(error)
        self._refuse_the_rest()

    def _failed(self, error: Exception) -> None:
        """Try once more, then without the youngest film; pause where still no frame comes."""
        self._failures += 1
        reason = " ".join(word for word in str(error).split() if "/" not in word)[:200]  # no path of ours
        text = ""
        if self._failures == FAILURES - 1:
            text = f"film {max(self.desk.films)} was closed, for it could not go on ({reason})"
        elif self._failures >= FAILURES:
            self._paused, text = True, f"the model is paused, for it failed {self._failures} times ({reason})"
        with suppress(Exception):
            self.desk.recover(close=self._failures == FAILURES - 1)
        if text:
            self.tell({"type": "failed", "text": text})
        with suppress(Exception):
            self.report()

    def _go_on(self) -> None:
        """Send a frame if one is due, or make one, or wait."""
        now = time.monotonic()
        if self.resting(now):
            self.pace.hold(now)
            self._wait(0.25)
        elif self.desk.waiting and now >= self.pace.due:
            self.pace.go(now)
            self.publish(self.desk.send())
            self._failures = 0
            self.pace.send(now, self.desk.at_once)
        elif self.desk.waiting <= self.unsent - (now < self.pace.due):
            self.pace.go(now)
            began = time.perf_counter()
            if self.desk.tick():
                self._seconds.append((time.perf_counter() - began) / self.desk.at_once)
        else:
            self._wait(self.pace.due - now)
        if now - self._told > TOLD:
            self.report()

    def _wait(self, seconds: float) -> None:
        self._wake.wait(max(0.0, seconds))
        self._wake.clear()

    def resting(self, now: float) -> bool:
        """Whether the model pauses: it was asked to, nobody has watched for a while, or all who watch have paused."""
        if self._paused or self._released:
            return True
        if self._watching:
            return not self._playing
        return self._alone is None or now - self._alone > self.idle

    def _obey(self) -> None:
        """All commands that wait."""
        while True:
            try:
                message, answer, needs_model = self._commands.get_nowait()
            except Empty:
                return
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(self._done(message, needs_model))
            except Exception as error:  # told to the one who asked
                answer.set_exception(error)
            with suppress(Exception):
                self.report()

    def _done(self, message: dict | Callable, needs_model: bool) -> object:
        what = message["do"] if isinstance(message, dict) else ""
        if self._released and needs_model and what not in ABLE:
            self._load()
        if callable(message):
            return message(self.desk)
        if what == "pause":
            self._paused = True
        elif what == "play":
            self._paused = False
            if self._released:
                self._load()
        elif what == "release":
            self._release()
        else:
            return self.desk.obey(message)
        return {}

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self.desk.release()

    def _load(self) -> None:
        self.desk.restore()
        self._released = False

    def _refuse_the_rest(self) -> None:
        with suppress(Empty):
            while True:
                self._commands.get_nowait()[1].set_exception(ValueError("the server ends"))

    # ------------------------------------------------------------------------------------------------ what is told

    def report(self) -> None:
        """Tell all viewers how the films stand."""
        self._told, self.last = time.monotonic(), self.standing()
        self.tell(self.last)

    def standing(self) -> dict:
        """How the films stand, as the page shows it."""
        desk, now, settings = self.desk, time.monotonic(), self.desk.settings
        films = [
            {
                "film": film.number, "first": film.first, "next": film.next, "parent": film.parent,
                "label": film.history.now.label, "seed": film.history.now.seed, "turns": film.history.listed()[-50:],
                "given": {"kind": film.given.kind, "name": film.given.name, "start": film.given.start,
                          "end": film.given.end} if film.given else None,
                "oldest": film.shown[0].index if film.shown else film.first,
            }
            for film in list(desk.films.values())
        ]  # fmt: skip
        return {"type": "standing", "films": films, "steps": settings.steps, "guidance": settings.guidance,
                "paused": self._paused, "released": self._released, "resting": self.resting(now),
                "watching": self._watching, **self.meters(now)}  # fmt: skip

    def meters(self, now: float) -> dict:
        """Real-time factor, frames made ahead of who follows closely, p50 and p99 of the seconds of a frame."""
        seconds = sorted(self._seconds)
        ahead = self.pace.sent + self.desk.waiting - self.pace.seen(now)
        if not seconds:
            return {"ahead": round(ahead, 1), "speed": None, "p50": None, "p99": None}
        p50 = statistics.median(seconds)
        p99 = seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]
        return {"ahead": round(ahead, 1), "speed": 1 / (p50 * self.pace.fps), "p50": p50, "p99": p99}
