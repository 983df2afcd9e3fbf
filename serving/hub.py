"""Viewers, and what each of them still has to get; one that reads slowly skips to the newest fragment."""

import asyncio
import json
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.websockets import WebSocket, WebSocketDisconnect

from serving.film import Piece
from serving.fragments import codecs

VIEWERS = 8
FULL = f"{VIEWERS} viewers are watching, the most there may be; try again when one has left"
KINDS = {"opening": 0, "fragment": 1, "sound": 2}  # first byte of a message; then 0, film (2 bytes), frame (4 bytes)
UNTOLD = 48  # fragments of each film that a page may have got without saying so
BACKLOG = 24  # fragments of each film that may wait for a viewer
RECENT = 16  # fragments of each film, with their sounds, for one who comes
ANSWERS = 256  # answers and reports that may wait for one who does not read


@dataclass(frozen=True)
class Item:
    """A message to a page: kind of a piece, or "standing" or "told"."""

    kind: str
    data: bytes | str


def packed(piece: Piece) -> Item:
    """A piece as a message."""
    head = struct.pack(">BxHI", KINDS[piece.kind], piece.film, piece.frame)
    return Item(piece.kind, head + piece.data)


class Viewer:
    """One page that watches.

    Attributes:
        playing: whether it has not paused. dropped: fragments that it was too slow for. films: how many it gets.
    """

    def __init__(self, websocket: WebSocket):
        self.websocket, self.playing, self.dropped, self.films = websocket, True, 0, 1
        self._sent, self._got, self._waiting, self._some = 0, 0, deque(), asyncio.Event()

    def push(self, item: Item) -> None:
        """Have a message sent when those before it are; in constant memory however slow the page is."""
        if item.kind == "standing":
            self._waiting = deque(old for old in self._waiting if old.kind != "standing")
        if item.kind == "fragment" and sum(old.kind == "fragment" for old in self._waiting) >= BACKLOG * self.films:
            kept = deque(old for old in self._waiting if old.kind not in ("fragment", "sound"))
            self.dropped += sum(old.kind == "fragment" for old in self._waiting)
            self._waiting = kept
        self._waiting.append(item)
        self._some.set()

    @property
    def lost(self) -> bool:
        """Whether it asks and does not read what it is answered."""
        return sum(item.kind == "told" for item in self._waiting) > ANSWERS

    def got(self, count: int) -> None:
        """The page has this many fragments."""
        self._got = min(max(self._got, count), self._sent)
        self._some.set()

    async def send(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                if self._waiting[0].kind == "fragment" and self._sent - self._got >= UNTOLD * self.films:
                    break
                item = self._waiting.popleft()
                self._sent += item.kind == "fragment"
                await (self.websocket.send_text if isinstance(item.data, str) else self.websocket.send_bytes)(item.data)


class Hub:
    """All viewers of one engine. `publish` and `tell` are for its thread, the rest for that of the event loop.

    Args:
        watched: told how many viewers there are and how many of them play.
    """

    def __init__(self, watched: Callable[[int, int], None]):
        self.viewers: list[Viewer] = []
        self._watched, self._loop = watched, None
        self._openings: dict[int, list[Item]] = {}
        self._recent: dict[int, deque[Item]] = {}

    def open(self) -> None:
        """Take up work in the loop that runs."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Leave the loop."""
        self._loop = None

    def publish(self, pieces: list[Piece]) -> None:
        """Send pieces to all viewers."""
        self._in_loop(self._spread, pieces)

    def tell(self, event: dict) -> None:
        """Send an event to all viewers."""
        self._in_loop(self._spread_event, event)

    def _in_loop(self, do: Callable, what: object) -> None:
        with suppress(AttributeError, RuntimeError):  # there is none, or it has ended
            self._loop.call_soon_threadsafe(do, what)

    def _spread(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.kind == "opening":
                facts = {"type": "film", "film": piece.film, "first": piece.frame, "codecs": codecs(piece.data)}
                items = self._openings[piece.film] = [Item("told", json.dumps(facts)), packed(piece)]
            else:
                items = [packed(piece)]
                self._recent.setdefault(piece.film, deque(maxlen=2 * RECENT)).append(items[0])
            for viewer in self.viewers:
                viewer.films = len(self._openings)
                for item in items:
                    viewer.push(item)

    def _spread_event(self, event: dict) -> None:
        if event["type"] == "standing":
            running = {film["film"] for film in event["films"]}
            for gone in set(self._recent) - running:
                del self._recent[gone]
                self._openings.pop(gone, None)
        for viewer in self.viewers:
            viewer.push(Item("standing" if event["type"] == "standing" else "told", json.dumps(event)))

    def join(self, viewer: Viewer) -> bool:
        """Let a viewer in, who gets what it needs to show the films at once; False where there are too many."""
        if len(self.viewers) == VIEWERS:
            return False
        viewer.films = max(1, len(self._openings))
        for film, items in self._openings.items():
            for item in (*items, *self._recent[film]):
                viewer.push(item)
        self.viewers.append(viewer)
        self.count()
        return True

    def leave(self, viewer: Viewer) -> None:
        """A viewer is gone."""
        self.viewers.remove(viewer)
        self.count()

    def count(self) -> None:
        """Say how many watch."""
        self._watched(len(self.viewers), sum(viewer.playing for viewer in self.viewers))


async def ended(websocket: WebSocket) -> None:
    """Close a connection that may be closed already."""
    with suppress(RuntimeError, WebSocketDisconnect):
        await websocket.close(1013)
