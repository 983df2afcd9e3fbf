"""What is answered at which address."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipeline.conditional import SOURCES
from pipeline.film import RealClip
from serving.engine import Engine
from serving.film import record
from serving.given import Given
from serving.guard import Guard
from serving.hub import FULL, Hub, Item, Viewer, ended
from serving.messages import LARGEST, checked
from serving.uploads import Uploads, refusal, shown_name

PAGE = Path(__file__).parent / "page"
TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
KINDS = ("sound", "picture", "clip", "state")
PATIENCE = 120  # s for an upload to come
REFUSED = 4  # times the largest upload, of which one that is refused is read
GOT = "got"  # what a page says of fragments that it has


class Room:
    """The answers. `app` is the ASGI app behind its guard.

    Args:
        engine: that runs. facts: what a page shows of the model, a dict. checkpoint: of the exported commands.
        host, token: as of `Guard`.
    """

    def __init__(
        self, engine: Engine, hub: Hub, facts: dict, checkpoint: str, uploads: Uploads, host: str, token: str = ""
    ):
        self.engine, self.hub, self.facts, self.checkpoint, self.uploads = engine, hub, facts, checkpoint, uploads
        self._reading = asyncio.Semaphore(1)
        routes = [
            Route("/", partial(self.page, name="index.html")),
            *(Route(f"/{name}", partial(self.page, name=name)) for name in ("page.css", "page.js")),
            WebSocketRoute("/watch", self.watch),
            Route("/films/{film:int}/state", self.state),
            Route("/films/{film:int}/record", self.recording),
            Route("/films/{film:int}/commands", self.commands),
            Route("/upload/{kind:str}", self.upload, methods=["POST"]),
        ]
        errors = {ValueError: self.refused, OSError: self.refused}
        self.app = Guard(Starlette(routes=routes, exception_handlers=errors, lifespan=self.lifespan), host, token)

    @asynccontextmanager
    async def lifespan(self, _) -> AsyncIterator[None]:
        """While the server runs."""
        self.hub.open()
        yield
        self.hub.close()

    async def refused(self, _: Request, error: Exception) -> JSONResponse:
        """What cannot be done, in one sentence."""
        return JSONResponse({"text": " ".join(str(error).split())}, 400)

    async def page(self, _: Request, name: str) -> Response:
        """One of the three files of the page."""
        return Response((PAGE / name).read_bytes(), media_type=TYPES[name])

    async def ask(self, what: dict | Callable, needs_model: bool = True) -> object:
        """Have the engine do something."""
        return await asyncio.wrap_future(self.engine.ask(what, needs_model))

    # ------------------------------------------------------------------------------------------------ watching

    async def watch(self, websocket: WebSocket) -> None:
        """A viewer, from the first to the last message."""
        await websocket.accept()
        viewer = Viewer(websocket)
        viewer.push(Item("told", json.dumps({"type": "model", **self.facts})))
        viewer.push(Item("standing", json.dumps(self.engine.last)))
        if not self.hub.join(viewer):
            with suppress(RuntimeError, WebSocketDisconnect):
                await websocket.send_text(json.dumps({"type": "full", "text": FULL}))
            return await ended(websocket)
        sending = asyncio.create_task(viewer.send())
        try:
            await self._listen(websocket, viewer)
        finally:
            self.hub.leave(viewer)
            sending.cancel()
            with suppress(asyncio.CancelledError, RuntimeError, WebSocketDisconnect, OSError):
                await sending

    async def _listen(self, websocket: WebSocket, viewer: Viewer) -> None:
        """Do what a viewer asks for, one after the other, until it is gone."""
        while (message := await websocket.receive())["type"] == "websocket.receive":
            text, number = message.get("text"), 0
            if text and text.startswith(f'{{"{GOT}":') and len(text) < 30 and text[7:-1].strip().isdecimal():
                viewer.got(int(text[7:-1]))
                continue
            try:
                asked, number = checked(text if text is not None else "")
                if asked["do"] == "playing":
                    viewer.playing = asked["on"]
                    self.hub.count()
                    answer = {}
                else:
                    answer = await self.ask(asked)
                viewer.push(Item("told", json.dumps({"type": "done", "id": number, **answer})))
            except Exception as error:
                said = str(error) if isinstance(error, ValueError | OSError) else "it could not be done; try again"
                told = {"type": "refused", "id": number, "text": " ".join(said.split())}
                viewer.push(Item("told", json.dumps(told)))
            if viewer.lost:
                return await ended(websocket)

    # ------------------------------------------------------------------------------------------------ files

    async def state(self, request: Request) -> Response:
        """The state of a film after the last frame shown, as `sample_long.py --resume` takes it."""
        film, path = request.path_params["film"], self.uploads.path(".state.safetensors")

        def save(desk) -> int:
            desk.save(film, path)
            return desk.films[film].next

        frame = await self.ask(save, needs_model=False)
        return Download(path, f"live_{film}_from_{frame:06d}.state.safetensors")

    async def recording(self, request: Request) -> Response:
        """An mp4 of what was shown of a film from frame `from` on, to before frame `to` if that is given."""
        film, first, end = request.path_params["film"], _whole(request, "from"), _whole(request, "to", LARGEST)
        shown, spec = await self.ask(
            lambda desk: (desk.film(film).between(first, end), desk.film(film).spec), needs_model=False
        )
        path = self.uploads.path(".mp4")
        await asyncio.to_thread(record, shown, path, spec)
        return Download(path, f"live_{film}_{shown[0].index:06d}_to_{shown[-1].index + 1:06d}.mp4")

    async def commands(self, request: Request) -> Response:
        """The commands that make a film again."""
        film = request.path_params["film"]
        made = await self.ask(
            lambda desk: desk.film(film).history.commands(self.checkpoint, desk.film(film).next), needs_model=False
        )
        return PlainTextResponse(made)

    async def upload(self, request: Request) -> JSONResponse:
        """Take a file in; one that is refused is read to its end, before which no browser looks at the answer."""
        try:
            return await self._taken(request)
        except ValueError:
            with suppress(RuntimeError, TimeoutError, ClientDisconnect):  # it has come whole, or never will
                async with asyncio.timeout(PATIENCE):
                    rest = 0
                    async for part in request.stream():
                        if (rest := rest + len(part)) > REFUSED * self.uploads.bounds.size:
                            break
            raise

    async def _taken(self, request: Request) -> JSONResponse:
        """What becomes of a file, as its `kind` says."""
        kind, film = request.path_params["kind"], _whole(request, "film")
        if kind not in KINDS:
            raise ValueError(f"a file is taken as one of {', '.join(KINDS)}")
        if self._reading.locked():
            raise ValueError("another file is being read; wait until it is there")
        async with self._reading:
            name, path = shown_name(request.query_params.get("name", "")), self.uploads.path()
            self.uploads.check_size(int(request.headers.get("content-length", "0")))
            needed = False
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.uploads.keep(request.stream(), path)
                answer = await self.ask(await self._read(kind, film, path, name))
                needed = kind != "state"  # media are read while they are played, and then removed
                return JSONResponse(answer)
            except ClientDisconnect:
                return JSONResponse({"text": "the file did not come whole"}, 400)
            except Exception as error:
                raise ValueError(refusal(error, path, name)) from None
            finally:
                if not needed:
                    path.unlink(missing_ok=True)

    async def _read(self, kind: str, film: int, path: Path, name: str) -> dict:
        """What the engine is asked with a file that has come."""
        if kind == "state":
            return {"do": "open", "path": path, "name": name}
        await asyncio.to_thread(self.uploads.examine, path, kind)
        codec, window, takes = await self.ask(
            lambda desk: (desk.pipe.codec, desk.pipe.model.predict_frames, desk.pipe.model.takes)
        )
        if kind == "clip":
            real = await asyncio.to_thread(RealClip.open, path, codec)
            return {"do": "extend", "real": real, "name": name, "done": partial(path.unlink, missing_ok=True)}
        if kind not in takes or kind not in SOURCES:
            raise ValueError(f"this model takes no {kind}, only {' and '.join(takes)}; give that")
        done = partial(path.unlink, missing_ok=True)
        return {
            "do": "give",
            "film": film,
            "given": await asyncio.to_thread(Given, kind, path, codec, window, done, name),
        }


class Download(FileResponse):
    """A file that is sent whole, whatever part is asked for, and removed whatever becomes of it."""

    def __init__(self, path: Path, name: str):
        super().__init__(path, filename=name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"range", b"if-range")]
        try:
            await super().__call__({**scope, "headers": headers}, receive, send)
        finally:
            Path(self.path).unlink(missing_ok=True)


def _whole(request: Request, name: str, absent: int = 0) -> int:
    """A number of the address.

    Raises:
        ValueError: it is none.
    """
    text = request.query_params.get(name, str(absent))
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and int(text) <= LARGEST):
        raise ValueError(f"{name} is a whole number from 0 to {LARGEST}; give such a number")
    return int(text)
