"""A desk on the tiny model of tests/given.py, and a server on it in this process, for the tests of the live page."""

import contextlib
import json
import socket
import threading
from pathlib import Path

import uvicorn

from serving.app import Room
from serving.desk import Desk, Settings
from serving.engine import Engine
from serving.hub import Hub
from serving.messages import LONGEST
from serving.uploads import Bounds, Uploads
from tests.given import tiny

BOUNDS = Bounds(size=2**20, seconds=30, pixels=640 * 480)


def desk(label: str | None = "red", seed: int = 0, load=tiny, **how) -> Desk:
    """A desk with one film."""
    return Desk(load, Settings(how.pop("steps", 2), how.pop("guidance", 2.0), label=label, seed=seed, **how))


def shown(desk: Desk, ticks: int) -> list:
    """Pieces of the next frames, each shown as soon as it is made."""
    pieces = []
    while ticks:
        if desk.tick():
            pieces += desk.send()
            ticks -= 1
    return pieces


class Server:
    """A live page on a free port of this process.

    Attributes:
        port: it listens at. engine, hub, uploads: behind it.
    """

    def __init__(self, open_desk=desk, token: str = "", host: str = "127.0.0.1", **how):
        self.hub, self.uploads = Hub(lambda *counts: self.engine.watched(*counts)), Uploads(BOUNDS)
        self.engine = Engine(open_desk, self.hub.publish, self.hub.tell, **how)
        self.engine.start()
        pipe = self.engine.ready.result(60).pipe
        spec, model = pipe.spec, pipe.model
        facts = {
            "name": "tiny", "fps": spec.fps, "side": spec.image_size, "bins": spec.n_mels,
            "columns": spec.mel_per_frame, "top": spec.sample_rate // 2, "classes": list(spec.class_names),
            "texts": False, "takes": list(model.takes), "guided": True, "lead": self.engine.lead, "most": 4,
        }  # fmt: skip
        self.room = Room(self.engine, self.hub, facts, "EXPORT", self.uploads, host, token)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        config = uvicorn.Config(self.room.app, log_level="warning", access_log=False, lifespan="on",
                                ws_max_size=2 * LONGEST, timeout_graceful_shutdown=1)  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._door],), name="server")
        self._thread.start()

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.port}/"

    def connect(self, **how):
        """A websocket as the page opens it, at once; none is left unread, since closing it would wait 10 s for that."""
        from websockets.sync.client import connect

        how = {"origin": self.address.rstrip("/"), "max_queue": None, **how}
        for _ in range(400):
            with contextlib.suppress(ConnectionRefusedError):
                return connect(f"ws://127.0.0.1:{self.port}/watch", legacy=True, **how)
        raise AssertionError("no server")

    def close(self) -> None:
        """End it; nothing is left."""
        self._server.should_exit = True
        self._thread.join()
        self.engine.end()
        self.engine.join()
        self.uploads.close()


def until(websocket, fits, seconds: float = 300):
    """The next event of a websocket, or piece as (kind, film, frame, data), that fits."""
    while True:
        data = websocket.recv(timeout=seconds)
        if isinstance(data, str):
            event = json.loads(data)
        else:
            if data[0] == 1:  # as a page does
                websocket.fragments = getattr(websocket, "fragments", 0) + 1
                websocket.send(f'{{"got":{websocket.fragments}}}')
            event = data[0], int.from_bytes(data[2:4], "big"), int.from_bytes(data[4:8], "big"), data[8:]
        if fits(event):
            return event


def of_type(name: str):
    """Whether an event is of a type."""
    return lambda event: isinstance(event, dict) and event["type"] == name


def film_of(pieces, film: int, path: Path) -> Path:
    """The opening and fragments of a film as a file."""
    path.write_bytes(b"".join(p.data for p in pieces if p.film == film and p.kind in ("opening", "fragment")))
    return path
