"""Who may come in: requests that are meant for this server, from its own page, with the token where there is one."""

import ipaddress
import secrets
import socket
from urllib.parse import parse_qs, urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

UNKNOWN = "the token is missing or wrong; open the address that the server printed"
HERE = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def needs_token(host: str) -> bool:
    """Whether others than this machine could reach a server that binds `host`."""
    return host not in HERE


class Guard:
    """An ASGI app behind its checks: Host, so that no foreign name leads here; Origin, so that no foreign page asks.

    Args:
        host: that the server binds. token: that the address must have, once; "" for none.
    """

    def __init__(self, app: ASGIApp, host: str, token: str = ""):
        self.app, self.token = app, token
        own = {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        self.names = {*HERE, *(own if needs_token(host) else ())}
        self.any_number = needs_token(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        reason = self._reason(scope, headers)
        if not reason:
            return await self.app(scope, receive, self._with_headers(scope, send))
        if scope["type"] == "websocket":
            await receive()
            if reason == UNKNOWN:  # an old page can only be told why once it is let in
                await send({"type": "websocket.accept"})
            return await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return await PlainTextResponse(f"{reason}\n", 403, HEADERS)(scope, receive, send)

    def _reason(self, scope: Scope, headers: dict[str, str]) -> str:
        """Why a request is refused, or ""."""
        if not self._known(headers.get("host", "")):
            return "this server does not go by that name; open the address that it printed"
        origin, asks = headers.get("origin"), scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        if (origin is None and asks) or (origin is not None and urlsplit(origin).netloc != headers["host"]):
            return "only the server's own page may ask for that; open the address that it printed"
        if scope["path"] != "/" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "only the server's own page may ask for that; open the address that it printed"
        if self.token and not self._has_token(scope, headers):
            return UNKNOWN
        return ""

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            return self.any_number and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _has_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
        kept = next((value for name, _, value in pairs if name == _cookie(scope)), "")
        return any(secrets.compare_digest(text.encode(), self.token.encode()) for text in (given, kept))

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        """What the app sends, with the headers of every answer and the token as a cookie."""

        async def sent(message: dict) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                if self.token and scope["path"] == "/":
                    cookie = f"{_cookie(scope)}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                    more.append((b"set-cookie", cookie.encode()))
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        return sent


def _cookie(scope: Scope) -> str:
    """Name of the cookie with the token: servers at several ports of a machine have one each."""
    return f"live_token_{(scope.get('server') or ('', 0))[1]}"
