"""The server behind `pretune watch`: one page on the loopback interface, and what it is told as sweeps go on.

Only GET is answered, nothing is written. Whoever asks has to know the token in the address: other users of the machine
reach the port as well. A `Host` that is no name of this machine is refused, so that no web page of somebody else's gets
here under a name of its own (DNS rebinding).

All reading happens in one thread, one thing after another; aiohttp's loop only passes on what it found.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import queue
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import resources
from typing import Any, TypeVar

from aiohttp import web

from pretune.analysis.following import Followed
from pretune.analysis.gpus import Gpus
from pretune.analysis.watched import Watched, listing
from pretune.core.errors import RequestError
from pretune.display import format

HOST = "127.0.0.1"
OUR_NAME = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
"""What a browser on this machine, or behind a tunnel to it, may call it; a tunnel has a port of its own."""
EVERY_S = 0.5
"""How soon a page hears of a record."""
SLOWLY_S = 1.0
"""How often slots, logs and the sweep as a whole are looked at."""
LIST_S = 2.0
BEAT_S = 5.0
"""A page that hears nothing for longer than this takes the connection for lost."""
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "pretune",
}

Closing = Callable[[Followed], str]
"""The closing screen of a sweep as text."""
Message = tuple[str, dict[str, Any], str]
"""What a page is told: the event's name, its data, and the mark up to which it has heard then (empty: none)."""
Result = TypeVar("Result")


def listening(port: int) -> socket.socket:
    """A socket on the loopback interface; port 0 is any that is free. RequestError where the port is taken."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Or a port that was just in use would be refused for a minute.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((HOST, port))
        found.listen(128)
    except OSError as error:
        found.close()
        reason = {errno.EADDRINUSE: "it is in use", errno.EACCES: "it takes more rights"}.get(
            error.errno or 0, error.strerror or str(error)
        )
        raise RequestError(f"--port {port} cannot be listened on ({reason}); choose another one, or none") from error
    return found


def address(listener: socket.socket, token: str) -> str:
    """What to open in a browser."""
    return f"http://{HOST}:{listener.getsockname()[1]}/{token}/"


async def serve(
    watched: Watched, listener: socket.socket, token: str, closing: Closing, ready: Callable[[], None]
) -> None:
    """Answers until it is cancelled; `ready` is called once it does."""
    runner = web.AppRunner(application(watched, token, closing), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        ready()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def application(watched: Watched, token: str, closing: Closing) -> web.Application:
    """The page and what it asks for, below `/token/`."""
    pages = _Pages(watched, closing)
    found = web.Application(middlewares=[_guard(token)])
    found.on_response_prepare.append(_add_headers)
    found.cleanup_ctx.append(pages.reading)
    found.router.add_get("/{token}/", pages.file, allow_head=False)
    found.router.add_get("/{token}/events", pages.events, allow_head=False)
    found.router.add_get("/{token}/trial", pages.trial, allow_head=False)
    found.router.add_get("/{token}/closing", pages.closing, allow_head=False)
    found.router.add_get("/{token}/{name}", pages.file, allow_head=False)
    return found


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _guard(token: str) -> Any:
    """Refuses whoever does not know the token, before anything else is looked at."""
    expected = token.encode()

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if OUR_NAME.fullmatch(request.headers.get("Host", "")) is None:
            return web.Response(status=403, text="This page is asked for by the address that pretune watch printed.\n")
        given = request.path.split("/")[1] if request.path.startswith("/") else ""
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected):
            return web.Response(status=403, text="The address is not the one that pretune watch printed.\n")
        try:
            answer: web.StreamResponse = await handler(request)
        except web.HTTPException as error:
            return web.Response(status=error.status, text=f"{error.reason}\n")
        return answer

    return guard


class _Reader:
    """The thread in which sweeps are read. It ends with the process: a storage that hangs keeps nobody waiting."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    async def ask(self, what: Callable[[], Result]) -> Result:
        """What `what` returns or raises, in the reader's thread."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def run() -> None:
            tell: Callable[[], None]
            try:
                tell = partial(answer.set_result, what())
            except Exception as error:  # raised where it was asked
                tell = partial(answer.set_exception, error)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(lambda: None if answer.done() else tell())

        self._asked.put(run)
        return await answer

    def _run(self) -> None:
        while True:
            self._asked.get()()


class _Pages:
    """What each address answers."""

    def __init__(self, watched: Watched, closing: Closing) -> None:
        self._watched, self._closing = watched, closing
        self._gpus = Gpus()
        self._closed: dict[str, tuple[str, dict[str, str]]] = {}
        """The closing screen of each sweep, and the mark up to which it holds."""
        folder = resources.files("pretune.display") / "page"
        self._files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    async def reading(self, app: web.Application) -> AsyncIterator[None]:
        """Reads at once, before a page asks."""
        self._reader = _Reader()
        first = asyncio.ensure_future(self._reader.ask(self._look))
        yield
        first.cancel()

    def _look(self) -> None:
        if self._watched.alone:
            for followed in self._watched.sweeps().values():
                followed.poll()
                followed.since_mark("")

    async def file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in self._files:
            raise web.HTTPNotFound
        kind = TYPES.get(name[name.rfind(".") :], "application/octet-stream")
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8")

    async def trial(self, request: web.Request) -> web.Response:
        try:
            number = int(request.query.get("number", ""))
        except ValueError:
            raise web.HTTPNotFound from None
        told = await self._reader.ask(lambda: self._of_trial(request.query.get("sweep", ""), number))
        if told is None:
            raise web.HTTPNotFound
        return web.Response(text=_text(told), content_type="application/json")

    def _of_trial(self, key: str, number: int) -> dict[str, Any] | None:
        followed = self._watched.sweeps().get(key)
        if followed is None:
            return None
        followed.poll()
        return followed.trial(number)

    async def closing(self, request: web.Request) -> web.Response:
        told = await self._reader.ask(lambda: self._of_closing(request.query.get("sweep", "")))
        if told is None:
            raise web.HTTPNotFound
        return web.Response(text=_text(told), content_type="application/json")

    def _of_closing(self, key: str) -> dict[str, str] | None:
        followed = self._watched.sweeps().get(key)
        if followed is None:
            return None
        followed.poll()
        mark, told = self._closed.get(key, ("", {}))
        if mark != followed.mark:
            try:
                told = {"text": self._closing(followed)}
            except (RequestError, OSError, ValueError) as error:
                told = {"problem": str(error)}
            self._closed[key] = followed.mark, told
        return told

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events about one sweep, or about all; a page that was connected before goes on where it was."""
        response = web.StreamResponse()
        response.content_type, response.charset = "text/event-stream", "utf-8"
        await response.prepare(request)
        await response.write(b"retry: 1000\n\n")
        page = _Page(self._watched, self._gpus, request.query.get("sweep"))
        page.mark = request.headers.get("Last-Event-ID") or request.query.get("since", "")
        with suppress(ConnectionError):
            while True:
                for message in await self._reader.ask(lambda: list(page.news())):
                    await response.write(_event(message))
                await asyncio.sleep(EVERY_S)
        return response


class _Page:
    """One page that is open, and what it has heard."""

    def __init__(self, watched: Watched, gpus: Gpus, key: str | None) -> None:
        self._watched, self._gpus, self._key = watched, gpus, key
        self.mark = ""
        self._told: dict[str, str] = {}
        self._looked = self._spoke = float("-inf")

    def news(self) -> Iterator[Message]:
        """What it has not heard yet."""
        now, said = time.monotonic(), False
        for message in self._all(now):
            said = True
            yield message
        if said:
            self._spoke = now
        elif now - self._spoke >= BEAT_S:
            self._spoke = now
            yield "beat", {}, ""

    def _all(self, now: float) -> Iterator[Message]:
        if self._key is None:
            if now - self._looked >= LIST_S:
                self._looked = now
                yield from self._if_new("sweeps", listing(self._watched))
                yield from self._if_new("gpus", self._gpus.now())
            return
        followed = self._watched.sweeps().get(self._key)
        if followed is None:
            yield from self._if_new("sweep", {"name": self._key, "status": "gone", "place": self._watched.place})
            return
        followed.poll()
        if now - self._looked >= SLOWLY_S:
            self._looked = now
            whole = followed.summary()
            whole["problem"] = whole["problem"] or self._watched.problem()
            names = format.short_names(followed.names)
            alone = self._watched.alone
            yield from self._if_new("sweep", {**whole, "short": names, "alone": alone})
            yield from self._if_new("slots", followed.slots())
            yield from self._if_new("gpus", self._gpus.now())
        changed = followed.since_mark(self.mark)
        if changed is not None:
            self.mark = followed.mark
            yield "trials", changed, self.mark

    def _if_new(self, name: str, data: dict[str, Any] | None) -> Iterator[Message]:
        if data is None:
            return
        text = _text(data)
        if self._told.get(name) != text:
            self._told[name] = text
            yield name, {**data, "now": time.time()}, ""


def _event(message: Message) -> bytes:
    name, data, mark = message
    head = f"id: {mark}\n" if mark else ""
    return f"{head}event: {name}\ndata: {_text(data)}\n\n".encode()


def _text(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)
